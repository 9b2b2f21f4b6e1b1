"""What is to be run: the places of the grid, their settings and folders, and grid.json, the plan."""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sgenas import limits
from sgenas.engine import SearchConfig, TrainConfig, TrainSettings
from sgenas.engine.parts import with_absolute_paths
from sgenas.engine.settings import first_difference
from sgenas.errors import ConfigError, RunFolderError
from sgenas.experiments.presets import ROWS, Row, preset, search_config, train_settings
from sgenas.files import Document, naming, replacing
from sgenas.spaces import Genotype

GRID = Document("sgenas-table1", 1)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What a data set may be called in --data NAME=SPEC: it becomes the name of a folder."""


@dataclass(frozen=True)
class Dataset:
    """A data set of the table: its `name` there and in the folders, and the `spec` of `--data`."""

    name: str
    spec: str

    @classmethod
    def parse(cls, text: str) -> "Dataset":
        """Reads `SPEC` or `NAME=SPEC`; without a name it is the spec, or its last folder or file.

        Raises ConfigError for an empty text, or one of which no name can be made.
        """
        name, separator, spec = text.partition("=")
        if not separator or NAME.fullmatch(name) is None:
            name, spec = "", text
        kind, colon, paths = spec.partition(":")
        # of a list of paths the first
        last = Path(paths.split(",")[0].strip() if colon else kind)
        name = name or (last.stem if last.suffix == ".parquet" else last.name)
        if not spec.strip() or NAME.fullmatch(name) is None:
            raise ConfigError(
                f"--data must be SPEC or NAME=SPEC with a name of letters, digits and _.-, got {text!r}"
            )
        return cls(name, spec.strip())


def place_name(row: Row, dataset: Dataset, seed: int) -> str:
    """What a place is called in messages and in `--place`, and where its folder is below that of the runs."""
    return f"{dataset.name}/{row.name}/seed-{seed}"


@dataclass(frozen=True)
class Place:
    """One search with the training of the cell that it finds: a row, a data set and a seed."""

    row: Row
    dataset: Dataset
    seed: int
    grid: Path
    search: SearchConfig
    training: TrainSettings

    @property
    def name(self) -> str:
        """See `place_name`."""
        return place_name(self.row, self.dataset, self.seed)

    @property
    def folder(self) -> Path:
        """Holds both run folders, `search` and `training`, with outcome.json and log.txt."""
        return self.grid / "runs" / self.name

    @property
    def search_folder(self) -> Path:
        """The run folder of the search."""
        return self.folder / "search"

    @property
    def training_folder(self) -> Path:
        """The run folder of the training."""
        return self.folder / "training"

    def train_config(self, genotype: Genotype) -> TrainConfig:
        """The settings of the training of `genotype`."""
        settings = {
            item.name: getattr(self.training, item.name) for item in dataclasses.fields(TrainSettings)
        }
        return TrainConfig(**settings, genotype=genotype)


@dataclass(frozen=True)
class Grid:
    """The whole plan. commands: (date, command line) of those that worked on it."""

    out: Path
    preset: str
    data: tuple[Dataset, ...]
    seeds: tuple[int, ...]
    commands: tuple[tuple[str, str], ...] = field(default=())

    @property
    def size(self) -> int:
        """How many places there are."""
        return len(ROWS) * len(self.data) * len(self.seeds)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Every place, seed by seed, so that a grid that is cut short has whole tables of fewer seeds."""
        return tuple(self._make(*key) for key in self._keys())

    def _keys(self) -> Iterator[tuple[Row, Dataset, int]]:
        return ((row, dataset, seed) for seed in self.seeds for dataset in self.data for row in ROWS)

    def _make(self, row: Row, dataset: Dataset, seed: int) -> Place:
        return Place(
            row,
            dataset,
            seed,
            self.out,
            search_config(self.preset, row, dataset.spec, seed),
            train_settings(self.preset, dataset.spec, seed),
        )

    def place(self, name: str) -> Place:
        """The place of that name; raises ConfigError where there is none."""
        # the settings of 1,000 places take a second to make, which every worker would pay
        for key in self._keys():
            if place_name(*key) == name:
                return self._make(*key)
        raise ConfigError(
            f"--place must be one of the {self.size} of {self.out / 'grid.json'}, such as"
            f" {self.places[0].name}, got {name!r}"
        )

    def settings(self) -> dict[str, Any]:
        """Every setting of every run but the seed: {data set: {row: {search, training}}}."""
        found: dict[str, Any] = {}
        for dataset in self.data:
            for row in ROWS:
                place = self._make(row, dataset, self.seeds[0])
                runs = {"search": place.search.to_dict(), "training": dataclasses.asdict(place.training)}
                for run in runs.values():
                    del run["seed"]
                found.setdefault(dataset.name, {})[row.name] = runs
        return found

    def save(self) -> None:
        """Writes grid.json; raises RunFolderError where that is impossible."""
        with naming(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        data = {
            **GRID.head,
            "preset": self.preset,
            "data": {dataset.name: dataset.spec for dataset in self.data},
            "seeds": list(self.seeds),
            "commands": [list(command) for command in self.commands],
            "settings": self.settings(),
        }
        with replacing(self.out / "grid.json") as file:
            file.write(json.dumps(data, indent=1).encode() + b"\n")


def load_grid(out: Path) -> Grid:
    """The grid that the folder `out` holds, once its settings are those that this version would take.

    Raises RunFolderError where there is none or it is damaged, ConfigError for other settings.
    """
    path = out / "grid.json"
    if not path.exists():
        raise RunFolderError(f"--out {out} holds no grid: it has no {path.name}")
    data = GRID.read(path)
    try:
        grid = Grid(
            out,
            str(data["preset"]),
            tuple(_dataset(name, spec) for name, spec in data["data"].items()),
            tuple(_seed(seed) for seed in data["seeds"]),
            tuple((str(date), str(command)) for date, command in data["commands"]),
        )
        settings = data["settings"]
        _check_places(grid)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path} must be a grid of this version of sgenas, got {error!r}") from None
    difference = first_difference(grid.settings(), settings, "now")
    if difference:
        raise ConfigError(f"--out {out} holds a grid of other settings: {difference}; choose another folder")
    return grid


def _check_places(grid: Grid) -> None:
    if not grid.data or not grid.seeds or len(set(grid.seeds)) < len(grid.seeds):
        raise ValueError("a data set or more, and a seed or more, each once")
    if grid.size > limits.PLACES:
        raise ValueError(f"at most {limits.PLACES:,} runs, got {grid.size:,}")


def _dataset(name: str, spec: Any) -> Dataset:
    """Both become parts of paths: a name such as ../.. would lead out of the grid's folder."""
    if NAME.fullmatch(name) is None or not isinstance(spec, str):
        raise ValueError(f"data set {name[:40]!r}: {str(spec)[:40]!r}")
    return Dataset(name, spec)


def _seed(seed: Any) -> int:
    if type(seed) is not int:
        raise ValueError(f"seed {str(seed)[:40]!r}")
    return seed


def plan(
    out: Path, name: str | None, data: tuple[str, ...], seeds: tuple[int, ...], command: tuple[str, str]
) -> tuple[Grid, tuple[Place, ...]]:
    """(the grid of `out` with what is asked added to it, the places that are asked); writes nothing.

    A folder that holds a grid may be given more seeds and data sets. None and () stand for what it holds;
    in a new one for the preset's data sets and the seeds 0, 1, 2. Raises ConfigError and RunFolderError.
    """
    asked = tuple(_absolute(Dataset.parse(text)) for text in data)
    if (out / "grid.json").exists():
        kept = load_grid(out)
        if name not in (None, kept.preset):
            raise ConfigError(
                f"--preset must be {kept.preset} as in --out {out}, or the folder another, got {name!r}"
            )
    else:
        _require_new(out)
        if name is None:
            raise ConfigError(f"--preset must be given: --out {out} holds no grid to go on with")
        kept = Grid(out, name, (), ())
        asked = asked or tuple(Dataset.parse(text) for text in preset(name).data)
        seeds = seeds or (0, 1, 2)
    known = {dataset.name: dataset for dataset in kept.data}
    for dataset in asked:
        found = known.setdefault(dataset.name, dataset)
        if found != dataset:
            raise ConfigError(
                f"--data {dataset.name} must be {found.spec} all through --out {out}, got {dataset.spec}"
                "; name it otherwise, NAME=SPEC"
            )
    grid = Grid(
        out,
        kept.preset,
        tuple(known.values()),
        tuple(sorted({*kept.seeds, *seeds})),
        (*kept.commands, command),
    )
    if grid.size > limits.PLACES:
        raise ConfigError(f"--out {out} must have at most {limits.PLACES:,} runs, got {grid.size:,}")
    names, numbers = {dataset.name for dataset in asked or grid.data}, set(seeds or grid.seeds)
    chosen = [place for place in grid.places if place.dataset.name in names and place.seed in numbers]
    return grid, tuple(chosen)


def _absolute(dataset: Dataset) -> Dataset:
    """With absolute paths: whoever goes on may stand in another folder."""
    settings = with_absolute_paths(search_config("smoke", ROWS[0], dataset.spec, 0))
    return Dataset(dataset.name, settings.data.data)


def _require_new(out: Path) -> None:
    try:
        if out.exists() and any(out.iterdir()):
            raise RunFolderError(f"--out {out} must be new, empty or hold a grid, got other files")
    except OSError as error:
        raise RunFolderError(f"--out {out} must be a folder: {error.strerror}") from None
