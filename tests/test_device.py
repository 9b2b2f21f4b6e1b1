"""Device, determinism, threads and memory of a process."""

import subprocess
import sys

import pytest
import torch

from sgenas import device as module
from sgenas.device import deterministic_algorithms, fastest_threads, find_device, limit_spinning, ran_out
from sgenas.errors import InvalidValueError

CPU = torch.device("cpu")
KEEPING = """
import sys, psutil, torch
from sgenas.device import keep_freed_memory
asked = sys.argv[1] == "keep"
assert not asked or keep_freed_memory()
process = psutil.Process()
before = process.memory_info().rss
blocks = [torch.ones(2**20) for _ in range(64)]  # 256 MB
del blocks
print((process.memory_info().rss - before) // 2**20)
"""
PEAK = """
import torch
from sgenas.device import peak_memory
before = peak_memory(torch.device("cpu"))
block = torch.ones(2**26)  # 256 MB
del block
print((peak_memory(torch.device("cpu")) - before) // 2**20)
"""


def printed(program: str, *arguments: str) -> int:
    command = [sys.executable, "-c", program, *arguments]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept_once_asked_for() -> None:
    assert printed(KEEPING, "keep") > 200 > 100 > printed(KEEPING, "default")


def test_peak_memory_is_that_of_the_process_alone() -> None:
    ballast = b"1" * 2**29  # the parent's memory, which getrusage would report
    assert 250 < printed(PEAK) < 300
    assert len(ballast) == 2**29


@pytest.mark.parametrize("name", ["abacus", "meta", "cuda:99", ""])
def test_device_that_is_missing_is_refused(name: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        find_device(name)
    assert caught.value.field == "device"
    assert find_device("cpu") == CPU


def test_operation_without_a_deterministic_form_is_named() -> None:
    with pytest.raises(InvalidValueError, match="kthvalue") as caught, deterministic_algorithms(True, CPU):
        raise RuntimeError("kthvalue does not have a deterministic implementation, but you set")
    assert caught.value.field == "deterministic"
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(True, CPU):
        assert torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(False, CPU):
        assert not torch.are_deterministic_algorithms_enabled()


def test_cublas_needs_its_workspace_for_deterministic_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(module.CUBLAS_WORKSPACE, raising=False)
    with pytest.raises(InvalidValueError), deterministic_algorithms(True, torch.device("cuda")):
        pass
    monkeypatch.setenv(module.CUBLAS_WORKSPACE, "")
    module.prepare_deterministic_process()
    assert module.os.environ[module.CUBLAS_WORKSPACE] == "", "a value of the user stays"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("no"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("not enough memory"), False),
    ],
    ids=repr,
)
def test_out_of_memory_is_recognized(error: Exception, expected: bool) -> None:
    assert ran_out(error) == expected


def test_spinning_is_limited_unless_the_user_has_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    limit_spinning()
    assert module.os.environ["GOMP_SPINCOUNT"] == module.SPIN_COUNT
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    limit_spinning()
    assert module.os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    limit_spinning()
    assert "GOMP_SPINCOUNT" not in module.os.environ


@pytest.mark.parametrize(("seconds", "expected"), [({1: 1.0, 2: 2.0}, 1), ({1: 2.0, 2: 1.0}, 2)])
def test_faster_number_of_threads_is_chosen(
    seconds: dict[int, float], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, threads = [0.0], [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def step() -> None:
        clock[0] += seconds[threads[0]]

    assert fastest_threads(step) == threads[0] == expected
