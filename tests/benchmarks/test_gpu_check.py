"""The GPU check on a CPU, and as far as it goes on the pretended GPU."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_check
import pytest
import torch
from gpu_parts import numbers, speed
from gpu_parts.check import FAILED, NOT_RUN, OK, SLOW, VERDICTS, Check, Part, Verdict
from gpu_parts.supervise import supervise
from pretended_gpu import Machine, gpu_machine

NAMES = [part.name for part in gpu_check.PARTS]
Main = Callable[..., tuple[int, str, dict[str, Any]]]


@pytest.fixture
def check_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Runs the command in this process; returns its exit code, what it prints, and the JSON file."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def run(*arguments: str) -> tuple[int, str, dict[str, Any]]:
        out = tmp_path / "found" / "check.json"
        code = gpu_check.main(["--device", "cpu", "--here", "--out", str(out), *arguments])
        return code, capsys.readouterr().out, json.loads(out.read_text())

    return run


def verdicts(check: Check, name: str) -> list[Verdict]:
    """The outcomes of one part."""
    (part,) = (part for part in gpu_check.PARTS if part.name == name)
    assert check.run(part)
    return check.verdicts


# -- the command ----------------------------------------------------------------------------------------------


def test_command_prints_a_line_per_check_and_writes_json_and_page(check_here: Main, tmp_path: Path) -> None:
    code, said, data = check_here("--parts", "machine", "streams", "precision", "processes")
    assert code == 0
    lines = said.splitlines()
    assert len(data["verdicts"]) == len([line for line in lines if line.startswith(VERDICTS)]) > 8
    assert any(line.startswith("ok      streams: directions") for line in lines)
    assert data["summary"] == {OK: len(data["verdicts"]), FAILED: 0, SLOW: 0, NOT_RUN: 0}
    assert {"date", "machine", "versions", "tiny", "minutes", "seconds", "summary", "verdicts"} == set(data)
    assert all(set(row) == {"part", "name", "verdict", "note", "figures"} for row in data["verdicts"])
    errors = {row["name"]: row["figures"]["error"] for row in data["verdicts"] if "error" in row["figures"]}
    assert 0 < errors["float32 with precision ieee"] < 1e-5
    page = (tmp_path / "found" / "check.md").read_text()
    assert "| ok | directions |" in page


def test_failed_check_says_so_and_sets_the_exit_code(check_here: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "CONVOLUTIONS", 1e-12)
    code, said, data = check_here("--parts", "precision")
    assert code == 1
    assert [row["verdict"] for row in data["verdicts"]] == [FAILED, OK, OK]
    assert said.startswith("FAILED  precision: float32 with precision ieee")


def test_part_that_raises_fails_and_the_next_one_runs(check_here: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(check: Check) -> None:
        check.report("before")
        raise RuntimeError("no kernel image\nis available")

    parts = (Part("machine", "Breaks", 1, broken), Part("streams", "Works", 1, lambda check: check.report("after")))
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    code, said, data = check_here()
    assert code == 1
    assert [(row["name"], row["verdict"]) for row in data["verdicts"]] == [
        *(("before", OK), ("Breaks", FAILED), ("after", OK)),
    ]
    assert "RuntimeError: no kernel image" in said


def test_budget_of_zero_minutes_runs_nothing(check_here: Main) -> None:
    code, said, data = check_here("--minutes", "0")
    assert code == 0
    assert [row["part"] for row in data["verdicts"]] == NAMES
    assert {row["verdict"] for row in data["verdicts"]} == {NOT_RUN}
    assert said.count("not run ") >= len(NAMES)


def test_missed_target_is_slow_and_no_failure(check_here: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part("machine", "Slow", 1, lambda check: check.target("seconds", False, seconds=2.0))
    monkeypatch.setattr(gpu_check, "PARTS", (part,))
    code, said, data = check_here()
    assert code == 0
    assert data["summary"][SLOW] == 1
    assert said.startswith("slow    machine: seconds  (seconds 2)")


@pytest.mark.parametrize("device", ["mps", "xpu", "banana"])
def test_other_devices_are_refused_in_one_line(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--device", device]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_part_that_does_not_fit_the_budget_at_full_size_is_not_run() -> None:
    check = Check(torch.device("cpu"), tiny=False, until=time.time() + 60)
    ran: list[str] = []
    for seconds in (90.0, 30.0):
        check.run(Part("name", "title", seconds, lambda check, seconds=seconds: ran.append(str(seconds))))
    assert ran == ["30.0"]
    assert [verdict.verdict for verdict in check.verdicts] == [NOT_RUN]


# -- processes that end ---------------------------------------------------------------------------------------

WORKER = """
import json, os, signal, sys, time
file = open(sys.argv[1], "a")
def tell(**event):
    print(json.dumps(event), file=file, flush=True)
for name in sys.argv[2:]:
    tell(begin=name, limit=1.0 if name == "hangs" else 60)
    if name == "crashes":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hangs":
        time.sleep(60)
    tell(verdict=dict(part=name, name=name, verdict="ok", note="", figures={}))
    tell(end=name)
    if name == "loses":
        sys.exit(3)
"""


def test_parts_go_on_in_a_new_process_after_one_that_ends_hangs_or_loses_its_device() -> None:
    names = ("first", "crashes", "second", "hangs", "loses", "third")
    parts = [Part(name, f"title of {name}", 1, lambda check: None) for name in names]
    started: list[list[str]] = []
    told: list[Verdict] = []

    def command(events: Path, left: list[str]) -> list[str]:
        started.append(left)
        return [sys.executable, "-c", WORKER, str(events), *left]

    supervise(parts, command, told.append)
    assert [(each.part, each.verdict) for each in told] == [
        *(("first", OK), ("crashes", FAILED), ("second", OK), ("hangs", FAILED), ("loses", OK), ("third", OK)),
    ]
    assert [left[0] for left in started] == ["first", "second", "loses", "third"]
    assert str(-signal.SIGKILL) in told[1].note
    assert "hangs" in told[3].note


def test_process_that_cannot_start_fails_its_parts_and_ends() -> None:
    parts = [Part(name, name, 1, lambda check: None) for name in ("first", "second")]
    told: list[Verdict] = []
    supervise(parts, lambda events, left: [sys.executable, "-c", "raise SystemExit(7)"], told.append)
    assert [(each.part, each.verdict) for each in told] == [("first", FAILED), ("second", FAILED)]


# -- parts ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_estimator_agrees_in_the_small_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    found = numbers.spaces()
    monkeypatch.setattr(numbers, "spaces", lambda: {name: found[name] for name in ("nasbench201", "module")})
    rows = verdicts(Check(torch.device("cpu"), until=time.time() + 600), "agreement")
    assert [row.name for row in rows] == [
        *("nasbench201, every estimator", "nasbench201, a pass of 3 members"),
        *("module, every estimator", "module, a pass of 3 members"),
        "every method in every space",
    ]
    assert {row.verdict for row in rows} == {OK}
    assert "sge, 3 members batched" in rows[0].figures["all"]


def test_difference_is_relative_to_the_largest_entry() -> None:
    expected = {"a": torch.tensor([4.0, -8.0]), "b": torch.tensor([[1.0]])}
    found = {"a": torch.tensor([4.0, -8.0]), "b": torch.tensor([[3.0]])}
    assert numbers.difference(found, expected) == 0.25


# -- on the pretended GPU -------------------------------------------------------------------------------------


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine whose memory can be limited, and which warns of waits if it is asked to."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with gpu_machine() as machine:
        plain, total = machine.wait, machine.gpus[0].total

        def wait(what: str) -> None:
            plain(what)
            # PyTorch counts no call of synchronize
            if machine.sync_debug_mode == 1 and what != "synchronize":
                warnings.warn(f"called a synchronizing CUDA operation: {what}", stacklevel=2)

        def limit(fraction: float, device: Any = None) -> None:
            machine.gpus[0].total = int(fraction * total)

        monkeypatch.setattr(machine, "wait", wait)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
        yield machine


FAST = ("machine", "streams", "cap", "training")
# processes of their own, and the compiler, see no pretended GPU
SLOWER = [name for name in NAMES if name not in (*FAST, "processes", "search", "compile")]


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWER)])
def test_part_passes_on_the_pretended_gpu(name: str, pretended: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_profile", lambda check, call: None)
    rows = verdicts(Check(torch.device("cuda"), until=time.time() + 600), name)
    assert len(rows) > 0
    assert {row.verdict for row in rows} <= {OK, SLOW}
    if name == "waits":
        assert {row.verdict for row in rows} == {OK}
    if name in ("graphs", "steps"):
        assert pretended.replays > 0
    assert pretended.gpus[0].total == 8 * 2**30
    assert pretended.sync_debug_mode == 0


def test_pass_that_waits_fails(pretended: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from sgenas.bilevel import problem

    plain = problem.scalar

    def reading(loss: torch.Tensor, name: str) -> torch.Tensor:
        loss.detach().item()
        return plain(loss, name)

    monkeypatch.setattr(problem, "scalar", reading)
    monkeypatch.setattr("gpu_parts.runs.estimators", lambda check: {})
    rows = verdicts(Check(torch.device("cuda"), until=time.time() + 600), "waits")
    assert [row.verdict for row in rows] == [FAILED, FAILED, OK]


# -- whole ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_whole_check_passes_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    command = [sys.executable, gpu_check.__file__, "--device", "cpu", "--minutes", "19", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    data = json.loads(out.read_text())
    assert done.returncode == 0, done.stdout
    assert list(dict.fromkeys(row["part"] for row in data["verdicts"])) == NAMES
    assert {row["verdict"] for row in data["verdicts"]} == {OK}
