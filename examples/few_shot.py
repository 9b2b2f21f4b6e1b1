"""Few-shot regression: learn where to start, so that five examples of a new sine wave are enough (MAML).

    python examples/few_shot.py [--steps 1000]

Expected, in 35 seconds on one core:

    error after 5 examples and 5 steps, none          4.995
    error after 5 examples and 5 steps, first-order   0.901
    error after 5 examples and 5 steps, unrolled      0.657

The start is the alphas, what a task adds to it the weights: the network computes with alphas + weights, and
every task begins at weights = 0. The direct part of the hypergradient is then first-order MAML, the indirect
part is what MAML (arXiv:1703.03400) has besides; its sinusoids are taken here.
"""

import argparse
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import SGD, BilevelProblem, Estimator, FirstOrder, Unrolled
from sgenas.trees import Tree

TASKS, SHOTS, INNER_STEPS, HIDDEN = 25, 5, 5, 40
INNER_LR = 0.01
ESTIMATORS: dict[str, Estimator] = {"first-order": FirstOrder(), "unrolled": Unrolled()}

Batch = tuple[Tensor, Tensor]


def predictions(weights: Tree, alphas: Tree, x: Tensor) -> Tensor:
    """(T, n, 1) for inputs (T, n, 1) of T tasks, each with weights of its own: two hidden layers."""
    whole = {name: alphas[name] + weights[name] for name in weights}
    for layer in ("1", "2"):
        x = torch.tanh(torch.baddbmm(whole["bias" + layer], x, whole["weight" + layer]))
    return torch.baddbmm(whole["bias3"], x, whole["weight3"])


def loss(weights: Tree, alphas: Tree, batch: Batch) -> Tensor:
    """Squared error, mean over examples, sum over tasks: every task's weights move as if they were alone."""
    x, y = batch
    return (predictions(weights, alphas, x) - y).square().mean(dim=(1, 2)).sum()


def first_alphas(draw: torch.Generator) -> Tree:
    """A network as it is usually begun."""
    sizes = [1, HIDDEN, HIDDEN, 1]
    found = {}
    for layer, (before, after) in enumerate(itertools.pairwise(sizes), start=1):
        found[f"weight{layer}"] = torch.randn(1, before, after, generator=draw) / math.sqrt(before)
        found[f"bias{layer}"] = torch.zeros(1, 1, after)
    return found


def waves(count: int, shots: int, draw: torch.Generator) -> tuple[Batch, Batch]:
    """`shots` examples to learn from and 20 to be judged by, of each of `count` sine waves."""
    amplitude = 0.1 + 4.9 * torch.rand(count, 1, 1, generator=draw)
    phase = math.pi * torch.rand(count, 1, 1, generator=draw)
    x = 10 * torch.rand(count, shots + 20, 1, generator=draw) - 5
    y = amplitude * torch.sin(x + phase)
    return (x[:, :shots], y[:, :shots]), (x[:, shots:], y[:, shots:])


PROBLEM = BilevelProblem(loss, loss, SGD(INNER_LR))


def start(alphas: Tree, tasks: int) -> Tree:
    """Weights 0 for every task."""
    return trees.map_tree(lambda alpha: alpha.new_zeros(tasks, *alpha.shape[1:]), alphas)


def judge(alphas: Tree, draw: torch.Generator) -> float:
    """Mean squared error on new tasks after the inner steps."""
    support, query = waves(500, SHOTS, draw)
    state = PROBLEM.run(PROBLEM.init(start(alphas, 500)), alphas, [support] * INNER_STEPS).end
    return float(loss(state.weights, alphas, query)) / 500


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns the mean squared errors."""
    parser = argparse.ArgumentParser(description="learning to learn sine waves from five examples")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the common start")
    options = parser.parse_args(arguments)

    found = {}
    for name, estimator in {"none": None, **ESTIMATORS}.items():
        draw = torch.Generator().manual_seed(0)
        alphas = first_alphas(draw)
        if estimator is not None:
            adam = torch.optim.Adam(alphas.values(), lr=2e-3)
            for _ in range(options.steps):
                support, query = waves(TASKS, SHOTS, draw)
                state = PROBLEM.init(start(alphas, TASKS))
                result = estimator(PROBLEM, state, alphas, [support] * INNER_STEPS, query)
                for key, alpha in alphas.items():
                    alpha.grad = result.grad[key] / TASKS
                adam.step()
            alphas = trees.detach(alphas)
        found[name] = judge(alphas, torch.Generator().manual_seed(1))
        print(
            f"error after {SHOTS} examples and {INNER_STEPS} steps, {name:12}{found[name]:7.3f}", flush=True
        )
    return found


if __name__ == "__main__":
    main()
