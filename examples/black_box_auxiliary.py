"""Learn the weights of six auxiliary losses of a training with Adam and early stopping.

    python examples/black_box_auxiliary.py [--workers 1] [--estimator evolution-strategies] [--steps 20]

A network learns ten digits from 100 labeled images. Auxiliary outputs of the same features predict the pixels, the
sums of the rows, whether the digit is odd, whether it is above four, random labels, and random numbers: some help,
some harm. Adam trains until the loss of 150 other images has not improved for 15 steps, and the best weights are kept.
The logarithms of the six weights are learned from the loss of 300 validation images, with three trainings per step.
Expected after a minute on one core:

    test loss, equal weights      0.416
    test loss, learned weights    0.384
    helpful losses weigh 2.8 times as much as harmful ones
"""

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sgenas as sg

LABELED, STOPPING, VALIDATION = 100, 150, 300
TRAINING_STEPS, PATIENCE = 60, 15
NAMES = ("pixels", "row sums", "odd", "above four", "random labels", "random numbers")
ESTIMATORS = {
    "sge": sg.SGE(num_directions=2, smoothing=0.3, directions="orthogonal"),
    "evolution-strategies": sg.EvolutionStrategies(num_directions=2, smoothing=0.3, directions="orthogonal"),
}
Part = tuple[Tensor, Tensor]


@functools.cache
def load(draw: int) -> dict[str, Part]:
    """Images and labels of each part."""
    generator = torch.Generator().manual_seed(draw)
    digits = sg.data.load("digits")
    order = torch.randperm(len(digits.train), generator=generator)
    parts = dict(
        zip(
            ("training", "stopping", "validation"),
            order.split([LABELED, STOPPING, len(order) - LABELED - STOPPING]),
            strict=True,
        )
    )
    parts["validation"] = parts["validation"][:VALIDATION]
    found = {
        name: (digits.train.images[index].flatten(1) / 255, digits.train.labels[index]) for name, index in parts.items()
    }
    return found | {"test": (digits.test.images.flatten(1) / 255, digits.test.labels)}


SIZES = (64, 8, 2, 2, 10, 8)
"""Outputs of the auxiliary heads."""


class Network(nn.Module):
    """Features, ten classes, and the auxiliary heads as one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.classes = nn.Linear(64, 10)
        self.heads = nn.Linear(64, sum(SIZES))

    def forward(self, images: Tensor) -> Tensor:
        return self.classes(self.features(images))


@dataclass(frozen=True)
class Task:
    """``draw``: seed of the data."""

    draw: int = 0

    def start(self) -> Tensor:
        return torch.zeros(len(NAMES))

    def train(self, alphas: Tensor, seed: int) -> nn.Module:
        parts = load(self.draw)
        images, labels = parts["training"]
        noise = torch.Generator().manual_seed(self.draw)
        targets = [
            images,
            images.view(-1, 8, 8).sum(2),
            labels % 2,
            (labels > 4).long(),
            torch.randint(10, labels.shape, generator=noise),
            torch.randn(len(labels), 8, generator=noise),
        ]
        torch.manual_seed(seed)
        model, weights = Network(), alphas.exp()
        adam = torch.optim.Adam(model.parameters(), lr=2e-2, fused=True)
        best, best_step, kept = float("inf"), 0, model.state_dict()
        for step in range(TRAINING_STEPS):
            features = model.features(images)
            loss = F.cross_entropy(model.classes(features), labels)
            for weight, predicted, target in zip(weights, model.heads(features).split(SIZES, 1), targets, strict=True):
                part = (
                    F.mse_loss(predicted, target) if target.is_floating_point() else F.cross_entropy(predicted, target)
                )
                loss = loss + weight * part
            adam.zero_grad()
            loss.backward()
            adam.step()
            if step % 5 == 4:
                with torch.no_grad():
                    stopping = float(F.cross_entropy(model(parts["stopping"][0]), parts["stopping"][1]))
                if stopping < best:
                    best, best_step = stopping, step
                    kept = {name: value.clone() for name, value in model.state_dict().items()}
                elif step - best_step >= PATIENCE:
                    break
        model.load_state_dict(kept)
        return model

    def outer_loss(self, weights: dict[str, Tensor], alphas: Any, batch: str) -> Tensor:
        """Cross-entropy of the "validation" or "test" images."""
        images, labels = load(self.draw)[batch]
        return F.cross_entropy(torch.func.functional_call(Network(), weights, images), labels)

    def accuracy(self, weights: dict[str, Tensor]) -> float:
        """Of the test images, in percent."""
        images, labels = load(self.draw)["test"]
        return 100 * float((torch.func.functional_call(Network(), weights, images).argmax(1) == labels).float().mean())


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns the test losses, and how much more the helpful losses weigh than the harmful ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", choices=list(ESTIMATORS), default="evolution-strategies")
    parser.add_argument("--steps", type=int, default=20, help="steps of the weights")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
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
    helpful, harmful = alphas.detach()[:4].mean(), alphas.detach()[4:].mean()
    ratio = float((helpful - harmful).exp())
    print(f"test loss, equal weights    {losses[0]:7.3f}")
    print(f"test loss, learned weights  {losses[-1]:7.3f}")
    print(f"helpful losses weigh {ratio:.1f} times as much as harmful ones")
    return {"equal": losses[0], "learned": losses[-1], "ratio": ratio}


if __name__ == "__main__":
    main()
