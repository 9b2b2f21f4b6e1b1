"""Files from strangers: whatever is damaged is one of the library's own errors, or is read.

Some hundred files of each kind; `SGENAS_FUZZ=10000 pytest tests/test_fuzz.py` takes as many as one likes.
"""

import io
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutate import damaged
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
from sgenas.errors import SgenasError
from sgenas.nets import published
from sgenas.nets.costs import NetworkSpec, Place
from sgenas.nets.latency import LatencyTable
from sgenas.report import read_run, save_all
from sgenas.spaces import AccuracyTable, Genotype

COUNT = int(os.environ.get("SGENAS_FUZZ", "120"))
Reader = Callable[[Path], Any]
CELL = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = SearchConfig(
        epochs=2,
        data=DataSettings(data="digits", train_images=80, batch_size=16),
        space=SpaceSettings(channels=2, layers=3, nodes=1),
        estimator=EstimatorSettings(estimator="first-order"),
    )
    path = tmp_path_factory.mktemp("runs") / "run"
    run_search(config, path)
    return path


def picture(kind: str, shade: int = 100) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 30, 200)).save(stream, kind)
    return stream.getvalue()


def parquet() -> bytes:
    column = [{"bytes": picture("PNG", 20 * number), "path": None} for number in range(12)]
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": column, "label": [number % 2 for number in range(12)]}), stream)
    return stream.getvalue()


def latency(path: Path) -> bytes:
    place = Place("sep_conv_3x3", 16, 1, 32, 32)
    LatencyTable(NetworkSpec.of("darts"), {place: 1.5}, 2.5, 1, {"device": "cpu"}).save(path)
    return path.read_bytes()


def try_all(good: bytes, path: Path, read: Reader, seed: int, count: int = COUNT) -> int:
    """Damages the file again and again; how many were read all the same."""
    draw, read_anyway = random.Random(seed), 0
    said: list[str] = []
    for number in range(count):
        bad = damaged(good, draw)
        path.write_bytes(bad)
        try:
            read(path)
            read_anyway += 1
        except SgenasError as error:
            said.append(str(error))
        except Exception as error:
            kept = path.with_name(f"failed-{number}-{path.name}")
            kept.write_bytes(bad)
            raise AssertionError(f"number {number}, kept as {kept}: {error!r}") from error
    path.write_bytes(good)
    read(path)
    assert [text for text in said if "\n" in text] == [], "an error is one line"
    return read_anyway


def test_genotypes(tmp_path: Path) -> None:
    good = published("darts-v2").to_json().encode()
    assert try_all(good, tmp_path / "cell.json", Genotype.load, 0) < COUNT


def test_tables_of_accuracies(tmp_path: Path) -> None:
    good = f'arch,cifar10_test\n"{CELL}",91.5\n"{CELL.replace("1x1", "3x3")}",90.25\n'.encode()

    def read(path: Path) -> None:
        AccuracyTable.load(path, complete=False)

    try_all(good.replace(b"cifar10_test", column().encode()), tmp_path / "table.csv", read, 1)


def column() -> str:
    from sgenas.spaces.nasbench201_table import COLUMNS

    return next(iter(COLUMNS.values()))


def test_latency_tables(tmp_path: Path) -> None:
    try_all(latency(tmp_path / "first.json"), tmp_path / "table.json", LatencyTable.load, 2)


def test_settings(run: Path, tmp_path: Path) -> None:
    try_all((run / "config.json").read_bytes(), tmp_path / "config.json", read_settings, 3)


def test_checkpoints(run: Path, tmp_path: Path) -> None:
    good = (run / "checkpoint.pt").read_bytes()
    assert try_all(good, tmp_path / "checkpoint.pt", checkpoints.load, 4) == 0


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "alphas.npz", "genotype.json"])
def test_run_folders_and_their_reports(run: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before = set(tmp_path.iterdir())

    def read(path: Path) -> None:
        read_run(path.parent)
        # drawing takes a second: of some of those that can be read
        if zlib.crc32(path.read_bytes()) % 20 == 0:
            save_all(path.parent)

    try_all((run / name).read_bytes(), folder / name, read, 5)
    assert set(tmp_path.iterdir()) == before, "nothing is written outside of the run folder"


def test_runs_that_are_resumed(run: Path, tmp_path: Path) -> None:
    """A finished one, so that nothing is computed."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "checkpoint-previous.pt").unlink()

    def read(path: Path) -> None:
        resume_search(path.parent, stop=lambda: True)

    good = (run / "config.json").read_bytes()
    try_all(good, folder / "config.json", read, 6, count=max(10, COUNT // 10))


def test_parquet_files(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        data.load(f"parquet:{path}")

    try_all(parquet(), tmp_path / "train.parquet", read, 7)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_pictures(tmp_path: Path, kind: str) -> None:
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "train" / label / f"{number}.png").write_bytes(picture("PNG"))

    def read(_: Path) -> None:
        data.load(f"folder:{tmp_path}")

    try_all(picture(kind), tmp_path / "train" / "a" / "0.png", read, 8)


def test_deep_nesting_is_no_crash(run: Path, tmp_path: Path) -> None:
    deep = "[" * 100_000
    for read, name in ((Genotype.load, "cell.json"), (read_settings, "config.json")):
        (tmp_path / name).write_text(deep)
        with pytest.raises(SgenasError):
            read(tmp_path / name)
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "metrics.jsonl").write_text(f"{deep}\n{deep}\n")
    with pytest.raises(SgenasError):
        read_run(folder)
    assert json.loads((run / "config.json").read_text())
