"""Learn the weight decay of ten groups of inputs of scikit-learn's logistic regression.

    python examples/black_box_decay.py [--workers 1] [--estimator sge] [--steps 20]

The regression tells odd from even digits. Its inputs are the eight rows of pixels and two groups of noise, and the
decay of each group is the exponential of an outer variable. scikit-learn fits 120 images by Newton's method and returns
NumPy arrays. SGE learns the ten variables from the loss of 300 validation images, with three fits per step. Expected
after half a minute:

    test loss, equal decay      0.348
    test loss, learned decay    0.299
    noise decays 15.5 times as strongly as pixels
"""

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import sgenas as sg

TRAINING, VALIDATION, GROUPS, GROUP = 120, 300, 10, 8
ESTIMATORS = {
    "sge": sg.SGE(num_directions=2, smoothing=0.3, directions="orthogonal"),
    "evolution-strategies": sg.EvolutionStrategies(num_directions=2, smoothing=0.3, directions="orthogonal"),
}
Part = tuple[Tensor, Tensor]


@functools.cache
def load(draw: int) -> dict[str, Part]:
    """Inputs, 64 pixels and 16 of noise, and labels of each part."""
    generator = torch.Generator().manual_seed(draw)
    digits = sg.data.load("digits")

    def part(data: sg.data.ImageSet, index: Tensor) -> Part:
        noise = torch.randn(len(index), 2 * GROUP, generator=generator)
        return torch.cat([data.images[index].flatten(1) / 127.5 - 1, noise], 1).double(), data.labels[index] % 2

    order = torch.randperm(len(digits.train), generator=generator)
    return {
        "training": part(digits.train, order[:TRAINING]),
        "validation": part(digits.train, order[TRAINING : TRAINING + VALIDATION]),
        "test": part(digits.test, torch.arange(len(digits.test))),
    }


@dataclass(frozen=True)
class Task:
    """``draw``: seed of the data."""

    draw: int = 0

    def start(self) -> Tensor:
        return torch.zeros(GROUPS, dtype=torch.float64)

    def train(self, alphas: Tensor, seed: int) -> dict[str, Any]:
        inputs, labels = load(self.draw)["training"]
        # a decay d of w is a decay of 1 of w sqrt(d), the coefficient of x / sqrt(d)
        scale = np.repeat(np.exp(-alphas.numpy() / 2), GROUP)
        model = LogisticRegression(solver="newton-cholesky", tol=1e-6).fit(inputs.numpy() * scale, labels.numpy())
        return {"weight": model.coef_[0] * scale, "bias": model.intercept_}

    def outer_loss(self, weights: dict[str, Tensor], alphas: Any, batch: str) -> Tensor:
        """Cross-entropy of the "validation" or "test" images."""
        inputs, labels = load(self.draw)[batch]
        logits = inputs @ weights["weight"] + weights["bias"]
        return F.binary_cross_entropy_with_logits(logits, labels.double())

    def accuracy(self, weights: dict[str, Tensor]) -> float:
        """Of the test images, in percent."""
        inputs, labels = load(self.draw)["test"]
        odd = inputs @ weights["weight"] + weights["bias"] > 0
        return 100 * float((odd == labels).double().mean())


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns the test losses, and how much more strongly noise decays than pixels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", choices=list(ESTIMATORS), default="sge")
    parser.add_argument("--steps", type=int, default=20, help="steps of the ten variables")
    parser.add_argument("--workers", type=int, default=1, help="fits at a time")
    options = parser.parse_args(arguments)

    task = Task()
    alphas = task.start().requires_grad_()
    adam = torch.optim.Adam([alphas], lr=0.5)
    losses = []
    with sg.BlackBoxProblem(task.train, task.outer_loss, workers=options.workers, threads=1) as problem:
        for step in range(options.steps + 1):
            estimator = ESTIMATORS[options.estimator] if step < options.steps else sg.FirstOrder()
            result = problem.hypergradient(alphas, "validation", estimator=estimator, seed=step)
            losses.append(float(task.outer_loss(result.state.weights, alphas, "test")))
            adam.zero_grad()
            result.backward()
            adam.step()
    pixels, noise = alphas.detach().split([8, 2])
    ratio = float((noise.mean() - pixels.mean()).exp())
    print(f"test loss, equal decay    {losses[0]:7.3f}")
    print(f"test loss, learned decay  {losses[-1]:7.3f}")
    print(f"noise decays {ratio:.1f} times as strongly as pixels")
    return {"equal": losses[0], "learned": losses[-1], "ratio": ratio}


if __name__ == "__main__":
    main()
