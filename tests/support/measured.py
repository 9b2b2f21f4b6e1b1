"""How much memory something takes; with a ceiling, so that no failing test takes the machine with it."""

import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sgenas.errors import SgenasError

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CEILING = 4 * 2**30


def _kilobytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


@contextmanager
def at_most(growth: int) -> Iterator[None]:
    """Fails when the resident memory has grown by more than `growth` bytes at any moment in between.

    Skips the test where the system does not tell.
    """
    if not RESET.exists():
        pytest.skip("no /proc/self/clear_refs")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_kilobytes("VmSize") + CEILING, before[1]))
    # 5: the peak begins anew
    RESET.write_text("5")
    start = _kilobytes("VmRSS")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    taken = _kilobytes("VmHWM") - start
    assert taken <= growth, f"{taken:,} bytes of memory were taken, where {growth:,} are allowed"


def refused(read: Callable[[], object], text: str, growth: int) -> None:
    """`read` raises one line that holds `text`, and takes at most `growth` bytes of memory on the way."""
    with at_most(growth), pytest.raises(SgenasError) as caught:
        read()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
