"""Every module of the zoo with every estimator: right, or refused in one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from same_runs import assert_same_runs
from stopping import stop_after
from zoo_check import CASES, outcome
from zoo_modules import ENTRIES, Entry
from zoo_search import ESTIMATORS, search
from zoo_table import PAGE, names_of

from sgenas.errors import SgenasError

FAST_ESTIMATORS = ("unrolled",)
"""Of the modules that are not FULLY tested unless tests may be slow."""
FULLY = ("dropout", "a parameter also in a list", "weight normalization", "checkpointing", "complex linear")
RESUMED = ("checkpointing with dropout", "complex linear")
KILLED = ("linear", "dropout", "sparse embedding", "checkpointing with dropout", "blocks skipped by torch.rand")
SLOW = pytest.mark.slow


def cases(estimators: tuple[str, ...]) -> list[object]:
    """(module, estimator) of all modules; slow unless chosen."""
    found = []
    for name, entry in ENTRIES.items():
        for estimator in estimators:
            fast = not entry.slow and (estimator in FAST_ESTIMATORS or name in FULLY)
            found.append(pytest.param(entry, estimator, id=f"{name}-{estimator}", marks=() if fast else SLOW))
    return found


def require_package(entry: Entry) -> None:
    if entry.missing:
        pytest.skip(f"needs {entry.needs}")


def assert_one_line(error: SgenasError) -> None:
    assert "\n" not in str(error)


@pytest.mark.parametrize(("entry", "estimator"), cases(tuple(CASES)))
def test_gradient_equals_differences_of_plain_training_or_is_refused(entry: Entry, estimator: str) -> None:
    require_package(entry)
    found = outcome(entry, estimator)
    assert found.kind in ("works", "refused"), f"{found.kind}: {found.detail}"


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "entry", [pytest.param(entry, id=name, marks=() if name in RESUMED else SLOW) for name, entry in ENTRIES.items()]
)
def test_stopped_search_resumes_bit_for_bit_or_is_refused(entry: Entry, estimator: str, tmp_path: Path) -> None:
    require_package(entry)
    try:
        whole = search(entry, estimator, tmp_path / "whole")
    except SgenasError as error:
        assert_one_line(error)
        return
    assert not search(entry, estimator, tmp_path / "parts", stop_after(2)).finished
    assert search(entry, estimator, tmp_path / "parts").architecture == whole.architecture
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_killed_search_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    search(ENTRIES[name], "sge", tmp_path / "whole")
    support = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parent)]
    killed = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("zoo_search.py")), name, "sge", str(tmp_path / "parts")],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(support)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    search(ENTRIES[name], "sge", tmp_path / "parts")
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_page_has_every_module_and_nothing_wrong() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert names_of(text) == list(ENTRIES)
    assert "| wrong | 0 |\n| raw error | 0 |\n" in text
