"""Table 1 of the paper by one command: what is missing is run, and the table written."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from sgenas.engine.parts import load_images
from sgenas.errors import ConfigError, DataError
from sgenas.experiments import slurm
from sgenas.experiments.formats import markdown, write_tables
from sgenas.experiments.grid import Grid, Place, load_grid, plan
from sgenas.experiments.outcome import is_done
from sgenas.experiments.progress import GridDisplay
from sgenas.experiments.table import collect
from sgenas.experiments.workers import run_local, shares

Stop = Callable[[], bool]
DONE, FAILED, STOPPED = 0, 1, 130


@dataclass(frozen=True)
class Request:
    """What the command is asked for. preset, data and seeds: see `plan`. jobs, threads: see `shares`; ray:
    address of a cluster, "" for one on this machine, None for none."""

    out: Path
    preset: str | None = None
    data: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    jobs: int | None = None
    threads: int | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be >= 1, got {value}")
        if self.ray and self.jobs is not None:
            raise ConfigError(
                f"--jobs must not be given with --ray {self.ray}: that cluster says how many runs fit it"
            )
        for seed in self.seeds:
            if not 0 <= seed < 2**63:
                raise ConfigError(f"--seeds must be from 0 to 2^63 - 1, got {seed}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"--seeds must be different, got {','.join(map(str, self.seeds))}")

    def command(self) -> str:
        """The command line that asks for this."""
        words = ["sgenas", "table1"]
        if self.preset is not None:
            words += ["--preset", self.preset]
        if self.seeds:
            words += ["--seeds", ",".join(map(str, self.seeds))]
        words += ["--out", str(self.out)]
        if self.data:
            words += ["--data", *self.data]
        for name in ("jobs", "threads"):
            value = getattr(self, name)
            if value is not None:
                words += [f"--{name}", str(value)]
        if self.ray is not None:
            words += ["--ray", *([self.ray] if self.ray else [])]
        return shlex.join(words)


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` as numbers; raises ConfigError for what is none."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds must be whole numbers with commas between, got {text!r}") from None


def table1(request: Request, console: Console, stop: Stop) -> int:
    """Runs what is missing of the grid and writes the table after every run.

    The exit code: 0 when all that is asked is done, 1 when runs have failed, 130 when `stop` said to stop.
    Raises ConfigError, DataError or RunFolderError before anything runs.
    """
    grid, places = begin(request)
    todo = [place for place in places if not is_done(place)]
    with GridDisplay(console, grid, len(todo), len(places) - len(todo)) as display:
        if request.ray is not None:
            from sgenas.experiments.ray_workers import run_on_ray

            # how many cores the machines of a cluster have is not known here
            threads = request.threads or (1 if request.ray else None)
            run_on_ray(todo, request.ray, shares(request.jobs, threads), display, stop)
        else:
            run_local(todo, shares(request.jobs, request.threads), display, stop)
    return _close(grid, places, console, stopped=stop())


def begin(request: Request) -> tuple[Grid, tuple[Place, ...]]:
    """(grid, places asked for), once the settings are good and the data sets can be had; writes grid.json."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    grid, places = plan(request.out, request.preset, request.data, request.seeds, (date, request.command()))
    _check_images(places)
    grid.save()
    return grid, places


def submit(request: Request, console: Console) -> int:
    """Writes a SLURM job script for the places that are not done, and prints how to submit it."""
    grid, places = begin(request)
    todo = [place for place in places if not is_done(place)]
    if not todo:
        console.print("All runs that are asked for are done: nothing to submit.")
        return DONE
    path = slurm.write_script(grid, todo, jobs=request.jobs, threads=request.threads)
    console.print(
        f"Wrote {path}: {len(todo)} runs, one a task. Submit it with what your cluster asks for, such as\n"
        f"  sbatch --time=24:00:00 --gres=gpu:1 {shlex.quote(str(path))}",
        soft_wrap=True,
    )
    return DONE


def only_tables(out: Path, console: Console) -> int:
    """Writes the table of what the folder holds, and runs nothing."""
    _say(console, write_tables(collect(load_grid(out))))
    return DONE


def _check_images(places: Sequence[Place]) -> None:
    """Reads each data set once, if no run has yet: a wrong path is one error, and a download one download."""
    begun = {place.dataset for place in places if place.search_folder.exists()}
    for place in places:
        if place.dataset in begun:
            continue
        begun.add(place.dataset)
        if load_images(place.search, test=True).test is None:
            raise DataError(f"--data {place.dataset.spec} must have test images, got none")


def _close(grid: Grid, places: Sequence[Place], console: Console, *, stopped: bool) -> int:
    table = collect(grid)
    written = write_tables(table)
    console.print(markdown(table).split("## How it was made")[0].rstrip(), soft_wrap=True)
    _say(console, written)
    missing = [place for place in places if not is_done(place)]
    again = f"sgenas table1 --out {shlex.quote(str(grid.out))}"
    if stopped and missing:
        console.print(f"Stopped, {len(missing)} runs missing. Go on with:  {again}", soft_wrap=True)
        return STOPPED
    if missing:
        console.print(
            f"{len(missing)} runs missing, the reasons above; each run's log.txt says more. To try them"
            f" again from their last checkpoints:  {again}",
            soft_wrap=True,
        )
        return FAILED
    return DONE


def _say(console: Console, written: Sequence[Path]) -> None:
    for path in written:
        console.print(f"  {path}", soft_wrap=True)
