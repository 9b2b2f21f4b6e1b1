"""Every reader of files from strangers, by kind: an honest file, and what reads one."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sgenas import data
from sgenas.engine import (
    DataSettings,
    EstimatorSettings,
    SearchConfig,
    SpaceSettings,
    resume_search,
    run_search,
)
from sgenas.engine import checkpoint as checkpoints
from sgenas.engine.run_folder import read_settings
from sgenas.errors import RunFolderError
from sgenas.experiments.formats import write_tables
from sgenas.experiments.grid import load_grid, plan
from sgenas.experiments.lab import LabSettings, run_lab
from sgenas.experiments.lab.store import read_tree
from sgenas.experiments.outcome import Outcome, read_outcome, write_outcome
from sgenas.experiments.status import grid_status, status_text
from sgenas.experiments.table import collect
from sgenas.nets import published
from sgenas.nets.costs import NetworkSpec, Place
from sgenas.nets.latency import LatencyTable
from sgenas.report import read_run, save_all
from sgenas.report.lab import save_lab
from sgenas.spaces import AccuracyTable, Genotype

CELL = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
PICTURES = ("PNG", "JPEG", "BMP", "WEBP")


class Reader(NamedTuple):
    """An honest file at `path`, and what reads whatever stands there. draw: reads it and draws what it holds,
    where that takes a second; else None."""

    path: Path
    read: Callable[[], Any]
    draw: Callable[[], Any] | None = None


def finished_run(path: Path) -> Path:
    """A tiny search, finished."""
    config = SearchConfig(
        epochs=2,
        data=DataSettings(data="digits", train_images=80, batch_size=16),
        space=SpaceSettings(channels=2, layers=3, nodes=1),
        estimator=EstimatorSettings(estimator="first-order"),
    )
    run_search(config, path)
    return path


def picture(kind: str, shade: int = 100) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 30, 200)).save(stream, kind)
    return stream.getvalue()


def _genotype(folder: Path, _: Path) -> Reader:
    path = folder / "cell.json"
    path.write_text(published("darts-v2").to_json())
    return Reader(path, lambda: Genotype.load(path))


def _settings(folder: Path, run: Path) -> Reader:
    path = Path(shutil.copy(run / "config.json", folder))
    return Reader(path, lambda: read_settings(path))


def _checkpoint(folder: Path, run: Path) -> Reader:
    path = Path(shutil.copy(run / "checkpoint.pt", folder))
    return Reader(path, lambda: checkpoints.load(path))


def _tensors(folder: Path, run: Path) -> Reader:
    """The same without its checksum, which would find everything."""
    path = folder / "truths.pt"
    content = (run / "checkpoint.pt").read_bytes()
    path.write_bytes(content[: content.rindex(checkpoints.SEAL) - 2] + b"\x00\x00")
    return Reader(path, lambda: read_tree(path))


def _accuracies(folder: Path, _: Path) -> Reader:
    path = folder / "table.csv"
    path.write_text(f'arch,cifar10_test\n"{CELL}",91.5\n"{CELL.replace("1x1", "3x3")}",90.25\n')
    return Reader(path, lambda: AccuracyTable.load(path, complete=False))


def _latencies(folder: Path, _: Path) -> Reader:
    path, place = folder / "latency.json", Place("sep_conv_3x3", 16, 1, 32, 32)
    LatencyTable(NetworkSpec.of("darts"), {place: 1.5}, 2.5, 1, {"device": "cpu"}).save(path)
    return Reader(path, lambda: LatencyTable.load(path))


def _of_a_run(name: str) -> Callable[[Path, Path], Reader]:
    def make(folder: Path, run: Path) -> Reader:
        copy = Path(shutil.copytree(run, folder / "run"))
        return Reader(copy / name, lambda: read_run(copy), lambda: save_all(copy))

    return make


def _resumed(folder: Path, run: Path) -> Reader:
    """The settings of a finished run that is resumed, so that nothing is computed."""
    copy = Path(shutil.copytree(run, folder / "run"))
    (copy / "checkpoint-previous.pt").unlink()
    return Reader(copy / "config.json", lambda: resume_search(copy, stop=lambda: True))


def _parquet(folder: Path, _: Path) -> Reader:
    path, images = folder / "train.parquet", [picture("PNG", 20 * number) for number in range(12)]
    column = [{"bytes": image, "path": None} for image in images]
    pq.write_table(pa.table({"image": column, "label": [number % 2 for number in range(12)]}), path)
    return Reader(path, lambda: data.load(f"parquet:{path}"))


def _picture(kind: str) -> Callable[[Path, Path], Reader]:
    def make(folder: Path, _: Path) -> Reader:
        for label in ("a", "b"):
            (folder / "train" / label).mkdir(parents=True)
            (folder / "train" / label / "0.png").write_bytes(picture(kind if label == "a" else "PNG"))
        return Reader(folder / "train" / "a" / "0.png", lambda: data.load(f"folder:{folder}"))

    return make


def _laboratory(folder: Path, _: Path) -> Reader:
    settings = LabSettings(
        problem="weight-decay-toy",
        estimators=("first-order", "second-order"),
        inner_steps=(1,),
        moments=(0,),
        batches=1,
        draws=2,
        truth_directions=0,
    )
    run_lab(settings, folder / "lab")
    path = folder / "lab" / "lab.json"

    def read() -> None:
        run_lab(settings, folder / "lab", stop=lambda: True)

    return Reader(path, read, lambda: save_lab(folder / "lab"))


def _grid(folder: Path, _: Path) -> Reader:
    grid, _places = plan(folder / "grid", "smoke", (), (0,), ("2026-11-24", "sgenas table1"))
    grid.save()
    return Reader(grid.out / "grid.json", lambda: status_text(grid_status(load_grid(grid.out))))


def _outcome(folder: Path, _: Path) -> Reader:
    grid, places = plan(folder / "grid", "smoke", (), (0,), ("2026-11-24", "sgenas table1"))
    grid.save()
    environment = {
        **dict.fromkeys(("sgenas", "torch", "python", "device_name", "started", "platform"), "x"),
        "device": "cpu",
        "threads": 1,
        "git_commit": None,
        "cores": 2,
    }
    last = {"seconds": 1.5, "forward": 10, "backward": 5}
    figures = {
        "test_accuracy": 0.5,
        "best_test_accuracy": 0.5,
        "test_images": 10,
        "params": 100,
        "macs": 5,
        "params_with_auxiliary": 100,
        "genotype": published("darts-v2").to_dict(),
        **{stage: {"environment": environment, "last": last} for stage in ("search", "training")},
    }
    place = places[0]
    place.training_folder.mkdir(parents=True)
    (place.training_folder / "metrics.jsonl").touch()
    write_outcome(place, Outcome.done(figures))

    def read() -> None:
        status_text(grid_status(load_grid(grid.out)))
        write_tables(collect(load_grid(grid.out)))
        outcome = read_outcome(place)
        if outcome is not None and outcome.state == "failed":
            # it must not hide the other places: what is wrong with it stands where the table says why
            raise RunFolderError(str(outcome.reason))

    read()
    assert json.loads((grid.out / "table.json").read_text())["rows"][0]["done"] + 1
    return Reader(place.folder / "outcome.json", read)


READERS: dict[str, Callable[[Path, Path], Reader]] = {
    "genotype": _genotype,
    "settings": _settings,
    "checkpoint": _checkpoint,
    "tensors": _tensors,
    "accuracies": _accuracies,
    "latencies": _latencies,
    "run-config": _of_a_run("config.json"),
    "run-metrics": _of_a_run("metrics.jsonl"),
    "run-alphas": _of_a_run("alphas.npz"),
    "run-genotype": _of_a_run("genotype.json"),
    "resumed": _resumed,
    "parquet": _parquet,
    **{f"picture-{kind.lower()}": _picture(kind) for kind in PICTURES},
    "laboratory": _laboratory,
    "grid": _grid,
    "outcome": _outcome,
}
"""Kind -> what makes its reader, given an empty folder and a finished run (which is not to be changed)."""
PURE = ("genotype", "settings", "accuracies", "latencies", "run-metrics", "run-config", "grid", "parquet")
"""Those whose readers are Python, or begin with it, and quick: for a fuzzer that follows branches."""
