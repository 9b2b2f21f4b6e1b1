"""Device, determinism, threads and memory of a process."""

import subprocess
import sys

import pytest
import torch
from pretended_gpu import gpu_machine

from sgenas import device as module
from sgenas.device import (
    PRECISIONS,
    arithmetic,
    deterministic_algorithms,
    fastest_threads,
    find_device,
    ran_out,
    time_calls,
)
from sgenas.errors import InvalidValueError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
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


@pytest.mark.parametrize("name", ["abacus", "meta", "cuda:99", "", "mps", "xpu", "xpu:0", "hpu"])
@pytest.mark.parametrize("gpus", [0, 2])
def test_device_that_is_missing_or_unsupported_is_refused(
    name: str, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(InvalidValueError) as caught:
        find_device(name)
    assert caught.value.field == "device"
    said = str(caught.value)
    assert "\n" not in said
    assert ("cuda:1 on this machine" in said) == (gpus > 0)
    assert "auto or cpu" in said
    assert ("not supported" in said) == (name in ("meta", "mps", "xpu", "xpu:0", "hpu"))
    assert find_device("cpu") == CPU


def test_gpu_is_found_without_taking_memory_on_one() -> None:
    with gpu_machine(gpus=2) as machine:
        assert find_device("auto") == find_device("cuda") == torch.device("cuda")
        assert find_device("cuda:1").index == 1
        assert machine.launches == 0
        assert [gpu.peak for gpu in machine.gpus] == [0, 0]
        with pytest.raises(InvalidValueError):
            find_device("cuda:2")
    with pytest.raises(InvalidValueError):
        find_device("cuda:1")


def test_operation_without_a_deterministic_form_is_named() -> None:
    with pytest.raises(InvalidValueError, match="kthvalue") as caught, deterministic_algorithms(True, CPU):
        raise RuntimeError("kthvalue does not have a deterministic implementation, but you set")
    assert caught.value.field == "deterministic"
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(True, CPU):
        assert torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(False, CPU):
        assert not torch.are_deterministic_algorithms_enabled()


def test_memory_is_not_filled_in_deterministic_runs_and_again_afterwards() -> None:
    assert torch.utils.deterministic.fill_uninitialized_memory
    with pytest.raises(KeyError), deterministic_algorithms(True, CPU):
        assert not torch.utils.deterministic.fill_uninitialized_memory
        raise KeyError
    assert torch.utils.deterministic.fill_uninitialized_memory


def flags() -> dict[str, object]:
    """What `arithmetic` sets on a GPU; PyTorch has these settings without one too."""
    backends = torch.backends
    return {
        "deterministic": backends.cudnn.deterministic,
        "benchmark": backends.cudnn.benchmark,
        "convolutions": backends.cudnn.conv.fp32_precision,
        "recurrent": backends.cudnn.rnn.fp32_precision,
        "products": backends.cuda.matmul.fp32_precision,
    }


@pytest.mark.parametrize("fastest", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_arithmetic_of_a_gpu_is_set_by_name_and_restored(precision: str, fastest: bool) -> None:
    before, rounding = flags(), "ieee" if precision == "ieee" else "tf32"
    with pytest.raises(KeyError), arithmetic(GPU, precision, fastest=fastest):
        expected = {"deterministic": not fastest, "benchmark": fastest}
        assert flags() == expected | dict.fromkeys(("convolutions", "recurrent", "products"), rounding)
        with arithmetic(GPU):
            assert flags()["products"] == "ieee"
        assert flags()["products"] == rounding
        raise KeyError
    assert flags() == before
    assert torch.backends.cudnn.allow_tf32, "which PyTorch refuses to read while its settings disagree"


def test_deterministic_arithmetic_never_chooses_algorithms_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.CUBLAS_WORKSPACE, module.CUBLAS_DETERMINISTIC[0])
    before = flags()
    with arithmetic(GPU, "tf32", deterministic=True, fastest=True):
        assert (flags()["deterministic"], flags()["benchmark"]) == (True, False)
        assert torch.are_deterministic_algorithms_enabled()
    assert flags() == before
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_arithmetic_of_a_cpu_leaves_the_settings_of_gpus_alone(precision: str) -> None:
    before = flags()
    with arithmetic(CPU, precision, fastest=True):
        assert flags() == before


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(InvalidValueError) as caught, arithmetic(CPU, "float32"):
        pass
    assert caught.value.field == "precision"


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
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shapes do not match"), False),
        (ValueError("not enough memory"), False),
    ],
    ids=repr,
)
def test_out_of_memory_is_recognized(error: Exception, expected: bool) -> None:
    assert ran_out(error) == expected


@pytest.mark.parametrize(("repeats", "enough", "most", "expected"), [(3, 0.0, 9, 3), (1, 2.5, 9, 5), (1, 9.0, 4, 4)])
def test_calls_are_timed_until_there_are_enough(
    repeats: int, enough: float, most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += 0.5

    found = time_calls(call, torch.device("cpu"), repeats=repeats, warm_up=2, enough=enough, most=most)
    assert found == [0.5] * expected
    assert clock[0] == 0.5 * (expected + 2)


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

    assert fastest_threads(step) == expected
    assert threads == [2]
