import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sgenas.cli import main
from sgenas.errors import ConfigError
from sgenas.experiments import slurm
from sgenas.experiments.grid import Grid, plan

COMMAND = ("2026-11-24T10:00:00+00:00", "sgenas table1")
FAKE_PYTHON = """#!/bin/bash
echo "$@" >>{folder}/calls
if [[ " $* " == *" --place "* ]]; then
    trap 'exit 130' TERM
    echo "$OMP_NUM_THREADS" >{folder}/threads
    [ -e {folder}/quick ] && exit {code}
    for _ in {{1..200}}; do sleep 0.05; done
fi
"""


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_the_script_has_a_task_for_each_place(grid: Grid) -> None:
    path = slurm.write_script(grid, grid.places[:5], jobs=3, threads=4)
    script = path.read_text()
    assert path == grid.out / "slurm" / "table1.sh"
    assert subprocess.run(["bash", "-n", path], check=False, capture_output=True).stderr == b""
    found = directives(script)
    assert found["array"] == "0-4%3"
    assert found["cpus-per-task"] == "4"
    assert found["output"] == f"{grid.out}/slurm/%a.log"
    assert found["signal"] == "B:TERM@120"
    assert "requeue" in found
    listed = script[script.index("places=(") : script.index("\n)\n")].split()[1:]
    assert listed == [place.name for place in grid.places[:5]]
    assert (
        directives(slurm.write_script(grid, grid.places, jobs=None, threads=None).read_text())["array"]
        == f"0-{len(grid.places) - 1}"
    )


def test_a_folder_that_slurm_cannot_name_is_refused(tiny: None, tmp_path: Path) -> None:
    for name in ("with space", "per%cent", 'quo"te'):
        grid, places = plan(tmp_path / name, "smoke", (), (0,), COMMAND)
        with pytest.raises(ConfigError, match="--out must have no spaces"):
            slurm.write_script(grid, places, jobs=None, threads=None)


@pytest.fixture
def task(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.Popen[str]]:
    """task(code): the script at work as task 2 of its array, with programs that only write what they get.

    The fake sgenas ends with `code`, or where that is None runs until SIGTERM.
    """
    fake, requeue = tmp_path / "python", tmp_path / "bin" / "scontrol"
    requeue.parent.mkdir()
    requeue.write_text(f'#!/bin/bash\necho "scontrol $*" >>{tmp_path}/calls\n')
    requeue.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    path = slurm.write_script(grid, grid.places[:4], jobs=None, threads=2)

    def begin(code: int | None) -> subprocess.Popen[str]:
        fake.write_text(FAKE_PYTHON.format(folder=tmp_path, code=code))
        fake.chmod(0o755)
        if code is not None:
            (tmp_path / "quick").touch()
        environment = {
            **os.environ,
            "PATH": f"{requeue.parent}:{os.environ['PATH']}",
            "SLURM_ARRAY_TASK_ID": "2",
            "SLURM_ARRAY_JOB_ID": "77",
        }
        return subprocess.Popen(["bash", str(path)], env=environment, text=True)

    return begin


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("code", [0, 1])
def test_a_task_runs_its_place_and_writes_the_tables(
    grid: Grid, task: Callable[..., subprocess.Popen[str]], tmp_path: Path, code: int
) -> None:
    assert task(code).wait(timeout=30) == code
    assert calls(tmp_path) == [
        f"-m sgenas table1 --out {grid.out} --place {grid.places[2].name}",
        f"-m sgenas table1 --out {grid.out} --only-tables",
    ]
    assert (tmp_path / "threads").read_text() == "2\n"


def test_a_task_at_its_time_limit_stops_the_run_and_queues_again(
    grid: Grid, task: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = task(None)
    deadline = time.monotonic() + 200
    while not (tmp_path / "threads").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    # SLURM's B: signals the shell alone
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 130
    assert calls(tmp_path)[1:] == [
        "scontrol requeue 77_2",
        f"-m sgenas table1 --out {grid.out} --only-tables",
    ]


def test_submit_writes_the_script_of_what_is_missing_and_says_how(
    tiny: None, tmp_path: Path, done: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "grid"
    command = ["table1", "--preset", "smoke", "--seeds", "0", "--out", str(out), "--submit", "slurm"]
    assert main([*command, "--threads", "3"]) == 0
    assert f"sbatch --time=24:00:00 --gres=gpu:1 {out}/slurm/table1.sh" in capsys.readouterr().out
    assert directives((out / "slurm" / "table1.sh").read_text())["array"] == "0-7"
    grid, _ = plan(out, None, (), (), COMMAND)
    for place in grid.places[1:]:
        done(place, 0.5)
    assert main(command) == 0
    script = (out / "slurm" / "table1.sh").read_text()
    assert directives(script)["array"] == "0-0"
    assert grid.places[0].name in script
    assert grid.places[1].name not in script
    done(grid.places[0], 0.5)
    capsys.readouterr()
    assert main(command) == 0
    assert "nothing to submit" in capsys.readouterr().out
