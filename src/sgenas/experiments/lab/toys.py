"""Problems for the laboratory that take seconds: two with closed forms, two on scikit-learn's digits."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sgenas import data
from sgenas.bilevel import SGD
from sgenas.bilevel.toy import Quadratic, WeightDecay
from sgenas.engine.parts import generator
from sgenas.experiments.lab.problems import LabProblem, Stream
from sgenas.trees import Tree

HIDDEN = 16
"""Hidden units of the networks on digits."""
WRONG = 0.4
"""Share of wrong training labels in `hyper_cleaning`."""

# the losses of a toy do not know their optimiser: the laboratory brings its own
_ANY = SGD(0.1)


def quadratic(seed: int) -> LabProblem:
    """`bilevel.toy.Quadratic`: 7 weights, 6 alphas. Every difference is exact, so only sampling is measured.

    A batch of B examples is the mean of B standard normal vectors.
    """
    toy = Quadratic.random(generator(seed, "toy"))
    bilevel, stream = toy.problem(_ANY), _normal_stream(len(toy.offset))
    return LabProblem(
        bilevel.inner_loss, bilevel.outer_loss, toy.weights, toy.alphas, stream, stream, dtype=torch.float64
    )


def weight_decay_toy(seed: int) -> LabProblem:
    """`bilevel.toy.WeightDecay` with 20 weights and as many alphas, nonlinear in them; batches as there."""
    toy = WeightDecay.random(generator(seed, "toy"), size=20)
    bilevel, stream = toy.problem(_ANY), _normal_stream(len(toy.offset))
    return LabProblem(
        bilevel.inner_loss, bilevel.outer_loss, toy.weights, toy.alphas, stream, stream, dtype=torch.float64
    )


def hyper_cleaning(seed: int) -> LabProblem:
    r"""Which training labels are wrong? One alpha for each of 719 digits, 40 % of them with a wrong label.

        L_train(w, a; B) = 1/|B| sum_{i in B} sigmoid(a_i) cross_entropy_i(w) + 0.001 ||w||^2 / 2
        L_val(w; B) = mean cross-entropy on digits with right labels

    of a network with one hidden layer of HIDDEN units (tanh). Only the alphas of images in the N inner
    batches have a derivative.
    """
    clean, right = _digits(seed)
    draw = generator(seed, "labels")
    wrong = torch.rand(len(clean), generator=draw) < WRONG
    # never the right label by chance
    shift = torch.randint(1, 10, (len(clean),), generator=draw)
    noisy = data.ImageSet(clean.images, torch.where(wrong, (clean.labels + shift) % 10, clean.labels))

    def inner_loss(weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        index, pixels, labels = batch
        each = F.cross_entropy(_logits(weights, pixels), labels, reduction="none")
        return (torch.sigmoid(alphas["trust"][index]) * each).mean() + 0.0005 * _squares(weights)

    def outer_loss(weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:  # noqa: ARG001
        return F.cross_entropy(_logits(weights, batch[1]), batch[2])

    return LabProblem(
        inner_loss,
        outer_loss,
        _network(seed),
        {"trust": torch.zeros(len(noisy))},
        _example_stream(noisy),
        _example_stream(right),
        most_examples=min(len(noisy), len(right)),
    )


def weight_decay(seed: int) -> LabProblem:
    r"""A decay for every single weight of the network of `hyper_cleaning` on digits: 1,210 alphas.

    L_train(w, a; B) = mean cross-entropy + sum_i exp(a_i) w_i^2 / 2, a_i = log 0.001 at first; L_val without
    the decay.
    """
    first, second = _digits(seed)
    weights = _network(seed)

    def inner_loss(weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        decay = sum((alphas[name].exp() * weight.square()).sum() for name, weight in weights.items())
        return outer_loss(weights, alphas, batch) + decay / 2

    def outer_loss(weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:  # noqa: ARG001
        return F.cross_entropy(_logits(weights, batch[1]), batch[2])

    return LabProblem(
        inner_loss,
        outer_loss,
        weights,
        {name: torch.full_like(weight, math.log(0.001)) for name, weight in weights.items()},
        _example_stream(first),
        _example_stream(second),
        most_examples=min(len(first), len(second)),
    )


def _normal_stream(size: int) -> Stream:
    def stream(draw: torch.Generator, examples: int) -> Iterator[Tensor]:
        while True:
            yield torch.randn(size, generator=draw, dtype=torch.float64) / math.sqrt(examples)

    return stream


def _example_stream(images: data.ImageSet) -> Stream:
    """Batches (index, pixels, labels): (B,), (B, 64) from -1 to 1, (B,); every image once a pass."""
    pixels = images.images.flatten(1) / 127.5 - 1

    def stream(draw: torch.Generator, examples: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            order = torch.randperm(len(images), generator=draw)
            for index in order[: len(order) // examples * examples].reshape(-1, examples):
                yield index, pixels[index], images.labels[index]

    return stream


def _digits(seed: int) -> tuple[data.ImageSet, data.ImageSet]:
    """Two halves of the training images."""
    images = data.load("digits", test=False).train
    first, second = data.split_stratified(images.labels, 0.5, generator(seed, "split"))
    return images.subset(first), images.subset(second)


def _network(seed: int) -> Tree:
    draw = generator(seed, "weights")
    return {
        "first.weight": torch.randn(HIDDEN, 64, generator=draw) / 8,
        "first.bias": torch.zeros(HIDDEN),
        "second.weight": torch.randn(10, HIDDEN, generator=draw) / math.sqrt(HIDDEN),
        "second.bias": torch.zeros(10),
    }


def _logits(weights: Tree, pixels: Tensor) -> Tensor:
    hidden = torch.tanh(F.linear(pixels, weights["first.weight"], weights["first.bias"]))
    return F.linear(hidden, weights["second.weight"], weights["second.bias"])


def _squares(weights: Tree) -> Tensor:
    return torch.stack([weight.square().sum() for weight in weights.values()]).sum()
