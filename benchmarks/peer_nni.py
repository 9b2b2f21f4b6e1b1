"""A pass and a first-order DARTS step: this library and NNI's one-shot DARTS, on the same cells, in one run.

NNI (3.0, unmaintained since 2023) can't share an environment with this library (its old typeguard), so it gets one of
its own, into which the library goes without its dependencies:

    python3 -m venv peer
    peer/bin/pip install "torch>=2.9,<2.15" torchvision nni pytorch-lightning psutil "setuptools<81"
    peer/bin/pip install --no-deps -e .
    peer/bin/python benchmarks/peer_nni.py [--channels 16] [--layers 8] [--batch-size 64] [--repeats 5]

A step is the gradient of the weights on one batch, SGD with momentum, and the gradient of the alphas on another. The
plain loop here replaces NNI's Lightning trainer, so that no trainer's cost is counted. NNI's network has 1,987,194
weights instead of 1,930,618: some of its normalizations keep scale and shift.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from record import add_result, flags, time_in_turn
from supernet import gradients, inputs, library

import sgenas
from sgenas.bilevel import BilevelProblem, FirstOrder
from sgenas.optim import SGD

warnings.simplefilter("ignore")


def peer_network(channels: int, layers: int) -> torch.nn.Module:
    """NNI's supernet."""
    from nni.nas.hub.pytorch import DARTS as Hub  # type: ignore[import-not-found]
    from nni.nas.strategy import DARTS as Strategy  # type: ignore[import-not-found]

    network: torch.nn.Module = Strategy().mutate_model(Hub(width=channels, num_cells=layers, dataset="cifar"))
    return network.train()


def main() -> None:
    given = flags(__doc__, channels=16, layers=8, batch_size=64, repeats=5, device="cpu")
    space = sgenas.spaces.darts(channels=given.channels, layers=given.layers)
    images, labels, weights, alphas = inputs(space, given.batch_size, 32, device=given.device)
    peer = peer_network(given.channels, given.layers).to(given.device)
    others = [value for name, value in peer.named_parameters() if "_arch_alpha" not in name]
    optimizer = torch.optim.SGD(others, 0.025, momentum=0.9, weight_decay=3e-4)

    def peer_step() -> None:
        # as its strategy does: alphas and weights each by a backward pass through everything
        F.cross_entropy(peer(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(peer(images), labels).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(others, 5.0)
        optimizer.step()
        peer.zero_grad(set_to_none=True)

    def loss(weights: Any, alphas: Any, batch: Any) -> torch.Tensor:
        return F.cross_entropy(space.bind(weights, alphas)(batch[0]), batch[1])

    problem = BilevelProblem(loss, loss, SGD(0.025, momentum=0.9, weight_decay=3e-4, grad_clip=5.0))
    state, batch = problem.init(weights), (images, labels)
    every = list(peer.parameters())
    sides: dict[str, Callable[[], Any]] = {
        "NNI, pass": lambda: torch.autograd.grad(F.cross_entropy(peer(images), labels), every, allow_unused=True),
        "sgenas, pass": lambda: gradients(library(space), weights, alphas, images, labels),
        "NNI, step": peer_step,
        "sgenas, step": lambda: FirstOrder()(problem, state, alphas, [batch], batch),
    }
    seconds = time_in_turn(sides, repeats=given.repeats, device=given.device)
    for name, times in seconds.items():
        print(f"{name:16}{times['median']:9.3f} s  ({times['min']:.3f} to {times['max']:.3f})")
    ratios = {
        kind: seconds[f"NNI, {kind}"]["median"] / seconds[f"sgenas, {kind}"]["median"] for kind in ("pass", "step")
    }
    print(f"NNI takes {ratios['pass']:.2f} times as long for a pass, {ratios['step']:.2f} times for a step")
    add_result("peer_nni", vars(given) | {"seconds": seconds, "ratios": ratios}, device=given.device)


if __name__ == "__main__":
    main()
