"""Forward and backward pass of the DARTS supernet: the library's against the plain definition, in turn.

    python benchmarks/supernet.py [--channels 16 ...] [--layers 8 ...] [--batch-size 64 ...] [--compiled]

A pass is the loss and its gradients for all weights and both alpha tables. The plain definition computes every
operation on every edge, as published codes do; both are compared in float64 first, at a small size.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from record import ROOT, add_result, flags, time_in_turn
from torch import Tensor

import sgenas
from sgenas import tree
from sgenas.spaces import CellSpace
from sgenas.tree import TensorDict

sys.path.append(str(ROOT / "tests" / "support"))
import plain_supernets  # type: ignore[import-not-found]

Logits = Callable[[TensorDict, TensorDict, Tensor], Tensor]


def library(space: CellSpace) -> Logits:
    """The library's supernet as a function (weights, alphas, images) -> logits."""
    return lambda weights, alphas, images: space.bind(weights, alphas)(images)


def plain(space: CellSpace) -> Logits:
    """The plain definition in the same form."""

    def logits(weights: TensorDict, alphas: TensorDict, images: Tensor) -> Tensor:
        # the tests' definition normalizes by hand, published codes call this
        with mock.patch.object(plain_supernets, "norm", lambda x: F.batch_norm(x, None, None, training=True)):
            found: Tensor = plain_supernets.PlainDarts(space, weights, alphas).logits(images)
        return found

    return logits


def inputs(
    space: CellSpace, batch: int, size: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor, TensorDict, TensorDict]:
    """Random images and labels, weights at initialization, and alphas ~ N(0, 1)."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=draw, dtype=dtype)
    labels = torch.randint(0, 10, (batch,), generator=draw)
    weights, alphas = space.initial_weights(draw), tree.scale(space.initial_alphas(draw), 1000)
    moved: Any = tree.map(lambda tensor: tensor.to(device, dtype), (weights, alphas))
    return images.to(device), labels.to(device), *moved


def gradients(logits: Logits, weights: TensorDict, alphas: TensorDict, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Gradients of the cross-entropy for all weights, then both alpha tables."""
    w, a = tree.leaves(weights), tree.leaves(alphas)
    loss = F.cross_entropy(logits(w, a, images), labels)
    return list(torch.autograd.grad(loss, tree.tensors((w, a)), allow_unused=True, materialize_grads=True))


def largest_difference() -> float:
    """Between the gradients of the two, in float64 with 4 channels and 5 layers."""
    space = sgenas.spaces.darts(channels=4, layers=5)
    images, labels, weights, alphas = inputs(space, 8, 16, torch.float64)
    ours, theirs = (gradients(logits(space), weights, alphas, images, labels) for logits in (library, plain))
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def measure(given: argparse.Namespace, channels: int, layers: int, batch: int) -> dict[str, Any]:
    """Times all sides at one size and prints the table."""
    space = sgenas.spaces.darts(channels=channels, layers=layers)
    images, labels, weights, alphas = inputs(space, batch, given.size, device=given.device)
    fast_layout = images.contiguous(memory_format=torch.channels_last)
    sides: dict[str, Callable[[], Any]] = {
        "plain": lambda: gradients(plain(space), weights, alphas, images, labels),
        "plain, channels-last": lambda: gradients(plain(space), weights, alphas, fast_layout, labels),
        "library": lambda: gradients(library(space), weights, alphas, images, labels),
    }
    if given.compiled:
        compiled = torch.compile(library(space), fullgraph=True)
        sides["library, compiled"] = lambda: gradients(compiled, weights, alphas, images, labels)
        start = time.perf_counter()
        sides["library, compiled"]()
        print(f"compiled in {time.perf_counter() - start:.0f} s")
    seconds = time_in_turn(sides, repeats=given.repeats, device=given.device)
    print(f"\n{channels} channels, {layers} layers, batch {batch}, {given.size} pixels")
    print(f"{'forward and backward':24}{'seconds':>10}{'min':>8}{'max':>8}{'faster':>9}")
    for name, times in seconds.items():
        faster = seconds["plain"]["median"] / times["median"]
        print(f"{name:24}{times['median']:10.3f}{times['min']:8.3f}{times['max']:8.3f}{faster:8.2f}x", flush=True)
    return {"channels": channels, "layers": layers, "batch_size": batch, "seconds": seconds}


def main() -> None:
    given = flags(__doc__, channels=[16], layers=[8], batch_size=[64], size=32, repeats=5, compiled=False, device="cpu")
    difference = largest_difference()
    print(f"largest difference of a gradient in float64: {difference:.1e}")
    if not difference < 1e-10:
        sys.exit("the two are not equal: nothing to time")
    for size in itertools.product(given.channels, given.layers, given.batch_size):
        add_result("supernet", vars(given) | measure(given, *size), device=given.device)


if __name__ == "__main__":
    main()
