"""Recording passes of the CPU: a replay does the same operations, with the same constants, in the same memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Tape(TorchDispatchMode):
    """The operations of a pass, with the tensors that they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        """Does all operations again. Results that are no views take the places of the recorded ones."""
        with torch.no_grad():
            for func, args, kwargs, found in self.operations:
                again = func(*args, **kwargs)
                for old, new in zip(pytree.tree_leaves(found), pytree.tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    def spoil(self) -> None:
        """Makes every result NaN or 77: a capture computes nothing."""
        with torch.no_grad():
            for func, args, kwargs, found in self.operations:
                read = {tensor.data_ptr() for tensor in pytree.arg_tree_leaves(*args, **kwargs) if _is(tensor)}
                for tensor in pytree.tree_leaves(found):
                    if _is(tensor) and tensor.data_ptr() not in read and func is not torch.ops.aten.lift_fresh.default:
                        tensor.fill_(float("nan") if tensor.is_floating_point() else 77)


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


class PretendedRecorder:
    """A recorder for `Replays`.

    Attributes:
        warmed: Passes that ran as usual before they were recorded.
        recorded: Recordings that were made.
        replayed: Replays.
        forgotten: How often memory was given back.
        failure: Raised by the next recording, if it is not None.
    """

    def __init__(self) -> None:
        self.warmed = self.recorded = self.replayed = self.forgotten = 0
        self.failure: Exception | None = None

    def warm(self, run: Callable[[], list[Tensor]]) -> list[Tensor]:
        self.warmed += 1
        # (a tape holds tensors, and autograd adds in place to those that nobody else holds)
        with Tape():
            return run()

    def record(self, run: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        if self.failure is not None:
            raise self.failure
        tape = Tape()
        with tape:
            found = run()
        tape.spoil()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return found, replay

    def forget(self) -> None:
        self.forgotten += 1
