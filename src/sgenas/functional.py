"""A module as a pure function of its tensors, also with gradient checkpointing and with layers that draw."""

import contextlib
import copy
import pickle
import random
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends.mha import get_fastpath_enabled, set_fastpath_enabled
from torch.utils import checkpoint

from sgenas import tree
from sgenas.errors import InvalidValueError

OTHER_GENERATORS: dict[str, Callable[[], Any]] = {
    "Python's random": random.getstate,
    "NumPy's random": lambda: pickle.dumps(np.random.get_state()),  # noqa: NPY002 (what modules draw from)
}
"""Generators that a module must not draw from, since only PyTorch's can be set to a seed per pass."""
States = list[bytes]
"""States of generators, comparable."""
CHECKPOINTS = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")
"""What `torch.utils.checkpoint.checkpoint` calls with the function to recompute, by version of PyTorch."""


class Functional:
    """Calls a module with other tensors in place of its own.

    A pass leaves the module as it was. Tensors that several modules share have one name, the first. A region under
    `torch.utils.checkpoint` is recomputed with the tensors of its pass. A pass that draws from PyTorch's generators
    draws from ``seed``, so that passes with the same seed are the same function, and leaves the generators alone.

    Args:
        module: The module; a pass puts tensors into it and takes them out again.
        copy_buffers: Whether a pass may change buffers, of which it gets copies; if not, such a pass is refused.
    """

    def __init__(self, module: nn.Module, *, copy_buffers: bool = False) -> None:
        self.module, self._copy_buffers = module, copy_buffers
        self._checked, self._draws = False, False
        self._places: dict[str, list[tuple[Any, Any]]] = {}
        self._buffers: list[tuple[str, dict[str, Any], str]] = []
        names: dict[int, str] = {}
        for path, part in module.named_modules():
            for kind in (part._parameters, part._buffers):
                for key, tensor in kind.items():
                    if tensor is not None:
                        name = names.setdefault(id(tensor), f"{path}.{key}".removeprefix("."))
                        self._places.setdefault(name, []).append((kind, key))
                        if kind is part._buffers:
                            self._buffers.append((name, kind, key))
        # a parameter may also be held in a plain list, dict or attribute
        for part in module.modules():
            for place, key, tensor in _held(vars(part), {"_parameters", "_buffers", "_modules", "_flat_weights"}):
                if id(tensor) in names:
                    self._places[names[id(tensor)]].append((place, key))

    def __call__(
        self, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None = None
    ) -> Any:
        """The outputs of the module.

        Args:
            tensors: {name: tensor} of parameters and buffers to use; others are the module's own.
            args, kwargs: Of the module.
            seed: Of the random numbers that the pass draws; None refuses a pass that draws.

        Raises:
            InvalidValueError: If the pass changes a buffer of the module, or draws random numbers that it must not.
        """
        others = {} if self._checked else {**OTHER_GENERATORS, **_own_generators(self.module)}
        states = {name: state() for name, state in others.items()}
        before = generator_states()
        if self._draws and seed is not None:
            outputs = self._seeded(tensors, args, kwargs, seed, before)
        else:
            outputs = self._pure(tensors, args, kwargs)
            if generator_states() != before:
                _set_generators(before)
                if seed is None:
                    remedy = "pass a seed (space.seeded(seed)), the same for all compared passes, or call eval() on it"
                    raise _drew("random numbers", remedy)
                # a pass that does not draw pays for no seed; one that does is a function, so that it can be repeated
                self._draws = True
                outputs = self._seeded(tensors, args, kwargs, seed, before)
        for name, state in others.items():
            if state() != states[name]:
                raise _drew(f"from {name}", "use PyTorch's generator, which sgenas sets to one seed per batch")
        self._checked = True
        return outputs

    def _seeded(
        self, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], seed: int, before: States
    ) -> Any:
        try:
            for generator in _generators():
                generator.manual_seed(seed)
            return self._pure(tensors, args, kwargs)
        finally:
            _set_generators(before)

    def _pure(self, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One pass; raises InvalidValueError if it changes a buffer that is not a copy."""
        versions = {name: tensor._version for name, tensor in tensors.items()}
        if self._copy_buffers:
            tensors = {name: place[key].clone() for name, place, key in self._buffers} | dict(tensors)
        with self._holding(tensors), self._recomputing(tensors):
            guarded = [] if self._copy_buffers else self._buffers
            kept = [(name, place, key, place[key], place[key]._version) for name, place, key in guarded]
            outputs = self.module(*args, **kwargs)
            for name, place, key, tensor, version in kept:
                if place[key] is not tensor or tensor._version != version:
                    place[key] = tensor
                    raise self._changed(f"buffer {name!r}")
        for name, version in versions.items():
            if tensors[name]._version != version:
                raise self._changed(f"parameter {name!r}")
        return outputs

    @contextlib.contextmanager
    def _holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        kept: list[tuple[dict[str, Any], str, Tensor]] = []
        try:
            for name, tensor in tensors.items():
                for place, key in self._places[name]:
                    kept.append((place, key, place[key]))
                    place[key] = tensor
            yield
        finally:
            for place, key, tensor in reversed(kept):
                place[key] = tensor

    @contextlib.contextmanager
    def _recomputing(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Within it, a region under gradient checkpointing will be recomputed with ``tensors``.

        The recomputation runs in the backward pass, when the module holds its own tensors again. Reentrant regions
        become non-reentrant ones, which torch.autograd.grad needs.
        """

        def held(function: Callable[..., Any]) -> Callable[..., Any]:
            def again(*args: Any, **kwargs: Any) -> Any:
                with self._holding(tensors):
                    return function(*args, **kwargs)

            return again

        def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
            return lambda function, *args, **kwargs: original(held(function), *args, **kwargs)

        class Reentrant:
            @staticmethod
            def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
                same = partial(checkpoint.checkpoint, use_reentrant=False, preserve_rng_state=preserve_rng_state)
                return same(function, *args)

        originals = {name: getattr(checkpoint, name) for name in CHECKPOINTS if hasattr(checkpoint, name)}
        # of two names, one calls the other
        name, original = list(originals.items())[-1]
        reentrant = checkpoint.CheckpointFunction
        try:
            setattr(checkpoint, name, wrapped(original))
            setattr(checkpoint, "CheckpointFunction", Reentrant)  # noqa: B010
            yield
        finally:
            setattr(checkpoint, name, original)
            setattr(checkpoint, "CheckpointFunction", reentrant)  # noqa: B010

    def _changed(self, what: str) -> InvalidValueError:
        return InvalidValueError(
            f"{what} of the model must not change in a pass, since passes at perturbed architecture parameters would"
            " change it too; keep such state elsewhere",
            field="model",
        )


def _drew(what: str, remedy: str) -> InvalidValueError:
    return InvalidValueError(f"the model must not draw {what} in a pass; {remedy}", field="model")


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module with computed tensors (weight_norm, prune), which a pass computes again."""
    held = [tensor for part in module.modules() for _, _, tensor in _held(vars(part), {"_modules"})]
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf})


def _own_generators(module: nn.Module) -> dict[str, Callable[[], Any]]:
    """{name: its state} of the random generators that parts of a module hold, also through a bound method."""
    found: dict[str, Callable[[], Any]] = {}
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
            for held in (value, getattr(value, "__self__", None), *cells):
                name = f"the generator {path}.{key}".replace(" .", " ")
                if isinstance(held, random.Random):
                    found[name] = held.getstate
                elif isinstance(held, np.random.Generator | np.random.RandomState | torch.Generator):
                    found[name] = partial(pickle.dumps, held)
    return found


def _held(container: Any, skip: Container[Any] = ()) -> Iterator[tuple[Any, Any, Tensor]]:
    """(dict or list, key, tensor) of every tensor in nested dicts and lists."""
    items = list(container.items() if isinstance(container, dict) else enumerate(container))
    for key, value in items:
        if isinstance(value, Tensor):
            yield container, key, value
        elif isinstance(value, dict | list) and key not in skip:
            yield from _held(value)


def _generators() -> list[torch.Generator]:
    """PyTorch's global generators of the CPU and of accelerators that are in use."""
    # (those of a GPU cannot be read while a CUDA graph is recorded, which refuses passes that draw)
    if not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
        return [torch.default_generator]
    return [torch.default_generator, *torch.cuda.default_generators]


def generator_states() -> States:
    """States of PyTorch's global generators, to be compared."""
    # inside a transform of torch.func new tensors have no data that can be read
    with torch._C._DisableFuncTorch() if tree.transformed() else contextlib.nullcontext():
        return [generator.get_state().numpy().tobytes() for generator in _generators()]


def _set_generators(states: States) -> None:
    with torch._C._DisableFuncTorch() if tree.transformed() else contextlib.nullcontext():
        for generator, state in zip(_generators(), states, strict=True):
            generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def graph_nodes(*outputs: Tensor) -> list[Any]:
    """The nodes of the autograd graph of ``outputs``, each once."""
    seen, waiting = dict[Any, None](), [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen[node] = None
            waiting += [following for following, _ in node.next_functions]
    return list(seen)


class ExactAttention:
    """Inside ``with``: transformer layers in evaluation mode compute without gradients what they do with them.

    The kernel that PyTorch has for passes without gradients sets padded positions to zero. (A class, since every pass
    of a small problem is inside one.)
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = get_fastpath_enabled()
        set_fastpath_enabled(False)

    def __exit__(self, *_: object) -> None:
        set_fastpath_enabled(self._before)


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; each module in its own mode again afterwards, frozen ones too."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        # first as a whole: modules may do something on the way (LoRA takes its weights apart)
        network.train(modes[network])
        for module, mode in modes.items():
            module.training = mode
