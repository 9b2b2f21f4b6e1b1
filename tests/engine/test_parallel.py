"""Searches on several processes, which torchrun starts on this machine: they equal those on one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from sgenas.engine import Processes, SearchConfig, resume_search, run_search
from sgenas.engine.parallel import launched
from sgenas.errors import ConfigError, ProcessError

Make = Callable[..., SearchConfig]
WORKER = Path(__file__).with_name("parallel_worker.py")
ONE_BY_ONE = {"computation": "streamed"}
"""Directions that are followed one by one do not notice in whose company they are."""


class Torchrun:
    """Starts commands on several processes, and leaves none behind."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def start(self, processes: int, *command: str) -> subprocess.Popen[str]:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
        started = subprocess.Popen(
            [sys.executable, *launcher, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self._started.append(started)
        return started

    def done(self, processes: int, *command: str) -> str:
        """stdout of a command that succeeds."""
        started = self.start(processes, *command)
        out, err = started.communicate(timeout=240)
        assert started.returncode == 0, err
        return out

    def ranks(self, started: subprocess.Popen[str]) -> dict[int, psutil.Process]:
        children = psutil.Process(started.pid).children()
        return {int(child.environ()["RANK"]): child for child in children}

    def end(self) -> None:
        for started in self._started:
            if started.poll() is None:
                for process in (*psutil.Process(started.pid).children(recursive=True), started):
                    process.kill()
                started.communicate()


@pytest.fixture
def torchrun() -> Iterator[Torchrun]:
    made = Torchrun()
    yield made
    made.end()


def write(config: SearchConfig, path: Path) -> str:
    """A config.json as a run folder has it."""
    path.mkdir(parents=True, exist_ok=True)
    data = {"format": "sgenas-run", "version": 1, "kind": "search", "config": config.to_dict()}
    (path / "config.json").write_text(json.dumps(data))
    return str(path / "config.json")


def one_line(err: str) -> list[str]:
    """What the processes themselves say on stderr; torchrun says more."""
    return [line for line in err.splitlines() if line.startswith("sgenas: ")]


@pytest.fixture(scope="module")
def lasting(small: Make) -> SearchConfig:
    """A search that takes long enough to be interrupted."""
    return small(epochs=8, checkpoint_every=1, estimator={"directions": 2, **ONE_BY_ONE})


@pytest.fixture(scope="module")
def uninterrupted(lasting: SearchConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "uninterrupted"
    run_search(lasting, path)
    return path


# -- one process ---------------------------------------------------------------------------------------------


def test_shards_of_a_batch_on_one_process(small: Make, tmp_path: Path, assert_same_runs: Any) -> None:
    config = small(epochs=2, data={"data_parallel": 2}, estimator={"directions": 2, **ONE_BY_ONE})
    whole = run_search(config, tmp_path / "whole")
    asked = iter(range(1, 100))
    assert not run_search(config, tmp_path / "stopped", stop=lambda: next(asked) == 4).finished
    resume_search(tmp_path / "stopped")
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")
    other = run_search(small(epochs=1, estimator={"directions": 2, **ONE_BY_ONE}), tmp_path / "other")
    assert whole.epochs[0]["inner_loss"] != other.epochs[0]["inner_loss"]
    np.testing.assert_allclose(whole.epochs[0]["inner_loss"], other.epochs[0]["inner_loss"], rtol=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"data_parallel": 3}}, "--batch-size must be a multiple of --data-parallel 3, got 16"),
        ({"data": {"data_parallel": 0}}, "--data-parallel must be >= 1, got 0"),
        ({"data": {"data_parallel": 16}}, "--data-parallel must be at most half of --batch-size, 8, got 16"),
        (
            {"data": {"data_parallel": 4}, "estimator": {"batch_fraction": 0.4}},
            "--batch-fraction must be such that its images are a multiple of --data-parallel 4, .* got 7",
        ),
    ],
)
def test_batches_that_cannot_be_cut(small: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_one_process_is_not_launched(monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    assert not launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched()
    assert "torchrun must start search or resume, got size" in fails("size", "--genotype", "darts-v2")
    monkeypatch.delenv("MASTER_PORT")
    assert not launched()
    message = "--rank-timeout only applies under torchrun, got 5.0 without it"
    assert message in fails("search", "--rank-timeout", "5", "--data", "digits")
    assert "--rank-timeout must be > 0 and finite, got 0.0" in fails("resume", "none", "--rank-timeout", "0")


def test_the_gpu_of_a_process_is_the_one_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr("sgenas.engine.parts.find_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    assert Processes(5, 6, local_rank=1, here=2).device("auto") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    with pytest.raises(
        ConfigError, match="--nproc-per-node must be at most 2, the GPUs of this machine, got 3"
    ):
        Processes(5, 6, local_rank=2, here=3).device("cuda")
    with pytest.raises(
        ConfigError, match="--device must be auto, cpu or cuda on 6 processes .* got 'cuda:1'"
    ):
        Processes(5, 6, local_rank=1, here=2).device("cuda:1")


# -- several processes ---------------------------------------------------------------------------------------


def test_a_search_under_torchrun_equals_that_of_one_process(
    small: Make, tmp_path: Path, torchrun: Torchrun, assert_same_runs: Any
) -> None:
    """By the command, with three directions for two processes."""
    config = small(epochs=2, estimator={"directions": 3, "control_variate": "both", **ONE_BY_ONE})
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run_search(config, alone)
    out = torchrun.done(2, "-m", "sgenas", "search", "--config", str(alone), "--out", str(shared))
    assert_same_runs(alone, shared)
    assert out.count("cpu; 2 processes: directions shared out over 2, batches over 1") == 1
    assert out.count("epoch 2/2") == 1
    assert (shared / "report.html").exists()
    assert json.loads((shared / "config.json").read_text())["environment"]["processes"] == 2


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "loop": (2, {"estimator": {"directions": 3, "computation": "loop"}}),
    "separate": (
        2,
        {
            "estimator": {"directions": 4, "inner_steps": 2, "control_variate": "memory", **ONE_BY_ONE},
            "weights": {"weights": "separate"},
            "data": {"batch_size": 8},
        },
    ),
    "directional": (
        2,
        {"estimator": {"directions": 3, "computation": "directional"}, "weights": {"grad_clip": None}},
    ),
    "difference": (
        2,
        {"estimator": {"directions": 3, "computation": "difference"}, "weights": {"grad_clip": None}},
    ),
    "antithetic": (2, {"estimator": {"directions": 2, "direction_kind": "antithetic", **ONE_BY_ONE}}),
    "orthogonal": (2, {"estimator": {"directions": 5, "direction_kind": "orthogonal", **ONE_BY_ONE}}),
    "fraction": (2, {"estimator": {"directions": 3, "batch_fraction": 0.5, **ONE_BY_ONE}}),
    "watched": (
        2,
        {
            "estimator": {"directions": 2, **ONE_BY_ONE},
            "watch": {"eigenvalue_every": 1},
            "alphas": {"warmup_epochs": 1},
        },
    ),
    "shards": (2, {"estimator": {"directions": 2, **ONE_BY_ONE}, "data": {"data_parallel": 2}}),
    "weighed shards": (
        2,
        {
            "estimator": {"directions": 2, **ONE_BY_ONE},
            # two classes with an image more than the others
            "data": {"data_parallel": 2, "train_images": 122, "class_weights": "balanced"},
        },
    ),
    "first-order shards": (
        2,
        {"estimator": {"estimator": "first-order", "directions": 10}, "data": {"data_parallel": 2}},
    ),
    "second-order shards": (
        2,
        {"estimator": {"estimator": "second-order", "directions": 10}, "data": {"data_parallel": 2}},
    ),
    "more processes than directions": (3, {"estimator": {"directions": 2, **ONE_BY_ONE}}),
    "shards without a process of their own": (
        3,
        {"estimator": {"directions": 4, **ONE_BY_ONE}, "data": {"data_parallel": 2}},
    ),
    "both axes": (4, {"estimator": {"directions": 3, **ONE_BY_ONE}, "data": {"data_parallel": 2}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_kind_of_search_equals_that_of_one_process(
    count: int, small: Make, tmp_path: Path, torchrun: Torchrun, assert_same_runs: Any
) -> None:
    cases = {name: small(epochs=2, **changes) for name, (needs, changes) in CASES.items() if needs == count}
    runs = [
        {"config": config.to_dict(), "out": str(tmp_path / "shared" / name), "stop": None, "resume": False}
        for name, config in cases.items()
    ]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    torchrun.done(count, str(WORKER), str(tmp_path / "runs.json"))
    for name, config in cases.items():
        run_search(config, tmp_path / "alone" / name)
        assert_same_runs(tmp_path / "alone" / name, tmp_path / "shared" / name)


@pytest.mark.slow
def test_side_by_side_equals_up_to_rounding(small: Make, tmp_path: Path, torchrun: Torchrun) -> None:
    """Five directions together are other numbers to add up than two and three of them."""
    config = small(epochs=1, estimator={"directions": 5, "computation": "vectorised"}, log_every=1)
    run_search(config, tmp_path / "alone")
    run = {"config": config.to_dict(), "out": str(tmp_path / "shared"), "stop": None, "resume": False}
    (tmp_path / "runs.json").write_text(json.dumps([run]))
    torchrun.done(2, str(WORKER), str(tmp_path / "runs.json"))
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "shared")
    )
    for first, second in zip(ours, theirs, strict=True):
        for name in ("inner_loss", "outer_loss", "direct_norm", "indirect_norm"):
            if name in first:
                assert second[name] == pytest.approx(first[name], rel=0.02), name


@pytest.mark.slow
def test_a_stop_on_one_process_stops_all_and_any_number_goes_on(
    small: Make, tmp_path: Path, torchrun: Torchrun, assert_same_runs: Any
) -> None:
    changes = {"estimator": {"directions": 3, "control_variate": "memory", **ONE_BY_ONE}}
    config = small(data={"data_parallel": 2}, **changes)
    run_search(config, tmp_path / "alone")
    path = tmp_path / "travelling"
    run = {"config": config.to_dict(), "out": str(path), "stop": 2, "resume": False}
    (tmp_path / "runs.json").write_text(json.dumps([run]))
    torchrun.done(2, str(WORKER), str(tmp_path / "runs.json"))
    assert torch.load(path / "checkpoint.pt", weights_only=True)["step"] == 2
    run |= {"resume": True}
    (tmp_path / "runs.json").write_text(json.dumps([run]))
    torchrun.done(3, str(WORKER), str(tmp_path / "runs.json"))
    assert torch.load(path / "checkpoint.pt", weights_only=True)["step"] == 4
    assert resume_search(path).finished
    assert_same_runs(tmp_path / "alone", path)


@pytest.mark.slow
def test_ctrl_c_is_handed_on_and_leaves_a_checkpoint(
    uninterrupted: Path, tmp_path: Path, torchrun: Torchrun, assert_same_runs: Any, wait_for_rows: Any
) -> None:
    path = tmp_path / "stopped"
    command = ("search", "--config", str(uninterrupted), "--out", str(path))
    started = torchrun.start(2, "-m", "sgenas", *command)
    wait_for_rows(path, 5, started)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=120)
    assert started.returncode != 0, out
    assert err.count("stopping after this step") == 1
    assert f"sgenas resume {path}" in out
    assert not one_line(err)
    resume_search(path)
    assert_same_runs(uninterrupted, path)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_search_on_all(
    victim: int,
    uninterrupted: Path,
    tmp_path: Path,
    torchrun: Torchrun,
    assert_same_runs: Any,
    wait_for_rows: Any,
) -> None:
    path = tmp_path / "killed"
    command = ("search", "--config", str(uninterrupted), "--out", str(path))
    started = torchrun.start(2, "-m", "sgenas", *command)
    wait_for_rows(path, 7, started)
    torchrun.ranks(started)[victim].kill()
    _, err = started.communicate(timeout=120)
    assert started.returncode != 0
    (line,) = one_line(err)
    assert f"rank {1 - victim}: another process of the search has ended" in line
    assert str(path / "checkpoint.pt") in line
    assert f"`sgenas resume {path}`" in line
    torchrun.done(3, "-m", "sgenas", "resume", str(path))
    assert_same_runs(uninterrupted, path)


@pytest.mark.slow
def test_a_process_that_does_not_answer_is_given_up(
    small: Make, tmp_path: Path, torchrun: Torchrun, wait_for_rows: Any
) -> None:
    config = small(epochs=100, estimator={"directions": 2, **ONE_BY_ONE})
    command = ("--config", write(config, tmp_path / "settings"), "--rank-timeout", "15")
    path = tmp_path / "stuck"
    started = torchrun.start(2, "-m", "sgenas", "search", *command, "--out", str(path))
    wait_for_rows(path, 5, started)
    torchrun.ranks(started)[1].suspend()
    # torchrun gives the one that hangs half a minute before it kills it
    _, err = started.communicate(timeout=100)
    assert started.returncode != 0
    assert any("rank 0: another process of the search" in line for line in one_line(err))


@pytest.mark.slow
def test_a_diverging_search_says_so_once(small: Make, tmp_path: Path, torchrun: Torchrun) -> None:
    config = small(weights={"lr": 1e30, "grad_clip": None})
    command = ("search", "--config", write(config, tmp_path / "settings"), "--out", str(tmp_path / "run"))
    started = torchrun.start(2, "-m", "sgenas", *command)
    _, err = started.communicate(timeout=120)
    assert started.returncode != 0
    (line,) = one_line(err)
    assert "the search diverged" in line


@pytest.mark.slow
def test_bad_input_is_one_line_on_several_processes_too(
    small: Make, tmp_path: Path, torchrun: Torchrun
) -> None:
    first_order = small(estimator={"estimator": "first-order", "directions": 10})
    settings = write(first_order, tmp_path / "settings")
    held = tmp_path / "held"
    run_search(small(epochs=1), held)
    for command, message in (
        (("search", "--config", settings), "--data-parallel must be a multiple of the 2 processes with"),
        (("search", "--data", "digits", "--batch-size", "5000"), "--batch-size must be at most the"),
        (("search", "--directions", "0"), "--directions must be >= 1, got 0"),
        (("search", "--config", str(held), "--out", str(held)), "already holds a run"),
        (("resume", str(tmp_path / "none")), "does not exist"),
    ):
        out = () if "--out" in command or command[0] == "resume" else ("--out", str(tmp_path / "run"))
        started = torchrun.start(2, "-m", "sgenas", *command, *out)
        _, err = started.communicate(timeout=120)
        assert started.returncode != 0
        (line,) = one_line(err)
        assert message in line
        assert not (tmp_path / "run").exists()


DIFFERING = """
import sys
import torch
from sgenas.engine import SearchConfig, joined
from sgenas.engine.search import Search
from sgenas.engine.run_folder import read_config
from sgenas.errors import ProcessError
from sgenas import run_search

step = Search._take_step

def disturbed(self):
    found = step(self)
    if self.processes.rank == 1 and self.step == 5:
        for alpha in self.alphas.values():
            alpha.mul_(1 + 1e-6)
    return found

Search._take_step = disturbed
with joined(60) as processes:
    try:
        run_search(read_config(sys.argv[1]), sys.argv[2], processes=processes)
    except ProcessError as error:
        sys.stdout.write(f"{processes.rank}: {error}\\n")
"""


@pytest.mark.slow
def test_processes_that_come_to_other_numbers_are_found_out(
    small: Make, tmp_path: Path, torchrun: Torchrun
) -> None:
    script = tmp_path / "differing.py"
    script.write_text(DIFFERING)
    settings = write(small(estimator={"directions": 2, **ONE_BY_ONE}), tmp_path / "settings")
    out = torchrun.done(2, str(script), settings, str(tmp_path / "run"))
    lines = sorted(line for line in out.splitlines() if "all processes must have" in line)
    assert [line[0] for line in lines] == ["0", "1"]
    assert "the same alphas after epoch 2, but rank 1 has another" in lines[0]
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["epoch"] <= 1


FAILING = """
import sys
from sgenas.engine import joined
from sgenas.errors import DataError, SgenasError

with joined(60) as processes:
    made = processes.build(lambda: processes.rank)
    assert made == processes.rank

    def make():
        if processes.rank == 1:
            raise DataError("no such images here")

    try:
        processes.build(make)
    except SgenasError as error:
        sys.stdout.write(f"{processes.rank} {type(error).__name__} {error}\\n")
    assert processes.any(processes.rank == 2)
    assert not processes.any(False)
    layout = processes.layout(1)
    assert (layout.groups, layout.width, layout.shards) == (3, 1, None)
"""


@pytest.mark.slow
def test_what_fails_on_one_is_raised_on_all(tmp_path: Path, torchrun: Torchrun) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    out = torchrun.done(3, str(script))
    assert sorted(out.splitlines()) == [
        "0 ConfigError rank 1: no such images here",
        "1 DataError no such images here",
        "2 ConfigError rank 1: no such images here",
    ]


def test_differences_are_found_without_a_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprint of two states: equal ones agree, one bit more and they do not."""
    sent: list[str] = []
    weights = {"w": torch.arange(6, dtype=torch.float32).reshape(2, 3)}
    other = {"w": weights["w"].clone()}
    other["w"][1, 2] = torch.nextafter(other["w"][1, 2], torch.tensor(9.0))
    here = Processes(0, 2)
    monkeypatch.setattr(Processes, "_texts", lambda self, mine: sent.append(mine) or [mine, *sent[:1]])
    here.require_same({"step": 3, "inner_weights": weights}, "now")
    here.require_same({"step": 3, "inner_weights": {"w": weights["w"].clone()}}, "now")
    message = "all processes must have the same inner weights now, but rank 1 has another"
    with pytest.raises(ProcessError, match=message):
        here.require_same({"step": 3, "inner_weights": other}, "now")
