"""One training of a black box: run with a seed, in any process, and its weights packed into bytes."""

import contextlib
import io
import pickle
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sgenas import tree
from sgenas.device import cpu_threads
from sgenas.errors import one_line
from sgenas.random import seeded
from sgenas.tree import Tree

Train = Callable[[Tree, int], Any]
"""train(alphas, seed) -> weights: a module, a state dict, or a tree of tensors and arrays."""


class _Unusable(Exception):
    """What a training returned cannot be used; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """What became of a training: packed weights, or the cause of its failure."""

    weights: bytes | None
    cause: str = ""
    traceback: str = ""


def pack(returned: Any) -> bytes:
    """Modules, mappings, lists and tuples of tensors and arrays as the content of a file of PyTorch."""
    weights, file = _checked(returned, ""), io.BytesIO()
    if not tree.tensors(weights):
        raise _Unusable("returned no weights")
    torch.save(weights, file)
    return file.getvalue()


def _checked(value: Any, path: str) -> Tree:
    """``value`` as dicts, lists and tuples of tensors on the CPU."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if isinstance(value, Mapping):
        # (no subclasses, which torch.load refuses)
        wrong = next((key for key in value if type(key) not in (str, int, bool)), None)
        if wrong is not None:
            raise _Unusable(f"returned the key {wrong!r} at {path or 'the top'}; keys must be strings or whole numbers")
        return {key: _checked(child, f"{path}.{key}".strip(".")) for key, child in value.items()}
    if isinstance(value, list | tuple):
        children = [_checked(child, f"{path}.{index}".strip(".")) for index, child in enumerate(value)]
        return children if isinstance(value, list) else tuple(children)
    name = repr(path) if path else "the weights"
    if isinstance(value, np.ndarray | np.generic):
        try:
            value = torch.from_numpy(np.array(value, order="C"))
        except TypeError:
            raise _Unusable(f"returned an array of {value.dtype} for {name}") from None
    if not isinstance(value, Tensor):
        got = "None" if value is None else type(value).__name__
        raise _Unusable(f"returned {got} for {name}; weights must be tensors or arrays")
    if value.is_complex() or value.layout != torch.strided:
        raise _Unusable(f"returned {name} as {value.dtype}, {value.layout}; weights must be real and dense")
    if not bool(torch.isfinite(value).all()):
        raise _Unusable(f"returned NaN or infinite values in {name}")
    # (a copy, since torch.save writes all of the memory that a view is a part of)
    return value.detach().to("cpu", copy=True).contiguous()


def unpack(packed: bytes) -> Tree:
    """Inverse of ``pack``, on the CPU; raises some exception for other bytes. Runs no code from them."""
    return tree.detach(torch.load(io.BytesIO(packed), weights_only=True))


def run_training(train: Train, alphas: bytes, seed: int, threads: int | None) -> Outcome:
    """One training, in any process. ``alphas``: pickled."""
    # (scikit-learn needs it, so it is there; NumPy's and scikit-learn's threads are none of PyTorch's)
    from threadpoolctl import threadpool_limits

    # (without a limit it would still look through all loaded libraries, in 1.6 ms per training)
    others = contextlib.nullcontext() if threads is None else threadpool_limits(threads)  # type: ignore[no-untyped-call]
    try:
        with seeded(seed), others, cpu_threads(threads), torch.enable_grad():
            return Outcome(pack(train(pickle.loads(alphas), seed)))
    except _Unusable as error:
        return Outcome(None, str(error))
    except (Exception, SystemExit) as error:
        return Outcome(None, f"raised {type(error).__name__}: {one_line(error)}", traceback.format_exc())
