"""How finite perturbations of the alphas measure the derivative: by smoothing, activation, batch size and training.

    python benchmarks/kinks.py [--space nasbench201] [--smoothings 0.001 0.01 0.1 1] [--directions 40] ...

For random directions u and one inner step: SGE's projection <w'(alpha + mu u) - w'(alpha), v> / mu against its limit
for mu -> 0, <dw'/dalpha u, v>, by automatic differentiation. Over the directions: correlation of the two, the slope
of a straight line through 0 (1 if the projections are right on average), and the ratio of their sizes. With ReLU and
max pooling, and with smooth ones; at initialization and after some steps of training.
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from record import CIFAR10, add_result, flags
from torch import Tensor

import sgenas
from sgenas import data, tree
from sgenas.bilevel import BilevelProblem
from sgenas.optim import SGD
from sgenas.tree import Tree


def main() -> None:
    given = flags(
        __doc__,
        data=CIFAR10,
        space={"default": "nasbench201", "choices": ["darts", "nasbench201"]},
        channels=4,
        layers={"type": int, "default": 1, "help": "darts: at least 3 [%(default)s]"},
        batch_sizes=[64, 256],
        train_steps=[0, 200],
        smoothings=[0.001, 0.01, 0.1, 1.0],
        directions=40,
        alpha_scale=0.3,
    )
    images = data.load(given.data, train_images=8000, test=False)
    networks: list[dict[str, Any]] = [{"activation": "relu"}, {"activation": "silu"}]
    if given.space == "darts":  # the benchmark's cells have no maximum
        networks.append({"activation": "silu", "pooling": "smooth"})
    rows = [
        row
        for network in networks
        for steps in given.train_steps
        for batch_size in given.batch_sizes
        for row in measure(given, images, network, steps, batch_size)
    ]
    add_result("kinks", vars(given) | {"rows": rows})


def measure(
    given: argparse.Namespace, images: data.ImageData, network: dict[str, Any], train_steps: int, batch_size: int
) -> list[dict[str, Any]]:
    """Prints and returns the rows of one network, training and batch size, one per smoothing."""
    layers = max(3, given.layers) if given.space == "darts" else given.layers
    sizes = {"input_channels": images.channels, "num_classes": len(images.classes)}
    space = getattr(sgenas.spaces, given.space)(channels=given.channels, layers=layers, **sizes, **network)

    def loss(weights: Tree, alphas: Tree, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(space.bind(weights, alphas)(batch[0]), batch[1])

    problem = BilevelProblem(loss, loss, SGD(0.025, momentum=0.9, weight_decay=3e-4))
    draw = torch.Generator().manual_seed(0)
    alphas = tree.map(
        lambda table: given.alpha_scale * torch.randn(table.shape, generator=draw), space.initial_alphas(draw)
    )
    state = problem.init(space.initial_weights(draw))
    mean, std = data.statistics(images.train.images)
    plain = data.Augmentation(pad=0, horizontal_flip=False, mean=mean, std=std)
    training = data.BatchStream(images.train, 64, plain, draw)
    for _ in range(train_steps):
        state = problem.run(state, alphas, [next(training)]).end
    stream = data.BatchStream(images.train, batch_size, plain, draw)
    inner, outer = next(stream), next(stream)

    _, v, _ = problem.outer_gradients(problem.run(state, alphas, [inner]).end.weights, alphas, outer)
    weights, leaves = tree.leaves(state.weights), tree.leaves(alphas)
    gradient = torch.autograd.grad(loss(weights, leaves, inner), tree.tensors(weights), create_graph=True)
    # w' depends on alpha through -lr * gradient alone
    projected = tree.dot(tree.rebuild(weights, gradient), v)
    exact_gradient = tree.rebuild(leaves, torch.autograd.grad(projected, tree.tensors(leaves)))

    rows = []
    for smoothing in given.smoothings:
        measured, exact = [], []
        for _ in range(given.directions):
            u = tree.map(lambda table: torch.randn(table.shape, generator=draw), alphas)
            _, moved = problem.inner_gradient(state.weights, tree.add(alphas, u, smoothing), inner)
            measured.append((tree.dot(moved, v) - projected.detach()) / smoothing)
            exact.append(tree.dot(exact_gradient, u))
        x, y = torch.stack(exact), torch.stack(measured)
        row = network | {
            "train_steps": train_steps,
            "batch_size": batch_size,
            "smoothing": smoothing,
            "correlation": torch.corrcoef(torch.stack([x, y]))[0, 1].item(),
            "slope": (x @ y / (x @ x)).item(),
            "size": (y.square().mean() / x.square().mean()).sqrt().item(),
        }
        rows.append(row)
        print(
            f"{network['activation']:5}{network.get('pooling', 'hard'):7}{train_steps:5} steps, batch {batch_size:4},"
            f" mu {smoothing:<7g} correlation {row['correlation']:6.3f}  slope {row['slope']:7.3f}"
            f"  size {row['size']:7.2f}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
