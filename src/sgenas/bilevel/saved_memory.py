"""What a forward pass saves for its backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor


class SavedMemory:
    """Counts, inside ``with``, the bytes that forward passes save for their backward passes.

    Attributes:
        peak: The most at one time. A tensor saved by several operations counts once.
    """

    def __init__(self) -> None:
        self.peak = self._now = 0
        self._users: dict[Any, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> "_Saved":
        # not the whole storage: a batch may be a slice of all data
        key = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.numel()
        size = min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
        users = self._users.get(key, 0)
        if not users:
            self._now += size
            self.peak = max(self.peak, self._now)
        self._users[key] = users + 1
        # Detached: the result of an operation that saves it would hold its own graph alive in a circle.
        return _Saved(tensor.detach(), partial(self._release, key, size))

    def _release(self, key: Any, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self._now -= size


class _Saved:
    """A saved tensor that calls a function when the graph releases it."""

    __slots__ = ("_release", "tensor")

    def __init__(self, tensor: Tensor, release: Callable[[], None]) -> None:
        self.tensor, self._release = tensor, release

    def __del__(self) -> None:
        # (torch.compile makes some that are never filled)
        if hasattr(self, "_release"):
            self._release()
