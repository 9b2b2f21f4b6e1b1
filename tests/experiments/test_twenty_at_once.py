"""20 places of a table at once, each a process, one of them killed; `pytest -m slow -s` says what it took."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sgenas.experiments.grid import Place, load_grid
from sgenas.experiments.outcome import is_done, read_outcome

WORKER = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import worker; worker.main()"
JOBS = 20


def kill_in_its_search(places: tuple[Place, ...]) -> Place | None:
    """Kills the process of a place that has a checkpoint and is still searching, if there is one now."""
    for place in places:
        if (place.search_folder / "checkpoint.pt").exists() and not place.training_folder.exists():
            process = int((place.folder / "lock").read_text().split()[1])
            # it must not come to its end meanwhile
            os.kill(process, signal.SIGSTOP)
            if not place.training_folder.exists():
                os.kill(process, signal.SIGKILL)
                return place
            os.kill(process, signal.SIGCONT)
    return None


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_places_at_once_and_one_is_killed(tiny: None, tmp_path: Path) -> None:
    out, log = tmp_path / "grid", tmp_path / "said.txt"
    command = [sys.executable, "-c", WORKER, "table1", "--preset", "smoke", "--seeds", "0,1,2"]
    command += ["--jobs", str(JOBS), "--out", str(out)]
    most, memory, killed, start = 0, 0, None, time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        resident = []
        for child in parent.children() if parent.is_running() else []:
            try:
                resident.append(child.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        most, memory = max(most, len(resident)), max(memory, sum(resident))
        if killed is None and most == JOBS:
            killed = kill_in_its_search(load_grid(out).places)
        time.sleep(0.05)
    said = log.read_text()
    sys.stdout.write(
        f"\nat most {most} processes with {memory / 2**30:.1f} GiB resident (libraries counted in each);"
        f" {time.monotonic() - start:.0f} s\n"
    )
    assert most == JOBS, said
    assert killed is not None, said
    assert process.returncode == 1, said
    # all began before the first was over
    assert said.split(" of 24 runs over)")[0].count(": begins") == JOBS
    places = load_grid(out).places
    before = {place: read_outcome(place) for place in places}
    assert len(before) == 24
    failed = before.pop(killed)
    assert failed is not None
    assert (failed.state, failed.stage) == ("failed", "search")
    assert f"{killed.name}: FAILED in the search: the process was killed (SIGKILL" in said
    assert "24 of 24 runs over" in said
    for outcome in before.values():
        assert outcome is not None
        assert outcome.figures is not None, outcome.reason
        threads = outcome.figures["search"]["environment"]["threads"]
        assert threads == max(1, len(os.sched_getaffinity(0)) // JOBS)

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout
    assert f"{killed.name}: done, test accuracy" in again.stdout
    assert is_done(killed)
    assert {place: read_outcome(place) for place in before} == before
