"""How the process holds on to memory, and how much it has taken."""

import ctypes
import re
import resource
import sys
from pathlib import Path

import torch

NO_MEMORY = (
    *("can't allocate memory", "not enough memory", "bad_alloc"),
    *("could not create a primitive", "could not execute a primitive"),
)
"""In the messages of PyTorch's allocator for the CPU, on Linux and elsewhere, of C++, and of oneDNN, which
gives no reason: seen where the system refused it memory."""

# mallopt(3): numbers of the parameters
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Makes glibc keep the memory that tensors free, for the next ones; says whether it could.

    A search frees and takes gigabytes every step. By default they go back to the system in between, and to
    touch fresh pages costs a tenth of a step on a CPU (docs/speed.md). It concerns the whole process, so a
    program calls it, never the library by itself. Nothing happens where the C library is another one.
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
    """Whether an exception says that there is no memory left, on a GPU or in the machine.

    PyTorch has a type of its own for a GPU alone; of the machine's memory it says so in words.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has taken at one time.

    On a GPU of that device, by tensors, since the last torch.cuda.reset_peak_memory_stats. Otherwise of the
    machine's memory (resident), since the process began: whatever it did before counts too.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would report the parent's peak where that was larger
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return int(found[1]) * 1024
    # in bytes on macOS, else in units of 1024 bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
