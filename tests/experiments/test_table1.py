import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sgenas.errors import DataError, InvalidValueError, RunDirError
from sgenas.experiments import table1
from sgenas.experiments.formats import TABLE_FORMATS
from sgenas.experiments.grid import Grid, GridSettings, Job, load_grid
from sgenas.experiments.launchers import Local, log_path
from sgenas.experiments.outcome import is_done, read_outcome


@pytest.fixture
def one_missing(grid: Grid, done: Callable[..., None]) -> Job:
    """A grid of which one job is not done."""
    for job in grid.jobs[1:]:
        done(job, 0.5)
    return grid.jobs[0]


def test_grid_is_finished_and_its_tables_written(one_missing: Job) -> None:
    out, said = one_missing.grid, StringIO()
    found = table1.run(out, launcher=Local(1, 1), console=Console(file=said, width=200), command="the command")
    assert {status.state for status in found} == {"done"}
    assert f"{one_missing.name}: begins" in said.getvalue()
    assert f"{one_missing.name}: done, test accuracy" in said.getvalue()
    assert "16 of 16 jobs are over" in said.getvalue()
    assert "\x1b" not in said.getvalue()
    assert all((out / name).stat().st_size > 1000 for name in TABLE_FORMATS)
    assert log_path(one_missing).stat().st_size > 0
    assert (out / "table.md").read_text().count("| 2 of 2 ") == 8
    # what is done is not run again, and commands are remembered
    before = read_outcome(one_missing)
    found = table1.run(out, GridSettings(seeds=(0,)), command="again")
    assert len(found) == 8
    assert read_outcome(one_missing) == before
    assert [command for _, command in load_grid(out).plan.commands][1:] == ["the command", "again"]


def test_failed_job_is_in_the_table_and_is_tried_again(one_missing: Job) -> None:
    out = one_missing.grid
    outcome = Local(1, 1, "os:kill")  # a function that cannot take these arguments
    found = table1.run(out, launcher=outcome)
    assert [status.state for status in found].count("failed") == 1
    assert "1 of 2, 1 failed" in (out / "table.md").read_text()
    assert table1.run_job(out, one_missing.name) is not None
    assert is_done(one_missing)


def test_bad_data_is_one_error_before_anything_runs(grid: Grid, tmp_path: Path) -> None:
    before = (grid.path / "grid.json").read_text()
    for spec in ("nonsense", "parquet:/nowhere/at/all"):
        with pytest.raises((DataError, InvalidValueError)):
            table1.make_grid(grid.path, GridSettings(data=(spec,)))
    assert (grid.path / "grid.json").read_text() == before
    made = table1.make_grid(tmp_path / "new", GridSettings("smoke", seeds=(0,), methods=("darts",)))
    assert load_grid(tmp_path / "new") == made


def test_tables_of_nothing_are_written(grid: Grid) -> None:
    assert [path.name for path in table1.write_tables(grid.path)] == list(TABLE_FORMATS)
    assert not (grid.path / "runs").exists()


def test_status_says_how_far_every_job_is(
    grid: Grid, done: Callable[..., None], failed: Callable[[Job, str], None]
) -> None:
    first, second, third, fourth = grid.jobs[:4]
    done(first, 0.75)
    failed(second, "inner loss is nan")
    third.search_dir.mkdir(parents=True)
    (third.search_dir / "config.json").write_text("{}")
    rows = ({"kind": "step", "epoch": 0}, {"kind": "epoch", "epoch": 0})
    (third.search_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"ki')
    before = sorted(grid.path.rglob("*"))
    found = table1.status(grid.path)
    assert json.loads(json.dumps(found)) == found
    assert found["preset"] == "smoke"
    assert found["counts"] == {"done": 1, "failed": 1, "begun": 1, "missing": 13}
    assert [row["job"] for row in found["jobs"]] == [job.name for job in grid.jobs]
    of = {row["job"]: row for row in found["jobs"]}
    assert (of[first.name]["state"], of[first.name]["test_accuracy"]) == ("done", 0.75)
    assert (of[second.name]["state"], of[second.name]["reason"]) == ("failed", "inner loss is nan")
    begun = of[third.name]
    assert (begun["state"], begun["stage"], begun["epoch"], begun["epochs"]) == ("begun", "search", 1, 2)
    assert (of[fourth.name]["state"], of[fourth.name]["stage"]) == ("missing", None)
    lines = table1.status_text(found).splitlines()
    said = dict(line.split(maxsplit=1) for line in lines[:-1])
    assert said[first.name] == "done, test accuracy 75.00 %"
    assert said[third.name] == "search, 1 of 2 epochs"
    assert lines[-1] == "16 jobs: 1 done, 1 failed, 1 begun, 13 missing"
    assert sorted(grid.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda text: text[:-40], "."),
        (lambda text: "[]", "object"),
        (lambda text: '{"when": "today"}', "neither"),
        (lambda text: text.replace("test_accuracy", "test_bccuracy"), "test_bccuracy"),
        (lambda text: text.replace("1800.0", "[]"), "seconds"),
        (lambda text: text.replace('"figures": {', '"figures": {"x": 1,'), "'x'"),
    ],
)
def test_damaged_outcome_hides_no_other_job(
    grid: Grid, done: Callable[..., None], change: Callable[[str], str], word: str
) -> None:
    good, bad = grid.jobs[:2]
    for job in (good, bad):
        done(job, 0.75)
    path = bad.path / "outcome.json"
    path.write_text(change(path.read_text()))
    found = table1.status(grid.path)
    assert found["counts"] == {"done": 1, "failed": 1, "begun": 0, "missing": 14}
    row = found["jobs"][1]
    assert (row["job"], row["state"], row["stage"]) == (bad.name, "failed", "search")
    assert str(path) in row["reason"]
    assert re.search(word, row["reason"])
    assert "\n" not in row["reason"]
    table1.write_tables(grid.path)
    assert f"{bad.name}: failed in the search" in (grid.path / "table.md").read_text()
    assert is_done(good)
    assert not is_done(bad)


SCRIPT = """
import signal, sys
from sgenas.experiments import table1
from sgenas.experiments.launchers import Local
from rich.console import Console

if __name__ == "__main__":
    stopped = []
    signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
    found = table1.run(sys.argv[1], launcher=Local(2, 1), console=Console(), stop=lambda: bool(stopped))
    sys.exit(any(status.state != "done" for status in found))
"""


def start(path: Path, out: Path) -> subprocess.Popen[str]:
    path.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(path), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def wait_until(true: Callable[[], object], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def long_grid(tmp_path: Path) -> Grid:
    return table1.make_grid(tmp_path / "grid", GridSettings("smoke", seeds=(0,), methods=("darts",)))


@pytest.mark.slow
def test_stopped_and_then_killed_grid_is_finished_by_the_same_call(tmp_path: Path) -> None:
    grid = long_grid(tmp_path)
    first = grid.jobs[0]

    process = start(tmp_path / "script.py", grid.path)
    wait_until(lambda: list(grid.path.glob("runs/*/*/*/search/checkpoint.safetensors")))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 1, said
    assert "failed" not in said
    assert not any(is_done(job) for job in grid.jobs)

    # a killed command leaves its jobs, and they are not run twice
    process = start(tmp_path / "script.py", grid.path)
    wait_until(lambda: (first.path / "job.owner").exists())
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    with pytest.raises(RunDirError, match="in use"), first.locked():
        pass
    wait_until(lambda: all(is_done(job) for job in grid.jobs))

    process = start(tmp_path / "script.py", grid.path)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said


@pytest.mark.slow
def test_killed_job_fails_alone_and_resumes(tmp_path: Path) -> None:
    grid = long_grid(tmp_path)
    victim = grid.jobs[1]
    process = start(tmp_path / "script.py", grid.path)
    metrics = victim.search_dir / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and b'"kind": "epoch"' in metrics.read_bytes())
    os.kill(int((victim.path / "job.owner").read_text().split()[1]), signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert "SIGKILL" in said
    outcome = read_outcome(victim)
    assert outcome is not None
    assert outcome.stage == "search"
    assert is_done(grid.jobs[0])
    process = start(tmp_path / "script.py", grid.path)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"{victim.name}: resumes, search" in said
