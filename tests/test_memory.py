"""Freed memory stays with the process once asked for: seen in a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, psutil, torch
from sgenas.memory import keep_freed_memory
asked = sys.argv[1] == "keep"
assert not asked or keep_freed_memory()
process = psutil.Process()
before = process.memory_info().rss
blocks = [torch.ones(2**20) for _ in range(64)]  # 256 MB
del blocks
print((process.memory_info().rss - before) // 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept() -> None:
    left = {
        mode: int(
            subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, check=True).stdout
        )
        for mode in ("keep", "default")
    }
    assert left["keep"] > 200 > 100 > left["default"]


PEAK = """
import torch
from sgenas.memory import peak_memory
cpu = torch.device("cpu")
before = peak_memory(cpu)
block = torch.ones(2**26)  # 256 MB
del block
small = torch.ones(2**20)
print((peak_memory(cpu) - before) // 2**20)
"""


def test_peak_memory_is_the_processs_own_most() -> None:
    ballast = b"1" * 2**29  # the parent's memory, which getrusage would report
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, check=True)
    assert len(ballast) == 2**29
    assert 250 < int(done.stdout) < 300
