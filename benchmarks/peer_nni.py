"""A first-order DARTS step: this library beside NNI's one-shot DARTS, on the same cells, in one run.

NNI (3.0, unmaintained since 2023) does not share an environment with this library (its old typeguard), so it
gets one of its own, into which the library goes without its dependencies:

    python3 -m venv peer
    peer/bin/pip install "torch>=2.9,<2.15" torchvision nni pytorch-lightning psutil "setuptools<81"
    peer/bin/pip install --no-deps -e .
    peer/bin/python benchmarks/peer_nni.py [--channels 16] [--layers 8] [--batch-size 64] [--repeats 5]

Both take a pass with gradients of all weights and alphas, and a whole first-order step: the gradient of the
weights on one batch, SGD with momentum, the gradient of the alphas on another. NNI's network is the DARTS
hub space under its DARTS strategy; the plain loop here stands for its Lightning trainer, so that no trainer's
cost is counted. Its weights are 1,987,194 against 1,930,618: it keeps scale and shift in some normalisations.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from record import add_result, time_in_turn
from supernet import gradients, inputs
from torch import Tensor

from sgenas.bilevel import SGD, BilevelProblem, FirstOrder
from sgenas.spaces import space

warnings.simplefilter("ignore")


def peer_network(channels: int, layers: int) -> torch.nn.Module:
    """NNI's supernet."""
    from nni.nas.hub.pytorch import DARTS as Hub  # type: ignore[import-not-found]
    from nni.nas.strategy import DARTS as Strategy  # type: ignore[import-not-found]

    network: torch.nn.Module = Strategy().mutate_model(Hub(width=channels, num_cells=layers, dataset="cifar"))
    return network.train()


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="first-order step beside NNI's one-shot DARTS")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    made = space("darts", channels=arguments.channels, layers=arguments.layers)
    images, labels, weights, alphas = inputs(made, arguments.batch_size, 32, torch.float32, arguments.device)

    peer = peer_network(arguments.channels, arguments.layers).to(arguments.device)
    named = dict(peer.named_parameters())
    tables = [value for name, value in named.items() if "_arch_alpha" in name]
    others = [value for name, value in named.items() if "_arch_alpha" not in name]
    optimizer = torch.optim.SGD(others, 0.025, momentum=0.9, weight_decay=3e-4)

    def peer_pass(wanted: list[Tensor]) -> tuple[Tensor | None, ...]:
        loss = F.cross_entropy(peer(images), labels)
        return torch.autograd.grad(loss, wanted, allow_unused=True)

    def peer_step() -> None:
        # as its strategy does: alphas and weights each by a backward pass through everything
        F.cross_entropy(peer(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(peer(images), labels).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(others, 5.0)
        optimizer.step()
        peer.zero_grad(set_to_none=True)

    def loss(w: dict[str, Tensor], a: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(made.logits(w, a, batch[0]), batch[1])

    problem = BilevelProblem(loss, loss, SGD(0.025, 0.9, 3e-4, grad_clip=5.0))
    state = problem.init(weights)
    batch = (images, labels)
    sides: dict[str, Callable[[], Any]] = {
        "NNI, pass": lambda: peer_pass([*others, *tables]),
        "sgenas, pass": lambda: gradients(made.logits, weights, alphas, images, labels),
        "NNI, first-order step": peer_step,
        "sgenas, first-order step": lambda: FirstOrder()(problem, state, alphas, [batch], batch),
    }
    seconds = time_in_turn(sides, repeats=arguments.repeats, device=arguments.device)
    print(f"{'':28}{'seconds':>9}{'min':>8}{'max':>8}")
    for name, times in seconds.items():
        print(f"{name:28}{times['median']:9.3f}{times['min']:8.3f}{times['max']:8.3f}")
    ratios = {
        kind: seconds[f"NNI, {kind}"]["median"] / seconds[f"sgenas, {kind}"]["median"]
        for kind in ("pass", "first-order step")
    }
    print("NNI takes " + ", ".join(f"{ratio:.2f} times as long a {kind}" for kind, ratio in ratios.items()))
    sizes = {
        "peer": sum(value.numel() for value in others),
        "sgenas": sum(w.numel() for w in weights.values()),
    }
    figures = vars(arguments) | {"seconds": seconds, "ratios": ratios, "weights": sizes}
    add_result("peer_nni", figures, device=arguments.device)


if __name__ == "__main__":
    main()
