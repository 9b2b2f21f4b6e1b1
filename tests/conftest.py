from collections.abc import Callable

import pytest
import torch

from sgenas.cli import main

# The tests' networks are tiny: one thread is as fast as two, and does not suffer when the machine is shared.
torch.set_num_threads(1)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*command: str) -> str:
        """The one line that the command fails with."""
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("sgenas: ")
        return captured.err.strip()

    return run
