"""Learn a separate weight-decay coefficient for each weight of a linear classifier.

    python examples/weight_decay.py [--estimator unrolled] [--steps 150]

Half of the inputs are noise, and the coefficients find out which. 200 images train the 1,290 weights, 400 others
their coefficients. Expected after 20 seconds on one core:

    test accuracy, almost no decay       80.2 %
    test accuracy, best common decay     81.6 %
    test accuracy, learned decays        91.6 %
    weights of noise decay 4.1 times as strongly as weights of pixels
"""

import argparse
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import sgenas as sg
from sgenas.tree import TensorDict

TRAIN, VALIDATION, NOISE = 200, 400, 64
INNER_STEPS, TRAINING_STEPS = 10, 2000
ESTIMATORS = {
    "unrolled": sg.Unrolled(),
    "truncated": sg.Unrolled(truncate=2),
    # the scale must be below 2 / the largest eigenvalue of the Hessian
    "neumann": sg.Neumann(max_hvps=10, scale=0.05),
    "conjugate-gradient": sg.ConjugateGradient(max_hvps=10),
    "sge": sg.SGE(num_directions=20, control_variate="finite-difference"),
}
Batch = tuple[Tensor, Tensor]


def logits(weights: TensorDict, inputs: Tensor) -> Tensor:
    return F.linear(inputs, weights["weight"], weights["bias"])


def outer_loss(weights: TensorDict, alphas: TensorDict, batch: Batch) -> Tensor:
    """Cross-entropy, without decay."""
    return F.cross_entropy(logits(weights, batch[0]), batch[1])


def inner_loss(weights: TensorDict, alphas: TensorDict, batch: Batch) -> Tensor:
    """Cross-entropy + sum_i exp(alpha_i) w_i^2 / 2."""
    decay = sum((alphas[name].exp() * weights[name].square()).sum() for name in weights)
    return outer_loss(weights, alphas, batch) + decay / 2


PROBLEM = sg.BilevelProblem(inner_loss, outer_loss, sg.optim.SGD(lr=0.2, momentum=0.9))
START = {"weight": torch.zeros(10, 64 + NOISE), "bias": torch.zeros(10)}


def decays(value: float) -> TensorDict:
    """The same coefficient for all weights."""
    return {name: torch.full_like(weight, math.log(value)) for name, weight in START.items()}


def train(alphas: TensorDict, batch: Batch) -> TensorDict:
    """The classifier's weights after TRAINING_STEPS."""
    return PROBLEM.run(PROBLEM.init(START), alphas, [batch] * TRAINING_STEPS).end.weights


def accuracy(weights: TensorDict, batch: Batch) -> float:
    """In percent."""
    return 100 * float((logits(weights, batch[0]).argmax(dim=1) == batch[1]).float().mean())


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns the test accuracies, and how much more strongly noise decays than pixels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", choices=list(ESTIMATORS), default="unrolled")
    parser.add_argument("--steps", type=int, default=150, help="steps of the coefficients")
    options = parser.parse_args(arguments)

    draw = torch.Generator().manual_seed(0)
    digits = sg.data.load("digits")

    def part(images: sg.data.ImageSet, indices: Tensor) -> Batch:
        noise = torch.randn(len(indices), NOISE, generator=draw)
        return torch.cat([images.images[indices].flatten(1) / 127.5 - 1, noise], dim=1), images.labels[indices]

    order = torch.randperm(len(digits.train), generator=draw)
    training = part(digits.train, order[:TRAIN])
    validation = part(digits.train, order[TRAIN : TRAIN + VALIDATION])
    test = part(digits.test, torch.arange(len(digits.test)))

    alphas, state = decays(1e-3), PROBLEM.init(START)
    adam = torch.optim.Adam(alphas.values(), lr=0.1)
    for _ in range(options.steps):
        adam.zero_grad()
        result = ESTIMATORS[options.estimator](
            PROBLEM, state, alphas, [training] * INNER_STEPS, validation, generator=draw
        )
        result.backward()
        adam.step()
        state = result.state
        for alpha in alphas.values():
            # more than 1 would make the inner steps unstable
            alpha.clamp_(max=0)

    # the alternative: the best common coefficient, chosen by the same validation images
    common = [train(decays(value), training) for value in (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3)]
    found = {
        "almost no decay": accuracy(common[0], test),
        "best common decay": accuracy(max(common, key=lambda weights: accuracy(weights, validation)), test),
        "learned decays": accuracy(train(alphas, training), test),
    }
    for name, value in found.items():
        print(f"test accuracy, {name:20}{value:6.1f} %")
    pixels, noise = alphas["weight"].split([64, NOISE], dim=1)
    found["noise over pixels"] = float((noise.mean() - pixels.mean()).exp())
    print(f"weights of noise decay {found['noise over pixels']:.1f} times as strongly as weights of pixels")
    return found


if __name__ == "__main__":
    main()
