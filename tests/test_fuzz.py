"""Files from strangers: whatever is damaged is one of the library's own errors, or is read.

Some hundred files of each kind, and those in tests/corpus/KIND that found faults once. More of them:

    SGENAS_FUZZ=10000 SGENAS_FUZZ_SEED=1 pytest -s tests/test_fuzz.py    (about an hour on one core)
    python tests/fuzz_guided.py KIND                                      (follows branches; see there)

A file that finds a fault is kept, and its name printed: copy it to tests/corpus/KIND/ under a name that says
what is wrong with it, and it is tried in every run from then on.
"""

import os
import random
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from measured import RESET, at_most
from mutate import damaged
from readers import READERS, Reader, finished_run

from sgenas.errors import SgenasError

COUNT = int(os.environ.get("SGENAS_FUZZ", "120"))
SEED = int(os.environ.get("SGENAS_FUZZ_SEED", "0"))
CORPUS = Path(__file__).parent / "corpus"
KEPT = sorted(path for path in CORPUS.rglob("*") if path.is_file())
MOST = 256 * 2**20
"""Bytes of memory for one file, all of which are small."""
SLOW = {"resumed": 10}
"""Kinds of which only one in so many is tried: building a search takes a while."""
WRITTEN_BY_READERS = {"report.html", "cell.png", "cell.svg", "curves.png"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs") / "run")


def entries(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def try_one(reader: Reader, content: bytes, draw: bool) -> str | None:
    """What the reader says against `content`; None where it reads it. draw: draw what can be read, too."""
    reader.path.write_bytes(content)
    try:
        with at_most(MOST) if RESET.exists() else nullcontext():
            reader.read()
            if draw and reader.draw is not None:
                reader.draw()
    except SgenasError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.timeout(7200)
def test_damaged_files(kind: str, run: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    reader = READERS[kind](home, run)
    good, draw = reader.path.read_bytes(), random.Random(f"{kind} {SEED}")
    assert try_one(reader, good, True) is None
    before = entries(tmp_path)
    count, drawings, refused = max(10, COUNT // SLOW.get(kind, 1)), 2 + COUNT // 1000, 0
    for number in range(count):
        bad = damaged(good, draw)
        try:
            said = try_one(reader, bad, drawings > 0)
        except Exception as error:
            kept = tmp_path / f"failed-{number}-{reader.path.name}"
            kept.write_bytes(bad)
            raise AssertionError(f"{kind}, number {number}, kept as {kept}: {error!r}") from error
        refused += said is not None
        drawings -= said is None
        assert said is None or "\n" not in said, "an error is one line"
        assert said is not None or kind != "checkpoint" or bad == good, "its checksum finds everything"
    sys.stdout.write(f"{kind}: of {count:,} damaged files {refused:,} were refused\n")
    assert refused > 0
    new = {path for path in entries(tmp_path) - before if path.name not in WRITTEN_BY_READERS}
    assert new == set(), "nothing is written but what readers write"
    assert try_one(reader, good, False) is None, "damaged files leave nothing behind"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: str(path.relative_to(CORPUS)))
def test_files_that_found_faults(path: Path, run: Path, tmp_path: Path) -> None:
    said = try_one(READERS[path.parent.name](tmp_path, run), path.read_bytes(), True)
    assert said is None or "\n" not in said


def test_there_are_such_files() -> None:
    assert len(KEPT) > 5
    assert {path.parent.name for path in KEPT} <= set(READERS)
