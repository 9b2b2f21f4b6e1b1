"""Pure passes as CUDA graphs: recorded at their third call, replayed from then on.

A pass through a supernet launches ten thousands of small kernels, and the GPU waits for the CPU that launches them.
A replay launches all of them at once. It repeats what was recorded, constants included, on the tensors that it is
given, so everything else that a pass depends on must be in its key; `recordable.Watch` compares passes to find what is
not.
"""

import contextlib
import traceback
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel.recordable import Parts, UnrecordableError, Watch, place
from sgenas.device import ran_out
from sgenas.errors import GraphWarning, one_line

Pass = Callable[..., list[Tensor]]
"""A function of trees of tensors that returns detached tensors."""
PATIENCE = 2
"""How often a pass may do something else than the one before."""
MOST = 16
"""Forms of passes (kind of pass, shapes, loss) that are remembered at a time; others run as usual."""


class BrokenCaptureError(Exception):
    """CUDA has ended a capture. What was in the way is its cause."""


class CudaRecorder:
    """Records with `torch.cuda.graph`, all passes on one stream and in one pool of memory.

    PyTorch asks that graphs of one pool are replayed in the order of their capture, since one may use memory that
    holds results of another. Here results are copied out before the next replay and inputs live outside of the pool,
    so the order is free.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._broken: list[Any] = []

    def warm(self, run: Callable[[], list[Tensor]]) -> list[Tensor]:
        """What ``run`` computes; called before a pass of this form is recorded."""
        # libraries make their handles and choose their kernels now: that is forbidden in a capture
        with torch.cuda.device(self._device):
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            try:
                with torch.cuda.stream(self._stream):
                    return run()
            finally:
                caller.wait_stream(self._stream)

    def record(self, run: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        """The tensors that ``run`` returns, and what computes them again in the same memory; they have no values yet.

        Raises:
            BrokenCaptureError: If nothing can be recorded any more.
        """
        graph, inside = torch.cuda.CUDAGraph(), list[Exception]()
        with torch.cuda.device(self._device):
            caller = torch.cuda.current_stream()
            # other threads, which load data or talk to other processes, may call CUDA meanwhile
            settings: dict[str, Any] = {"stream": self._stream, "capture_error_mode": "thread_local"}
            try:
                with torch.cuda.graph(graph, pool=self._pool, **settings):
                    try:
                        found = run()
                    except Exception as error:
                        inside.append(error)
                        raise
            except Exception as error:
                if inside and error is inside[0]:
                    raise  # the capture ended as it should
                self._mend(graph)
                raise BrokenCaptureError from (inside[0] if inside else error)
            finally:
                # a capture that cannot end stays on its stream
                torch.cuda.set_stream(caller)
        return found, graph.replay

    def _mend(self, graph: Any) -> None:
        """After a capture that could not end.

        PyTorch's allocator still refers to its graph; and up to PyTorch 2.9 the random generator of the GPU draws
        nothing more until another capture has ended.
        """
        self._broken.append(graph)
        self._pool = torch.cuda.graph_pool_handle()
        other = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=other):
            torch.zeros(1, device=self._device)

    def forget(self) -> None:
        """Gives back the memory of recordings that are gone."""
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Recording:
    """A recorded pass. ``watch`` holds what it reads besides its inputs."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    replay: Callable[[], None]
    watch: Watch

    def __call__(self, new: list[Tensor]) -> list[Tensor]:
        _copy(self.inputs, new)
        self.replay()
        # the next replay of any recording may overwrite its results
        fresh = [torch.empty_like(tensor) for tensor in self.outputs]
        _copy(fresh, self.outputs)
        return fresh


@dataclass(frozen=True)
class _Seen:
    """A pass that ran as usual: the latest one, whether it did what the one before did, and how often it did not."""

    watch: Watch
    repeats: bool = False
    changes: int = 0

    def again(self, watch: Watch, patience: int = PATIENCE) -> "_Seen":
        """What is known after another pass.

        Raises:
            UnrecordableError: If passes differ for the last time.
        """
        changed = self.watch.difference(watch)
        if changed is not None and self.changes >= patience:
            raise UnrecordableError(f"{changed} changes from call to call")
        return _Seen(watch, changed is None, self.changes + (changed is not None))


class Replays:
    """Runs passes by their recordings, or as usual where there is none and none can be made.

    A form is a key with the shapes, types and memory layouts of the tensors. Its first two calls run as usual and are
    compared, the third one is recorded: all must do the same operations with the same constants. (Two calls, since a
    module may keep what its first one computes, and what a recording computes has no values yet.) The first case of
    something that cannot be recorded gives a GraphWarning. So do more than `MOST` forms, whose others run as usual.

    Args:
        recorder: Records passes, as a `CudaRecorder` does; None for one on the GPU of the first pass.

    Example:
        >>> problem = dataclasses.replace(problem, replays=Replays())
    """

    def __init__(self, recorder: CudaRecorder | None = None) -> None:
        self._recorder = recorder
        self._forms: dict[Hashable, _Seen | _Recording | None] = {}
        self._stopped = self._told = False

    def __call__(self, key: Hashable, function: Pass, *inputs: Any) -> list[Tensor]:
        """``function(*inputs)``.

        Args:
            key: Kind of pass, or a tuple that begins with it, with everything that the pass depends on besides its
                inputs.
            function: The pass: pure, and its tensors are detached.
            *inputs: Trees of tensors on one device, which may hold numbers, strings, None, `Seed` and `Whole`.
        """
        if (self._stopped and not self._forms) or tree.transformed():
            return self._as_usual(key, function, inputs)
        try:
            parts = Parts(inputs)
        except UnrecordableError as error:
            self._tell(key, error)
            return self._as_usual(key, function, inputs)
        form = (key, parts.form, _surroundings(*parts.devices))
        known = self._forms.get(form)
        if isinstance(known, _Recording):
            return known(parts.tensors)
        if self._stopped or (known is None and (form in self._forms or len(self._forms) >= MOST)):
            if form not in self._forms and not self._stopped:
                self._tell(key, UnrecordableError(f"more than {MOST} forms of passes"))
            return self._as_usual(key, function, inputs)
        found = self._begun(key, form, known, function, parts)
        return self._as_usual(key, function, inputs) if found is None else found

    def _begun(
        self, key: Hashable, form: Hashable, before: "_Seen | None", function: Pass, parts: Parts
    ) -> list[Tensor] | None:
        """The calls of a form before it is replayed; None if it cannot be recorded."""
        if self._recorder is None:
            self._recorder = CudaRecorder(*parts.devices)
        self._forms[form] = None
        static = [tensor.detach().clone() for tensor in parts.tensors]
        watch = Watch(static)

        def run() -> list[Tensor]:
            return watch.run(lambda: function(*parts.built(static)))

        recording = before is not None and before.repeats
        try:
            if not recording:
                found = self._recorder.warm(run)
                self._forms[form] = _Seen(watch) if before is None else before.again(watch)
                return found
            assert before is not None
            outputs, replay = self._recorder.record(run)
            before.again(watch, patience=0)
            made = _Recording(static, outputs, replay, watch)
            found = made(parts.tensors)
            self._forms[form] = made
            return found
        except BrokenCaptureError as error:
            self._stopped = True
            self._tell(key, error.__cause__ or error)
        except Exception as error:
            why = watch.refusal or error
            try:
                if ran_out(why) and (recording or self._recordings()):
                    self._stop(key)
                elif not recording and not isinstance(why, UnrecordableError):
                    raise  # the pass fails by itself
                else:
                    self._tell(key, why)
            finally:
                # an error that its own frames refer to would keep the tensors of the pass
                watch.refusal = None
                del why
        return None

    def _as_usual(self, key: Hashable, function: Pass, inputs: Sequence[Any]) -> list[Tensor]:
        """An ordinary call; if memory runs out, again without the recordings."""
        try:
            return function(*inputs)
        except (RuntimeError, MemoryError) as error:
            if not (ran_out(error) and self._recordings()):
                raise
        self._stop(key)
        return function(*inputs)

    def _recordings(self) -> bool:
        return any(isinstance(known, _Recording) for known in self._forms.values())

    def _stop(self, key: Hashable) -> None:
        """Records nothing any more, since memory is scarce."""
        self._stopped = True
        self._tell(key, UnrecordableError("out of memory"))
        self.forget()

    def _tell(self, key: Hashable, why: BaseException) -> None:
        if not self._told:
            self._told = True
            name, where = key[0] if isinstance(key, tuple) else key, ""
            if not isinstance(why, UnrecordableError):
                where = place(reversed(list(traceback.walk_tb(why.__traceback__))))
            warnings.warn(f"{name} runs without CUDA graphs: {one_line(why)}{where}", GraphWarning, stacklevel=4)

    def forget(self) -> None:
        """Gives the memory of all recordings back. They are made again, unless memory ran out or CUDA failed."""
        held = self._recordings()
        self._forms.clear()
        if held and self._recorder is not None:
            self._recorder.forget()


def _surroundings(device: torch.device) -> Hashable:
    """Settings of PyTorch that decide what an operation does."""
    return (
        torch.is_autocast_enabled(device.type),
        torch.get_autocast_dtype(device.type),
        torch.are_deterministic_algorithms_enabled(),
        # `plain_kernels` changes these two
        torch._C._get_cudnn_enabled(),
        torch._C._len_torch_function_stack(),
    )


def _copy(into: list[Tensor], new: list[Tensor]) -> None:
    """One call per type: a list of several types would be copied tensor by tensor."""
    for kind in {tensor.dtype for tensor in new}:
        pairs = [(old, each) for old, each in zip(into, new, strict=True) if each.dtype == kind]
        torch._foreach_copy_([old for old, _ in pairs], [each for _, each in pairs])


def replays_on(device: torch.device, wanted: bool) -> Replays | None:
    """What records the passes of a run on ``device``: something on a GPU if it is wanted, else None."""
    return Replays() if wanted and device.type == "cuda" else None
