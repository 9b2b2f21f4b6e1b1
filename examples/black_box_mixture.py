"""Learn how much to trust five data sources, around a training that is never differentiated.

    python examples/black_box_mixture.py [--estimator evolution-strategies] [--steps 20] [--run-dir DIRECTORY]

Of five sources of digits one is clean, one has only the digits 0 to 4, one has half of its labels wrong, one all of
them, and one has inverted images. A perceptron is trained by SGD with momentum on images that are weighted by the
softmax of five numbers. These are learned from the loss of 300 clean images, with three trainings per step. The
trained weights jump with the five numbers, so evolution strategies are better here than SGE. With --run-dir a killed
run resumes. Expected after a minute on one core:

    test accuracy, equal weights      76.9 %
    test accuracy, learned weights    86.9 %
    weight of the clean sources       85.3 %
"""

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sgenas as sg

SOURCES, PER_SOURCE, VALIDATION = 5, 150, 300
TRAINING_STEPS, BATCH = 60, 64
ESTIMATORS = {
    "sge": sg.SGE(num_directions=2, smoothing=0.3, directions="orthogonal"),
    "evolution-strategies": sg.EvolutionStrategies(num_directions=2, smoothing=0.3, directions="orthogonal"),
}


read = functools.cache(sg.data.load)


@functools.cache
def load(source: str, draw: int) -> dict[str, tuple[Tensor, ...]]:
    """Training images, labels and sources; validation and test images and labels."""
    generator = torch.Generator().manual_seed(draw)
    images = read(source)

    def part(indices: Tensor, data: sg.data.ImageSet = images.train) -> tuple[Tensor, Tensor]:
        pixels = data.images[indices].flatten(1) / 127.5 - 1
        # inputs of the same norm for images of any size
        return pixels * 8 / pixels.shape[1] ** 0.5, data.labels[indices]

    order = torch.randperm(len(images.train), generator=generator)
    few = order[images.train.labels[order] < 5][:PER_SOURCE]
    others = order[~torch.isin(order, few)]
    rest = others[: 4 * PER_SOURCE].split(PER_SOURCE)
    pixels, labels = part(torch.cat([rest[0], few, *rest[1:]]))
    half = slice(2 * PER_SOURCE, 2 * PER_SOURCE + PER_SOURCE // 2)
    all_of = slice(3 * PER_SOURCE, 4 * PER_SOURCE)
    for wrong in (half, all_of):
        shift = torch.randint(1, 10, labels[wrong].shape, generator=generator)
        labels[wrong] = (labels[wrong] + shift) % 10
    pixels[4 * PER_SOURCE :] *= -1
    validation = others[4 * PER_SOURCE :][:VALIDATION]
    return {
        "training": (pixels, labels, torch.arange(SOURCES).repeat_interleave(PER_SOURCE)),
        "validation": part(validation),
        "test": part(torch.arange(len(images.test)), images.test),
    }


def network(inputs: int, hidden: int) -> nn.Module:
    """A perceptron, or a linear classifier if ``hidden`` is 0."""
    if not hidden:
        return nn.Linear(inputs, 10)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10))


@dataclass(frozen=True)
class Task:
    """``draw``: seed of the data. ``sampled``: images are drawn by the weights of their sources, not weighted."""

    draw: int = 0
    source: str = "digits"
    sampled: bool = False
    hidden: int = 32

    def start(self) -> Tensor:
        return torch.zeros(SOURCES)

    def train(self, alphas: Tensor, seed: int) -> nn.Module:
        images, labels, sources = load(self.source, self.draw)["training"]
        torch.manual_seed(seed)
        model, shares = network(images.shape[1], self.hidden), alphas.softmax(0)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(TRAINING_STEPS):
            uniform = torch.rand(2, BATCH, generator=generator)
            # common random numbers: a small change of the shares moves few images to another source
            bounds = shares.cumsum(0)[:-1] if self.sampled else torch.arange(1, SOURCES) / SOURCES
            chosen = torch.bucketize(uniform[0], bounds) * PER_SOURCE + (uniform[1] * PER_SOURCE).long()
            losses = F.cross_entropy(model(images[chosen]), labels[chosen], reduction="none")
            weights = torch.ones(BATCH) if self.sampled else SOURCES * shares[sources[chosen]]
            sgd.zero_grad()
            (weights * losses).mean().backward()
            sgd.step()
        return model

    def outer_loss(self, weights: dict[str, Tensor], alphas: Any, batch: str) -> Tensor:
        """Cross-entropy of the "validation" or "test" images."""
        images, labels = load(self.source, self.draw)[batch]
        return F.cross_entropy(self._logits(weights, images), labels)

    def accuracy(self, weights: dict[str, Tensor]) -> float:
        """Of the test images, in percent."""
        images, labels = load(self.source, self.draw)["test"]
        return 100 * float((self._logits(weights, images).argmax(1) == labels).float().mean())

    def _logits(self, weights: dict[str, Tensor], images: Tensor) -> Tensor:
        return torch.func.functional_call(network(images.shape[1], self.hidden), weights, images)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns the test accuracies, and the weight of the two clean sources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", choices=list(ESTIMATORS), default="evolution-strategies")
    parser.add_argument("--steps", type=int, default=20, help="steps of the five numbers")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
    parser.add_argument("--run-dir", help="where a killed run resumes from")
    options = parser.parse_args(arguments)

    task = Task()
    alphas = task.start().requires_grad_()
    adam = torch.optim.Adam([alphas], lr=0.5)
    first, accuracies = 0, list[float]()
    progress = Path(options.run_dir, "progress.pt") if options.run_dir else None
    if progress is not None and progress.exists():
        first, accuracies, value, moments = torch.load(progress)
        alphas.data.copy_(value)
        adam.load_state_dict(moments)
    with sg.BlackBoxProblem(
        task.train, task.outer_loss, workers=options.workers, threads=1, run_dir=options.run_dir
    ) as problem:
        for step in range(first, options.steps + 1):
            estimator = ESTIMATORS[options.estimator] if step < options.steps else sg.FirstOrder()
            result = problem.hypergradient(alphas, "validation", estimator=estimator, seed=step)
            accuracies.append(task.accuracy(result.state.weights))
            adam.zero_grad()
            result.backward()
            adam.step()
            if progress is not None:
                torch.save((step + 1, accuracies, alphas.detach(), adam.state_dict()), progress.with_suffix(".new"))
                progress.with_suffix(".new").replace(progress)
    clean = 100 * float(alphas.detach().softmax(0)[:2].sum())
    print(f"test accuracy, equal weights    {accuracies[0]:6.1f} %")
    print(f"test accuracy, learned weights  {accuracies[-1]:6.1f} %")
    print(f"weight of the clean sources     {clean:6.1f} %")
    return {"equal": accuracies[0], "learned": accuracies[-1], "clean": clean}


if __name__ == "__main__":
    main()
