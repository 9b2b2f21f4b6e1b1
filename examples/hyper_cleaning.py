"""Data hyper-cleaning: which training labels are wrong? No network is searched here: one alpha an image.

    python examples/hyper_cleaning.py [--estimator unrolled] [--steps 150]

Expected, in 15 seconds on one core (other estimators are compared in docs/choosing.md):

    test accuracy, all labels as given       85.8 %
    test accuracy, the known ones alone      89.7 %
    test accuracy, cleaned                   92.2 %
    test accuracy, only right labels         94.4 %
    labels told right from wrong             92.2 %

Half of 600 training labels are wrong, 150 more images have labels that are known to be right. The weights
learn from the 600, each as much as it is trusted; the trust is what lowers the loss on the 150.
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sgenas import data, trees
from sgenas.bilevel import SGD, SGE, BilevelProblem, Estimator, FiniteDifference, FirstOrder, Unrolled

NOISY, CLEAN, WRONG = 600, 150, 0.5
INNER_STEPS, TRAINING_STEPS = 5, 1000
DECAY = 0.01
ESTIMATORS: dict[str, Estimator] = {
    "unrolled": Unrolled(),
    "second-order": FiniteDifference(),
    "sge": SGE(20, control_variate=("finite-difference",)),
    "first-order": FirstOrder(),  # finds nothing: the outer loss knows the alphas only through the weights
}

Batch = tuple[Tensor, Tensor]


def logits(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """A linear classifier."""
    return F.linear(images, weights["weight"], weights["bias"])


def inner_loss(weights: dict[str, Tensor], alphas: dict[str, Tensor], batch: Batch) -> Tensor:
    """Training images, each as much as it is trusted, and a little weight decay."""
    images, labels = batch
    each = F.cross_entropy(logits(weights, images), labels, reduction="none")
    squares = sum(weight.square().sum() for weight in weights.values())
    return (torch.sigmoid(alphas["trust"]) * each).mean() + DECAY * squares / 2


def outer_loss(weights: dict[str, Tensor], alphas: dict[str, Tensor], batch: Batch) -> Tensor:  # noqa: ARG001
    """The few images whose labels are known to be right."""
    return F.cross_entropy(logits(weights, batch[0]), batch[1])


def trained(images: Tensor, labels: Tensor, trust: Tensor) -> dict[str, Tensor]:
    """The classifier after TRAINING_STEPS on these images with this trust."""
    problem = BilevelProblem(inner_loss, outer_loss, SGD(0.5, momentum=0.9))
    start = problem.init({"weight": torch.zeros(10, 64), "bias": torch.zeros(10)})
    return problem.run(start, {"trust": trust}, [(images, labels)] * TRAINING_STEPS).end.weights


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns the accuracies, in per cent."""
    parser = argparse.ArgumentParser(description="hyper-cleaning of wrong labels on digits")
    parser.add_argument("--estimator", choices=list(ESTIMATORS), default="unrolled")
    parser.add_argument("--steps", type=int, default=150, help="steps of the trust")
    options = parser.parse_args(arguments)

    draw = torch.Generator().manual_seed(0)
    digits = data.load("digits")
    order = torch.randperm(len(digits.train), generator=draw)
    pixels, labels = digits.train.images.flatten(1)[order] / 127.5 - 1, digits.train.labels[order]
    noisy, clean = slice(NOISY), slice(NOISY, NOISY + CLEAN)
    wrong = torch.rand(NOISY, generator=draw) < WRONG
    shift = torch.randint(1, 10, (NOISY,), generator=draw)
    given = torch.where(wrong, (labels[noisy] + shift) % 10, labels[noisy])
    train, known = (pixels[noisy], given), (pixels[clean], labels[clean])

    # the bilevel part: five steps of the weights, one of the trust, on all images every time
    problem = BilevelProblem(inner_loss, outer_loss, SGD(0.5, momentum=0.9))
    estimator = ESTIMATORS[options.estimator]
    alphas = {"trust": torch.zeros(NOISY)}
    state = problem.init({"weight": torch.zeros(10, 64), "bias": torch.zeros(10)})
    adam = torch.optim.Adam(alphas.values(), lr=0.2)
    memory = None
    for _ in range(options.steps):
        result = estimator(
            problem, state, alphas, [train] * INNER_STEPS, known, generator=draw, memory=memory
        )
        state, memory = result.state, result.indirect
        alphas["trust"].grad = result.grad["trust"]
        adam.step()
    alphas = trees.detach(alphas)

    together = (torch.cat([train[0], known[0]]), torch.cat([train[1], known[1]]))
    sure = torch.full((NOISY,), 10.0), torch.full((CLEAN,), 10.0)
    networks = {
        "all labels as given": trained(*together, torch.cat(sure)),
        "the known ones alone": trained(*known, sure[1]),
        "cleaned": trained(*together, torch.cat([alphas["trust"], sure[1]])),
        "only right labels": trained(pixels[noisy][~wrong], given[~wrong], sure[0][~wrong]),
    }
    test = digits.test.images.flatten(1) / 127.5 - 1
    found = {}
    for name, weights in networks.items():
        right = logits(weights, test).argmax(dim=1) == digits.test.labels
        found[name] = 100 * float(right.float().mean())
        print(f"test accuracy, {name:24}{found[name]:6.1f} %")
    trusted = alphas["trust"] > 0
    found["recognised"] = 100 * float((trusted == ~wrong).float().mean())
    print(f"labels told right from wrong           {found['recognised']:6.1f} %")
    return found


if __name__ == "__main__":
    main()
