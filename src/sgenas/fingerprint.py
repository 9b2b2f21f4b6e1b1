"""Fingerprints of what a run cannot write down, so that its directory recognizes it: data, networks, functions."""

import contextlib
import functools
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from sgenas.digests import Layer, digest, name_of
from sgenas.random import seeded

ATTRIBUTES = ("data", "targets", "labels")
"""Where datasets of torchvision and others hold all their rows."""
DRAWN = ("indices", "weights", "num_samples", "replacement")
"""What PyTorch's samplers draw."""


def describe_data(source: Any) -> dict[str, Any]:
    """Type, size and content of a source of batches, as far as it shows them without a pass over it."""
    found: dict[str, Any] = {"type": name_of(type(source))}
    if hasattr(source, "batches_per_pass"):
        return found | {"batches": source.batches_per_pass}
    if isinstance(source, DataLoader):
        sampler = source.sampler if source.batch_size is not None else source.batch_sampler
        found |= {"batch_size": source.batch_size, "drop_last": source.drop_last, "sampler": name_of(type(sampler))}
        found["drawn"] = digest([getattr(sampler, name, None) for name in DRAWN])
        return found | {"dataset": describe_data(source.dataset)}
    if isinstance(source, list | tuple):
        return found | {"batches": len(source), "content": digest(source)}
    if isinstance(source, Subset):
        return found | {"indices": digest(list(source.indices)), "dataset": describe_data(source.dataset)}
    with contextlib.suppress(TypeError, NotImplementedError):
        found["rows"] = len(source)
    if isinstance(source, TensorDataset):
        found["content"] = digest(source.tensors)
    elif not isinstance(source, IterableDataset) and hasattr(source, "__getitem__") and found.get("rows"):
        found["content"] = _content(source, found["rows"])
    return found


def describe_model(model: nn.Module, *, weights: bool = True) -> dict[str, Any]:
    """Classes, settings and (if ``weights``) values of a module."""
    layers = [(path, Layer(part)) for path, part in model.named_modules()]
    found = {"type": name_of(type(model)), "parameters": sum(each.numel() for each in model.parameters())}
    found["layers"] = digest(layers)
    if weights:
        named = dict(model.named_parameters())
        trained = {name: tensor for name, tensor in named.items() if tensor.requires_grad}
        fixed = {name: tensor for name, tensor in named.items() if name not in trained}
        found["fixed_tensors"] = digest(fixed | dict(model.named_buffers()))
        found["start_weights"] = digest(trained)
    return found


def describe_function(function: Any, *, strict: bool = False) -> dict[str, Any]:
    """Name of a function, and a digest of its code and of all that it uses; ``strict`` as for ``digest``."""
    named = function.func if isinstance(function, functools.partial) else function
    name = name_of(named if hasattr(named, "__qualname__") else type(named))
    return {"name": name, "code": digest(function, strict=strict)}


# -- datasets -----------------------------------------------------------------------------------------------


def _content(dataset: Any, rows: int) -> str | None:
    """A digest of the first, middle and last row, and of all rows if the dataset holds them in one attribute.

    None if a row is another one each time, although PyTorch's, NumPy's and Python's generators start alike.
    """

    def some() -> str:
        with seeded(0):
            return digest([dataset[index] for index in (0, rows // 2, rows - 1)])

    attributes = getattr(dataset, "__dict__", {})
    before = [(each, each.get_state()) for each in attributes.values() if isinstance(each, torch.Generator)]
    arrays = [each.bit_generator for each in attributes.values() if isinstance(each, np.random.Generator)]
    states = [each.state for each in arrays]
    try:
        first, second = some(), some()
    except Exception:
        # a row that cannot be read is an error of the run itself, with its own message
        return None
    finally:
        for own, state in before:
            own.set_state(state)
        for array, kept in zip(arrays, states, strict=True):
            array.state = kept
    held = [attributes.get(name) for name in ATTRIBUTES]
    return digest([first if first == second else None, *held])
