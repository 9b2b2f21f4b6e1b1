"""How the process holds on to memory."""

import ctypes
import sys

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
