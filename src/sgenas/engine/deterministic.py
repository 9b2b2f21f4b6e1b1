"""The same result every time: PyTorch's deterministic algorithms while a run goes on, and no longer."""

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from sgenas.errors import ConfigError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""Its values with which cuBLAS adds in the same order every time."""


def prepare_process() -> None:
    """Sets cuBLAS to add in the same order every time, unless the environment says something else.

    cuBLAS reads it once, so it must happen before the first product on a GPU. It concerns the whole process:
    a program calls it, never the library by itself.
    """
    os.environ.setdefault(WORKSPACE, WORKSPACES[0])


def check(device: torch.device) -> None:
    """Raises ConfigError where the environment leaves the products of `device` in any order."""
    found = os.environ.get(WORKSPACE)
    if device.type == "cuda" and found not in WORKSPACES:
        raise ConfigError(
            f"{WORKSPACE} must be {' or '.join(WORKSPACES)} in the environment from the start for"
            f" deterministic runs on a GPU, got {found!r}"
        )


@contextlib.contextmanager
def algorithms(wanted: bool, name: str) -> Iterator[None]:
    """Inside `with`, if wanted, only operations that give the same result every time; then as before.

    Raises ConfigError, about the setting `name`, with the first operation that has no such form.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        named = re.match(r"(\S+) does not have a deterministic implementation", str(error))
        if named is None:
            raise
        raise ConfigError(
            f"{name} must be off with the operation {named[1]}, of which PyTorch has no deterministic form on"
            " this device, got True"
        ) from None
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
