"""A decay for every single weight, learned: half of the inputs are noise, and the decays find out which.

    python examples/weight_decay.py [--estimator unrolled] [--steps 150]

Expected, in 20 seconds on one core (other estimators are compared in docs/choosing.md):

    test accuracy, almost no decay       80.2 %
    test accuracy, best common decay     81.6 %
    test accuracy, learned decays        91.6 %
    weights of noise decay 4.1 times as strongly as those of pixels

200 images train the weights of a linear classifier, 400 others its 1,290 decays.
"""

import argparse
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sgenas import data, trees
from sgenas.bilevel import SGD, SGE, BilevelProblem, ConjugateGradient, Estimator, Neumann, Unrolled
from sgenas.trees import Tree

TRAIN, VALIDATION, NOISE = 200, 400, 64
INNER_STEPS, TRAINING_STEPS = 10, 2000
START = math.log(1e-3)
ESTIMATORS: dict[str, Estimator] = {
    "unrolled": Unrolled(),
    "unrolled-last": Unrolled(last_steps=2),
    "neumann": Neumann(10, scale=0.05),  # below 2 / the largest curvature
    "cg": ConjugateGradient(10),
    "sge": SGE(20, control_variate=("finite-difference",)),
}

Batch = tuple[Tensor, Tensor]


def logits(weights: Tree, inputs: Tensor) -> Tensor:
    """A linear classifier of pixels and noise."""
    return F.linear(inputs, weights["weight"], weights["bias"])


def inner_loss(weights: Tree, alphas: Tree, batch: Batch) -> Tensor:
    """Cross-entropy + sum_i exp(alpha_i) w_i^2 / 2."""
    decay = torch.stack([(alphas[name].exp() * weights[name].square()).sum() for name in weights]).sum()
    return F.cross_entropy(logits(weights, batch[0]), batch[1]) + decay / 2


def outer_loss(weights: Tree, alphas: Tree, batch: Batch) -> Tensor:  # noqa: ARG001
    """Cross-entropy on other images, no decay."""
    return F.cross_entropy(logits(weights, batch[0]), batch[1])


PROBLEM = BilevelProblem(inner_loss, outer_loss, SGD(0.2, momentum=0.9))


def start() -> Tree:
    """The classifier's first weights."""
    return {"weight": torch.zeros(10, 64 + NOISE), "bias": torch.zeros(10)}


def decays(value: float) -> Tree:
    """log decays, the same for all weights."""
    return trees.map_tree(lambda weight: torch.full_like(weight, value), start())


def trained(alphas: Tree, batch: Batch) -> Tree:
    """The classifier after TRAINING_STEPS with these log decays."""
    return PROBLEM.run(PROBLEM.init(start()), alphas, [batch] * TRAINING_STEPS).end.weights


def accuracy(weights: Tree, batch: Batch) -> float:
    """In per cent."""
    return 100 * float((logits(weights, batch[0]).argmax(dim=1) == batch[1]).float().mean())


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns the test accuracies in per cent, and how much more the noise is held down."""
    parser = argparse.ArgumentParser(
        description="per-parameter weight decay on digits with noise beside them"
    )
    parser.add_argument("--estimator", choices=list(ESTIMATORS), default="unrolled")
    parser.add_argument("--steps", type=int, default=150, help="steps of the decays")
    options = parser.parse_args(arguments)

    draw = torch.Generator().manual_seed(0)
    digits = data.load("digits")

    def part(images: data.ImageSet, indices: Tensor) -> Batch:
        pixels = images.images[indices].flatten(1) / 127.5 - 1
        noise = torch.randn(len(indices), NOISE, generator=draw)
        return torch.cat([pixels, noise], dim=1), images.labels[indices]

    order = torch.randperm(len(digits.train), generator=draw)
    train = part(digits.train, order[:TRAIN])
    validation = part(digits.train, order[TRAIN : TRAIN + VALIDATION])
    test = part(digits.test, torch.arange(len(digits.test)))

    estimator = ESTIMATORS[options.estimator]
    alphas, state, memory = decays(START), PROBLEM.init(start()), None
    adam = torch.optim.Adam(alphas.values(), lr=0.1)
    for _ in range(options.steps):
        result = estimator(
            PROBLEM, state, alphas, [train] * INNER_STEPS, validation, generator=draw, memory=memory
        )
        state, memory = result.state, result.indirect
        for name, alpha in alphas.items():
            alpha.grad = result.grad[name]
        adam.step()
        for alpha in alphas.values():
            # a decay of 1 has done all it can: more would only make the inner steps unstable
            alpha.clamp_(max=0)
    alphas = trees.detach(alphas)

    # what one would do without: the best of some common decays, by the same validation images
    grid = [trained(decays(math.log(decay)), train) for decay in (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3)]
    best = max(grid, key=lambda weights: accuracy(weights, validation))
    found = {
        "almost no decay": accuracy(grid[0], test),
        "best common decay": accuracy(best, test),
        "learned decays": accuracy(trained(alphas, train), test),
    }
    for name, value in found.items():
        print(f"test accuracy, {name:20}{value:6.1f} %")
    pixels, noise = alphas["weight"].split([64, NOISE], dim=1)
    found["noise over pixels"] = float((noise.mean() - pixels.mean()).exp())
    print(f"weights of noise decay {found['noise over pixels']:.1f} times as strongly as those of pixels")
    return found


if __name__ == "__main__":
    main()
