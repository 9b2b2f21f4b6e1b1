"""Forward and backward of the DARTS supernet: the library's against the plain definition, in turn.

    python benchmarks/supernet.py [--channels 16 ...] [--layers 8 ...] [--batch-size 64 ...] [--compiled] ...

One pass is the loss and its gradients for all weights and both alpha tables. First both are compared in
float64 at a small size. Prints a table and adds a JSON line to benchmarks/results/supernet.jsonl.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from plain_darts import plain_logits
from record import add_result, time_in_turn
from torch import Tensor

from sgenas import trees
from sgenas.spaces import DartsSpace, space
from sgenas.trees import Tree

Logits = Callable[[Tree, Tree, Tensor], Tensor]


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="seconds of one forward and backward pass")
    parser.add_argument("--channels", type=int, nargs="+", default=[16])
    parser.add_argument("--layers", type=int, nargs="+", default=[8])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64])
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="time torch.compile of the library's too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    difference = compare()
    print(f"largest difference of any gradient in float64 (4 channels, 5 layers): {difference:.1e}")
    if not difference < 1e-10:
        sys.exit("the two are not equal: nothing to time")
    for channels, layers, batch in itertools.product(
        arguments.channels, arguments.layers, arguments.batch_size
    ):
        measure(arguments, channels, layers, batch, difference)


def measure(arguments: argparse.Namespace, channels: int, layers: int, batch: int, difference: float) -> None:
    """Times all sides at one size, prints the table and adds the result."""
    made = space("darts", channels=channels, layers=layers)
    images, labels, weights, alphas = inputs(made, batch, arguments.size, torch.float32, arguments.device)
    in_channels_last = images.contiguous(memory_format=torch.channels_last)
    sides: dict[str, Callable[[], Any]] = {
        "plain definition": lambda: gradients(plain(made, layers), weights, alphas, images, labels),
        "plain, channels-last": lambda: gradients(
            plain(made, layers), weights, alphas, in_channels_last, labels
        ),
        "library": lambda: gradients(made.logits, weights, alphas, images, labels),
    }
    compile_seconds = None
    if arguments.compiled:
        compiled = torch.compile(made.logits, fullgraph=True)
        sides["library, compiled"] = lambda: gradients(compiled, weights, alphas, images, labels)
        start = time.perf_counter()
        sides["library, compiled"]()
        compile_seconds = time.perf_counter() - start
        print(f"compiled in {compile_seconds:.0f} s")
    seconds = time_in_turn(sides, repeats=arguments.repeats, device=arguments.device)
    base = seconds["plain definition"]
    print(f"\n{channels} channels, {layers} layers, batch {batch}, {arguments.size} pixels")
    print(f"{'forward and backward':24}{'seconds':>10}{'min':>8}{'max':>8}{'faster':>9}{'by min':>8}")
    for name, times in seconds.items():
        print(
            f"{name:24}{times['median']:10.3f}{times['min']:8.3f}{times['max']:8.3f}"
            f"{base['median'] / times['median']:8.2f}x{base['min'] / times['min']:7.2f}x",
            flush=True,
        )
    sizes = {"channels": channels, "layers": layers, "batch_size": batch}
    figures = vars(arguments) | sizes | {"float64_difference": difference, "seconds": seconds}
    add_result("supernet", figures | {"compile_seconds": compile_seconds}, device=arguments.device)


def plain(made: DartsSpace, layers: int) -> Logits:
    """The plain definition as a function (weights, alphas, images) -> logits."""
    return lambda weights, alphas, images: plain_logits(made, weights, alphas, images, layers)


def inputs(
    made: DartsSpace, batch: int, size: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tree, Tree]:
    """Random images, labels, first weights, and alphas N(0, 1), on the device."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator, dtype=dtype)
    labels = torch.randint(0, 10, (batch,), generator=generator)
    weights = trees.map_tree(lambda tensor: tensor.to(device, dtype), made.initial_weights(generator))
    alphas = trees.map_tree(lambda tensor: 1000 * tensor.to(device, dtype), made.initial_alphas(generator))
    return images.to(device), labels.to(device), weights, alphas


def gradients(logits: Logits, weights: Tree, alphas: Tree, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Gradients of the cross-entropy for all weights, then both alpha tables."""
    w, a = trees.leaves(weights), trees.leaves(alphas)
    loss = F.cross_entropy(logits(w, a, images), labels)
    leaves = [*w.values(), *a.values()]
    return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


def compare() -> float:
    """Largest absolute difference between the two sides' gradients, float64, 4 channels, 5 layers."""
    made = space("darts", channels=4, layers=5)
    images, labels, weights, alphas = inputs(made, 8, 16, torch.float64)
    ours = gradients(made.logits, weights, alphas, images, labels)
    theirs = gradients(plain(made, 5), weights, alphas, images, labels)
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
