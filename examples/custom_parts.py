"""A custom estimator, inner optimizer, regularizer, method, dataset and metric: one file outside of sgenas.

    python examples/custom_parts.py [--epochs 4]

Each is a class or function and a line that registers it; then names such as ``estimator.name="one-sided"`` work in
configurations, in run directories and in ``sgenas.search``. A package registers the same with entry points of the
groups ``sgenas.estimators``, ``sgenas.methods``, ``sgenas.datasets``, ..., which the command line also reads.
Expected after 15 seconds:

    estimator one-sided, method sparse, dataset stripes:16
    supernet 98.0 %, sharpest mixing weight 0.14
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sgenas as sg
from sgenas import tree
from sgenas.bilevel import Context, Cost, Estimator
from sgenas.data import DatasetSource, ImageData, ImageSet, LoadRequest
from sgenas.errors import require
from sgenas.optim import InnerState, step_vjp
from sgenas.spaces import Regularizer
from sgenas.tree import TensorDict, Tree


@dataclass(frozen=True)
class OneSided(Estimator):
    """Indirect gradient through the last inner step by a one-sided difference of d L_train / d alpha.

    Args:
        radius: Norm of the step of the weights, > 0.
    """

    radius: float = 0.01

    def __post_init__(self) -> None:
        require(self.radius > 0, "OneSided.radius", "> 0", self.radius)

    def kept_steps(self, inner_steps: int) -> int:
        return 1

    def indirect_cost(self, inner_steps: int) -> Cost:
        return Cost(forward=2, backward=2)

    def indirect_gradient(self, context: Context) -> Tree:
        problem, alphas, batch = context.problem, context.alphas, context.inner_batches[-1]
        step = context.trajectory.steps[-1]
        # the optimizer says how its step depends on the gradient, so this holds for any optimizer
        _, _, direction = step_vjp(problem.inner_optimizer, step.before, step.grad, context.v)
        scale = self.radius / tree.norm(direction)
        moved = tree.add(step.before.weights, direction, scale)
        _, here = problem.inner_alpha_gradient(step.before.weights, alphas, batch)
        _, there = problem.inner_alpha_gradient(moved, alphas, batch)
        return tree.scale(tree.subtract(there, here), 1 / scale)


@dataclass(frozen=True)
class SignDescent:
    """w' = w - lr sign(g). Estimators need nothing else of an inner optimizer.

    Args:
        lr: Learning rate, > 0.
    """

    lr: float = 0.001

    def init(self, weights: Tree) -> InnerState:
        return InnerState(tree.clone(weights))

    def step(self, state: InnerState, grad: Tree) -> InnerState:
        # tanh, since the derivative of the sign is zero
        moved = tree.map(lambda weight, g: weight - self.lr * torch.tanh(100 * g), state.weights, grad)
        return InnerState(moved, step=state.step + 1)


@dataclass(frozen=True)
class Sparsity(Regularizer):
    """weight * sum of all alphas' absolute values.

    Args:
        weight: Coefficient of the term in the outer loss, at least 0.
    """

    weight: float = 1e-4

    def value(self, alphas: TensorDict) -> Tensor:
        return torch.stack([alpha.abs().sum() for alpha in alphas.values()]).sum()


def stripes(place: str, request: LoadRequest) -> ImageData:
    """Horizontal and vertical stripes of ``place`` pixels, in noise."""
    size = int(place)
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    stripe = 127 * (torch.arange(size) % 2).expand(1, size, size)
    images = torch.stack([stripe.mT if label else stripe for label in labels.tolist()])
    images = (images + torch.randint(0, 128, images.shape, generator=draw)).to(torch.uint8)
    chosen = request.choose(labels, ("horizontal", "vertical"))
    return ImageData(request.spec, ImageSet(images, labels).subset(chosen), None, ("horizontal", "vertical"))


class Sharpness(sg.callbacks.Callback):
    """Logs the largest mixing weight after each epoch; columns of metrics.jsonl are free."""

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        mixing = run.space.mixing(tree.detach(run.alphas))
        row["sharpness"] = max(float(table.max()) for table in mixing.values())


def register() -> None:
    """What an entry point would do."""
    sg.register_estimator("one-sided", OneSided)
    sg.register_optimizer("sign-descent", SignDescent)
    sg.register_method("sparse", METHOD)
    sg.register_dataset("stripes", SOURCE)


METHOD = sg.Method("this file", spaces={"darts": {"operations": "paper"}}, regularizer=Sparsity())
SOURCE = DatasetSource(stripes, place="SIZE", resizes=False)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Prints and returns the last row of the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--run-dir", help="keep the run here")
    options = parser.parse_args(arguments)

    register()
    settings = {
        "epochs": options.epochs,
        "estimator.name": "one-sided",
        "weight_optimizer": {"name": "sign-descent", "lr": 0.003},
        "data.data": "stripes:16",
        "data.batch_size": 10,
        "space.channels": 2,
        "space.layers": 3,
        "space.nodes": 1,
        "device": "cpu",
        "threads": 1,
    }
    config = sg.SearchConfig.of_method("sparse", settings)
    last = config.run(options.run_dir, callbacks=[Sharpness()], progress=False).history[-1]
    print(f"estimator one-sided, method sparse, dataset {config.data.data}")
    print(f"supernet {100 * last['val_accuracy']:.1f} %, sharpest mixing weight {last['sharpness']:.2f}")
    return last


if __name__ == "__main__":
    main()
