from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchrun import Torchrun

# the tests' networks are tiny: one thread is as fast as two, and does not suffer on a shared machine
torch.set_num_threads(1)


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Torchrun]:
    """Starts programs on several processes; those that are left are killed at the end."""
    made = Torchrun(tmp_path)
    yield made
    made.end()
