"""The device of a run: finding it, exact or fast arithmetic, determinism, threads, memory."""

import contextlib
import ctypes
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sgenas.errors import InvalidValueError, require_choice

NO_MEMORY = (
    *("can't allocate memory", "not enough memory", "bad_alloc"),
    *("could not create a primitive", "could not execute a primitive"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""In the messages of PyTorch's CPU allocator, of C++, of oneDNN, which gives no reason, and of CUDA's libraries,
which take memory around PyTorch's allocator."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_DETERMINISTIC = (":4096:8", ":16:8")


def find_device(name: str) -> torch.device:
    """The device ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; takes no memory there.

    Raises:
        InvalidValueError: If this machine has no such device, or it is no CPU or CUDA GPU.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    kind = name.partition(":")[0]
    try:
        device = torch.device(name)
        if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < gpus):
            return device
    except RuntimeError:
        kind = ""
    known = ["auto", "cpu", *(("cuda",) if gpus else ()), *(f"cuda:{index}" for index in range(gpus))]
    why = f" ({kind} is not supported)" if kind not in ("", "cpu", "cuda") else ""
    raise InvalidValueError(f"device must be {' or '.join(known)} on this machine, got {name!r}{why}", field="device")


# -- arithmetic ---------------------------------------------------------------------------------------------


PRECISIONS = ("ieee", "tf32", "bf16")
"""Arithmetic by name. ieee: float32 as IEEE 754 has it. tf32: on a GPU, convolutions and products of matrices whose
factors are rounded to 10 bits; on a CPU the same as ieee. bf16: bfloat16 in the layers that autocast accepts."""


@contextlib.contextmanager
def arithmetic(
    device: torch.device, precision: str = "ieee", *, deterministic: bool = False, fastest: bool = False
) -> Iterator[None]:
    """Inside ``with``: how a run computes on ``device``. All settings are as before afterwards.

    For ``"bf16"`` it sets what is around the layers; ``autocast`` is for the network alone.

    Args:
        device: Device of the run; on a CPU only ``deterministic`` has an effect.
        precision: One of `PRECISIONS`.
        deterministic: Allow only operations that give the same result every time.
        fastest: Let cuDNN choose the fastest algorithm for each shape, which may be another one in each run.

    Raises:
        InvalidValueError: See `deterministic_algorithms`.
    """
    require_choice("precision", precision, PRECISIONS)
    with deterministic_algorithms(deterministic, device):
        if device.type != "cuda":
            yield
            return
        cudnn, rounding = torch.backends.cudnn, "ieee" if precision == "ieee" else "tf32"
        chosen = fastest and not deterministic
        # (never the flags allow_tf32: PyTorch refuses to read them once these are set)
        wanted: list[tuple[Any, str, Any]] = [
            (cudnn, "deterministic", not chosen),
            (cudnn, "benchmark", chosen),
            (cudnn.conv, "fp32_precision", rounding),  # type: ignore[attr-defined]
            (cudnn.rnn, "fp32_precision", rounding),
            (torch.backends.cuda.matmul, "fp32_precision", rounding),
        ]
        before = [getattr(owner, name) for owner, name, _ in wanted]
        try:
            for owner, name, value in wanted:
                setattr(owner, name, value)
            yield
        finally:
            for (owner, name, _), value in zip(wanted, before, strict=True):
                setattr(owner, name, value)


def rounded(network: Callable[..., Any], precision: str, device: torch.device) -> Callable[..., Any]:
    """``network`` as a function in this precision; its outputs are float32 or wider."""
    if precision != "bf16":
        return network

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            outputs = network(*args, **kwargs)
        return pytree.tree_map_only(Tensor, lambda out: out.float() if out.is_floating_point() else out, outputs)

    return call


def prepare_deterministic_process() -> None:
    """Asks cuBLAS for deterministic sums, unless the environment says something else.

    cuBLAS reads the variable once, so call this before the first product on a GPU. It concerns the whole
    process: a program calls it, never the library.
    """
    os.environ.setdefault(CUBLAS_WORKSPACE, CUBLAS_DETERMINISTIC[0])


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool, device: torch.device) -> Iterator[None]:
    """Inside ``with``, if wanted, only operations that give the same result every time.

    Raises:
        InvalidValueError: If the environment forbids it, or with the first operation that has no
            deterministic form.
    """
    if not wanted:
        yield
        return
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    if device.type == "cuda" and workspace not in CUBLAS_DETERMINISTIC:
        raise InvalidValueError(
            f"{CUBLAS_WORKSPACE} must be {' or '.join(CUBLAS_DETERMINISTIC)} in the environment from the start"
            f" for deterministic runs on a GPU, got {workspace!r}",
            field="deterministic",
        )
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    # a search for bugs that doubles the number of kernels: nothing here reads memory that it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    except RuntimeError as error:
        named = re.match(r"(\S+) does not have a deterministic implementation", str(error))
        if named is None:
            raise
        raise InvalidValueError(
            f"deterministic must be False with the operation {named[1]}, which has no deterministic form on"
            " this device, got True",
            field="deterministic",
        ) from None
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


# -- memory layout and copies ---------------------------------------------------------------------------------

CHANNELS_LAST = {"cpu": True, "cuda": True}
"""Kind of device -> whether images are channels-last in its memory. For CPUs it was measured; `benchmarks/gpu_check.py`
times both on a GPU."""


def channels_last_on(device: torch.device) -> bool:
    """Whether images are channels-last in the memory of ``device``."""
    return CHANNELS_LAST.get(device.type, True)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; a copy to a GPU waits for nothing that the GPU has yet to do."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # from pinned memory, which PyTorch keeps for later copies; from other memory the driver may wait
    return tensor.pin_memory().to(device, non_blocking=True)


def moved_batch(batch: Any, device: torch.device) -> Any:
    """The batch, nested containers of anything, with its tensors on ``device``; see `moved`."""
    return pytree.tree_map_only(Tensor, lambda tensor: moved(tensor, device), batch)


# -- threads ------------------------------------------------------------------------------------------------


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """That many CPU threads for PyTorch's operations, None for as they are; as before at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest_threads(step: Callable[[], object], *, repeats: int = 2) -> int:
    """1 or the current number of threads, whichever runs ``step`` faster.

    Small networks are bound by the number of operations, so that a second thread only adds waiting.
    """
    every = torch.get_num_threads()
    if every == 1:
        return 1
    seconds = {}
    step()
    for count in (every, 1):
        with cpu_threads(count):
            seconds[count] = min(time_calls(step, torch.device("cpu"), repeats=repeats, warm_up=0))
    return min(seconds, key=seconds.__getitem__)


def time_calls(
    call: Callable[[], object],
    device: torch.device,
    *,
    repeats: int = 1,
    warm_up: int = 1,
    enough: float = 0.0,
    most: float = float("inf"),
) -> list[float]:
    """Seconds of each of ``repeats`` calls, after ``warm_up`` untimed ones.

    Up to ``most`` calls are timed while their times add up to less than ``enough`` seconds. On a GPU each is waited
    for.
    """

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for _ in range(warm_up):
        call()
    seconds, total = list[float](), 0.0
    while len(seconds) < repeats or (total < enough and len(seconds) < most):
        start = now()
        call()
        seconds.append(now() - start)
        total += seconds[-1]
    return seconds


# -- memory -------------------------------------------------------------------------------------------------


def keep_freed_memory() -> bool:
    """Makes glibc keep the memory that tensors free, for the next ones; returns whether it could.

    A search frees and allocates gigabytes per step; touching fresh pages costs a tenth of a step on a CPU.
    It concerns the whole process: a program calls it, never the library.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # never trim; take 256 MB at once; 32 MB is the largest threshold that glibc accepts
    settings = ((M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 2**28), (M_MMAP_THRESHOLD, 2**25))
    return all(library.mallopt(name, value) == 1 for name, value in settings)


def ran_out(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a GPU or in the machine.

    PyTorch has a type of its own for its allocator on GPUs; for all other memory it says so in the message.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has taken at one time.

    On a GPU by tensors there, since the last ``torch.cuda.reset_peak_memory_stats``; otherwise the resident
    memory since the process began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would report the parent's peak if that was larger
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return int(found[1]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # POSIX only

    # in bytes on macOS, else in units of 1024 bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
