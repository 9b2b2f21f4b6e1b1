"""Do finite perturbations of the alphas measure the derivative? By smoothing, activation, batch and training.

    python benchmarks/kinks.py [--space nasbench201] [--smoothings 0.001 0.01 0.1 1] [--directions 40] ...

For random directions u and one inner step: what SGE measures, <w'(alpha + mu u) - w'(alpha), v> over mu,
against its limit for mu to 0, <dw'/dalpha u, v>, by automatic differentiation. Over the directions:
correlation of the two, and the slope of a straight line through 0 (1 where the projections are right on
average). Batches of `--batch-sizes` images of CIFAR-10, with the published ReLU and max pooling and with
smooth ones, at the supernet's first weights and after some epochs of training. Prints a table and adds a JSON
line to benchmarks/results/kinks.jsonl.
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from record import SHARED_DATA, add_result
from torch import Tensor

from sgenas import data, trees
from sgenas.bilevel import SGD, BilevelProblem
from sgenas.spaces import space
from sgenas.trees import Tree


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="projections along directions against derivatives")
    parser.add_argument("--data", default=f"parquet:{SHARED_DATA / 'cifar10-train.parquet'}")
    parser.add_argument("--space", default="nasbench201", choices=["darts", "nasbench201"])
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--cells", type=int, default=1, help="nasbench201: in each stage; darts: layers")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--train-steps", type=int, nargs="+", default=[0, 200])
    parser.add_argument("--smoothings", type=float, nargs="+", default=[0.001, 0.01, 0.1, 1.0])
    parser.add_argument("--directions", type=int, default=40)
    parser.add_argument("--alpha-scale", type=float, default=0.3, help="standard deviation of the alphas")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    images = data.load(arguments.data, limit=8000, seed=0, test=False)
    mean, std = data.statistics(images.train.images)
    augmentation = data.Augmentation(pad=0, mirror=False, cutout=0, mean=mean, std=std)
    rows = []
    networks = [("relu", "hard"), ("silu", "hard")]
    if arguments.space == "darts":  # the benchmark's cells have no maximum
        networks.append(("silu", "smooth"))
    for network in networks:
        for steps in arguments.train_steps:
            for batch_size in arguments.batch_sizes:
                rows += measure(arguments, images.train, augmentation, network, steps, batch_size)
    add_result("kinks", vars(arguments) | {"rows": rows})


def measure(
    arguments: argparse.Namespace,
    images: data.ImageSet,
    augmentation: data.Augmentation,
    network: tuple[str, str],
    train_steps: int,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Prints and returns the rows of one network, training and batch size, one for each smoothing."""
    activation, pooling = network
    settings: dict[str, Any] = {"channels": arguments.channels, "activation": activation}
    if arguments.space == "nasbench201":
        settings["cells"] = arguments.cells
    else:
        settings |= {"layers": max(3, arguments.cells), "pooling": pooling}
    made = space(arguments.space, **settings)

    def loss(weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(made.logits(weights, alphas, batch[0]), batch[1])

    problem = BilevelProblem(loss, loss, SGD(0.025, 0.9, 3e-4))
    draw = torch.Generator().manual_seed(0)
    alphas = {
        name: arguments.alpha_scale * torch.randn(table.shape, generator=draw)
        for name, table in made.initial_alphas(draw).items()
    }
    state = problem.init(made.initial_weights(draw))
    training = data.BatchStream(images, 64, augmentation, draw)
    for _ in range(train_steps):
        state = problem.run(state, alphas, [next(training)]).end
    stream = data.BatchStream(images, batch_size, augmentation, draw)
    inner, outer = next(stream), next(stream)

    end = problem.run(state, alphas, [inner]).end
    _, v, _ = problem.outer_gradients(end.weights, alphas, outer)
    weights, leaves = trees.leaves(state.weights), trees.leaves(alphas)
    gradient = torch.autograd.grad(loss(weights, leaves, inner), list(weights.values()), create_graph=True)
    # w' depends on alpha through -lr * gradient alone, at the first step of momentum and at any other
    projected = trees.dot(dict(zip(weights, gradient, strict=True)), v)
    slope = torch.autograd.grad(projected, list(leaves.values()))
    exact_gradient = trees.detach(dict(zip(leaves, slope, strict=True)))
    base = projected.detach()

    rows = []
    for smoothing in arguments.smoothings:
        measured, exact = [], []
        for _ in range(arguments.directions):
            u = {name: torch.randn(table.shape, generator=draw) for name, table in alphas.items()}
            _, moved = problem.inner_gradient(state.weights, trees.add(alphas, u, smoothing), inner)
            measured.append((trees.dot(moved, v) - base) / smoothing)
            exact.append(trees.dot(exact_gradient, u))
        x, y = torch.stack(exact), torch.stack(measured)
        row = {
            "activation": activation,
            "pooling": pooling,
            "train_steps": train_steps,
            "batch_size": batch_size,
            "smoothing": smoothing,
            "correlation": torch.corrcoef(torch.stack([x, y]))[0, 1].item(),
            "slope": (x @ y / (x @ x)).item(),
            "size": (y.square().mean() / x.square().mean()).sqrt().item(),
        }
        rows.append(row)
        print(
            f"{activation:5}{pooling:7}{train_steps:5} steps, batch {batch_size:4}, mu {smoothing:<7g}"
            f" correlation {row['correlation']:6.3f}  slope {row['slope']:7.3f}  size {row['size']:7.2f}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
