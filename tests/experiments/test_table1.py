import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sgenas.cli import main
from sgenas.errors import RunFolderError
from sgenas.experiments import workers
from sgenas.experiments.formats import FORMATS
from sgenas.experiments.grid import Grid, Place, load_grid
from sgenas.experiments.outcome import held, is_done, read_outcome
from sgenas.experiments.table1 import Request


def table1(out: Path, *more: str) -> list[str]:
    return ["table1", "--out", str(out), *more]


@pytest.fixture
def one_missing(grid: Grid, done: Callable[..., None]) -> Place:
    """A grid of which one place is not done."""
    for place in grid.places[1:]:
        done(place, 0.5)
    return grid.places[0]


def in_this_process(monkeypatch: pytest.MonkeyPatch, *after: str) -> None:
    """Makes the workers run the tiny preset of the tests, which another process would not know."""
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import worker; worker.main()"
    monkeypatch.setattr(
        workers,
        "command_of",
        lambda place: [
            *(sys.executable, "-c", script),
            *("table1", "--out", str(place.grid), "--place", place.name),
            *after,
        ],
    )


def test_a_grid_is_finished_and_its_tables_written(
    one_missing: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_this_process(monkeypatch)
    out = one_missing.grid
    assert main(table1(out)) == 0
    said = capsys.readouterr().out
    assert f"{one_missing.name}: begins" in said
    assert f"{one_missing.name}: done, test accuracy" in said
    assert "16 of 16 runs over" in said
    assert is_done(one_missing)
    for name in FORMATS:
        assert f"  {out / name}" in said
        assert (out / name).stat().st_size > 1000
    assert "epoch 2/2" in workers.log_path(one_missing).read_text()
    data = json.loads((out / "table.json").read_text())
    assert data["rows"][0]["done"] == 2
    # what is done is not run again, and the command is remembered
    before = read_outcome(one_missing)
    assert main(table1(out, "--seeds", "0", "--jobs", "1")) == 0
    assert read_outcome(one_missing) == before
    commands = [command for _, command in load_grid(out).commands]
    assert commands[1:] == [f"sgenas table1 --out {out}", f"sgenas table1 --seeds 0 --out {out} --jobs 1"]


def test_a_failed_run_is_in_the_table_and_ends_with_1(
    one_missing: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(workers, "command_of", lambda place: [sys.executable, "-S", "-c", script])
    out = one_missing.grid
    assert main(table1(out)) == 1
    said = capsys.readouterr().out
    assert f"{one_missing.name}: FAILED in the search: the process was killed (SIGKILL" in said
    assert f"To try them again from their last checkpoints:  sgenas table1 --out {out}" in said
    assert "1 of 2, 1 failed" in (out / "table.md").read_text()
    in_this_process(monkeypatch)
    assert main(table1(out)) == 0
    assert is_done(one_missing)


def test_one_place_alone(grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
    place = grid.place("digits/darts-first-order/seed-1")
    assert main(table1(grid.out, "--place", place.name)) == 0
    assert is_done(place)
    assert "epoch 2/2" in capsys.readouterr().out
    # a cell of other settings in the way
    other = grid.place("digits/darts-first-order/seed-0")
    place.search_folder.rename(place.folder / "moved")
    other.folder.mkdir(parents=True)
    (place.folder / "moved").rename(other.search_folder)
    assert main(table1(grid.out, "--place", other.name)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"sgenas: {other.name} failed in the search: ")
    assert error.count("\n") == 1


def test_only_tables_runs_nothing(grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(table1(grid.out, "--only-tables")) == 0
    assert (grid.out / "table.html").exists()
    assert not (grid.out / "runs").exists()
    assert str(grid.out / "table.csv") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "0,x"], "--seeds must be whole numbers with commas between, got '0,x'"),
        (["--seeds", "0,0"], "--seeds must be different, got 0,0"),
        (["--seeds", "-1"], "--seeds must be from 0 to"),
        (["--jobs", "0"], "--jobs must be >= 1, got 0"),
        (["--threads", "-2"], "--threads must be >= 1, got -2"),
        (["--preset", "small"], "--preset must be smoke as in"),
        (["--data", "nonsense"], "data set must be one of"),
        (["--data", "parquet:/nowhere/at/all"], "/nowhere/at/all does not exist"),
        (["--ray", "a", "b"], "--ray must be followed by one address or none, got a b"),
        (["--ray", "a:1", "--jobs", "2"], "--jobs must not be given with --ray a:1"),
        (["--place", "x", "--only-tables"], "--place must not stand beside --only-tables"),
        (["--place", "x", "--ray"], "--ray must not stand beside --place"),
        (["--place", "x"], "--place must be one of the 16"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    grid: Grid, fails: Callable[..., str], flags: list[str], message: str
) -> None:
    before = (grid.out / "grid.json").read_text()
    assert message in fails(*table1(grid.out, *flags))
    assert (grid.out / "grid.json").read_text() == before


def test_a_new_grid_needs_a_preset(tmp_path: Path, fails: Callable[..., str]) -> None:
    assert "--preset must be given" in fails(*table1(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert "--out" in fails("table1", "--preset", "smoke")


def test_ray_is_asked_for_by_name_where_it_is_missing(
    grid: Grid, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert fails(*table1(grid.out, "--ray")) == (
        "sgenas: --ray needs Ray, which is not installed: pip install 'sgenas[ray]'"
    )


def test_the_command_line_is_told_as_it_can_be_typed() -> None:
    request = Request(Path("a b"), "small", ("cifar10=parquet:/x y",), (0, 1), 2, 1, "")
    assert request.command() == (
        "sgenas table1 --preset small --seeds 0,1 --out 'a b' --data 'cifar10=parquet:/x y' --jobs 2"
        " --threads 1 --ray"
    )
    assert Request(Path("o"), ray="h:1").command() == "sgenas table1 --out o --ray h:1"


def smoke(out: Path, *, jobs: int) -> list[str]:
    flags = ("--preset", "smoke", "--seeds", "0", "--jobs", str(jobs))
    return [sys.executable, "-m", "sgenas", *table1(out, *flags)]


def wait_until(true: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_stops_the_runs_and_the_same_command_finishes_smoke(tmp_path: Path) -> None:
    out = tmp_path / "grid"
    process = subprocess.Popen(
        smoke(out, jobs=2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: list(out.glob("runs/*/*/*/search/checkpoint.pt")))
    place = load_grid(out).places[0]
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert f"Go on with:  sgenas table1 --out {out}" in said
    assert "FAILED" not in said
    assert (place.search_folder / "checkpoint.pt").exists()
    finished = subprocess.run(smoke(out, jobs=2), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout
    assert all(is_done(place) for place in load_grid(out).places)


@pytest.mark.slow
def test_a_killed_command_leaves_its_runs_and_they_are_not_run_twice(tmp_path: Path) -> None:
    out = tmp_path / "grid"
    process = subprocess.Popen(smoke(out, jobs=1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(out.glob("runs/*/*/*/search/config.json")))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    place = load_grid(out).places[0]
    with pytest.raises(RunFolderError, match="must be used by one process"), held(place):
        pass
    wait_until(lambda: read_outcome(place))
    assert is_done(place)
