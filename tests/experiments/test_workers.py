import signal
import sys
import time
from collections.abc import Callable, Sequence

import pytest

from sgenas.experiments import workers
from sgenas.experiments.grid import Grid, Place
from sgenas.experiments.outcome import Outcome, held, read_outcome
from sgenas.experiments.workers import Shares, run_local, shares

NEVER = Shares(2, 1)
SLEEPS = "import time; time.sleep(60)"
STOPS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
print("ready", flush=True)
time.sleep(60)
"""


class Log:
    """A Watcher that remembers; `stop` says yes once `enough` says so."""

    def __init__(self, enough: Callable[["Log"], bool] = lambda log: False) -> None:
        self.begun: list[str] = []
        self.outcomes: dict[str, Outcome | None] = {}
        self.most = 0
        self._enough = enough

    def started(self, place: Place) -> None:
        self.begun.append(place.name)
        self.most = max(self.most, len(self.begun) - len(self.outcomes))

    def ended(self, place: Place, outcome: Outcome | None) -> None:
        self.outcomes[place.name] = outcome

    def tick(self) -> None: ...

    def stop(self) -> bool:
        return self._enough(self)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """programs(*texts): what the processes run instead of sgenas, place by place."""
    monkeypatch.setattr(workers, "PAUSE", 0.01)

    def use(*texts: str) -> None:
        rest = iter(texts)
        monkeypatch.setattr(workers, "command_of", lambda place: [sys.executable, "-S", "-c", next(rest)])

    return use


def run(places: Sequence[Place], log: Log, division: Shares = NEVER) -> Log:
    run_local(places, division, log, log.stop)
    return log


def test_as_many_at_a_time_as_are_allowed(grid: Grid, programs: Callable[..., None]) -> None:
    programs(*["pass"] * 5)
    log = run(grid.places[:5], Log())
    assert log.begun == [place.name for place in grid.places[:5]]
    assert log.most == 2
    assert set(log.outcomes) == set(log.begun)


def test_each_finds_its_share_of_the_machine(grid: Grid, programs: Callable[..., None]) -> None:
    programs(*["import os; print(os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES'])"] * 2)
    log = run(grid.places[:2], Log(), Shares(2, 3, ("4", "7")))
    assert {outcome.reason for outcome in log.outcomes.values() if outcome} == {"3 4", "3 7"}


def test_one_that_dies_is_a_failure_and_the_others_go_on(grid: Grid, programs: Callable[..., None]) -> None:
    killed, broken, silent = grid.places[:3]
    programs(
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import sys; print('first'); sys.exit('the last word')",
        "import sys; sys.exit(3)",
    )
    log = run((killed, broken, silent), Log())
    reasons = {name: outcome.reason for name, outcome in log.outcomes.items() if outcome}
    assert reasons == {
        killed.name: "the process was killed (SIGKILL, as the system does where memory runs out)",
        broken.name: "the last word",
        silent.name: "the process ended with exit code 3",
    }
    assert read_outcome(killed) == log.outcomes[killed.name]


def test_a_place_that_another_process_works_at_gets_no_outcome(
    grid: Grid, programs: Callable[..., None]
) -> None:
    place = grid.places[0]
    programs("import sys; sys.exit('is being run by another')")
    with held(place):
        log = run((place,), Log())
    outcome = log.outcomes[place.name]
    assert outcome is not None
    assert outcome.reason == "is being run by another"
    assert read_outcome(place) is None


def test_stopping_asks_those_at_work_and_begins_no_other(grid: Grid, programs: Callable[..., None]) -> None:
    programs(STOPS, STOPS)

    def ready(log: Log) -> bool:
        said = [workers.log_path(place) for place in grid.places[:2]]
        return all(path.exists() and "ready" in path.read_text() for path in said)

    log = run(grid.places[:4], Log(ready))
    assert log.begun == [place.name for place in grid.places[:2]]
    assert list(log.outcomes.values()) == [None, None]


def test_the_processes_end_with_the_call_however_it_ends(
    grid: Grid, programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(SLEEPS)
    made: list[workers._Process] = []
    begin = workers._Process.__init__

    def remember(self: workers._Process, *arguments: object) -> None:
        begin(self, *arguments)
        made.append(self)

    monkeypatch.setattr(workers._Process, "__init__", remember)

    def interrupted(log: Log) -> bool:
        if log.begun:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run(grid.places[:1], Log(interrupted))
    deadline = time.monotonic() + 10
    while (code := made[0].code()) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert code == -signal.SIGKILL


def test_how_the_machine_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(workers.torch.cuda, "is_available", lambda: False)
    assert shares(None, None, {}) == Shares(4, 2)
    assert shares(16, None, {}) == Shares(16, 1)
    assert shares(2, 3, {}) == Shares(2, 3)
    monkeypatch.setattr(workers.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: 2)
    assert shares(None, None, {}) == Shares(2, 4, ("0", "1"))
    divided = shares(3, None, {"CUDA_VISIBLE_DEVICES": "5, GPU-ab"})
    assert divided == Shares(3, 2, ("5", "GPU-ab"))
    assert [divided.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["5", "GPU-ab", "5"]
