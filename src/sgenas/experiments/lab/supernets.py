"""The laboratory's problems on images: the supernets of DARTS and NAS-Bench-201."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgenas import data
from sgenas.bilevel import FirstOrder
from sgenas.engine.parts import generator, seed_of
from sgenas.errors import DataError
from sgenas.experiments.lab.problems import LabProblem, Stream
from sgenas.spaces import space, stacked_cross_entropy
from sgenas.trees import Tree

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SupernetSettings:
    """Images and size of a supernet; the flags of the same names explain them."""

    data: str
    train_images: int
    channels: int
    layers: int
    cells: int
    nodes: int
    activation: str
    pooling: str


def supernet(name: str, settings: SupernetSettings, seed: int) -> LabProblem:
    """The supernet of the space `name`, half of the images for the inner loss, half for the outer one.

    Both losses are the mean cross-entropy; images are normalised, and not augmented, so that a batch is
    what it is for everyone. The alphas move by first order before a moment: its cost is the least, and the
    direct part is most of the hypergradient here. Raises DataError or ConfigError for bad settings.
    """
    try:
        images = data.load(
            settings.data, limit=settings.train_images, seed=seed_of(seed, "sample"), test=False
        )
        first, second = data.split_stratified(images.train.labels, 0.5, generator(seed, "split"))
    except DataError as error:
        raise DataError(f"--data {settings.data} --train-images {settings.train_images}: {error}") from None
    inner, outer = images.train.subset(first), images.train.subset(second)
    mean, std = data.statistics(inner.images)
    plain = data.Augmentation(pad=0, mirror=False, mean=mean, std=std)
    own = (
        {"layers": settings.layers, "nodes": settings.nodes, "pooling": settings.pooling}
        if name == "darts"
        else {"cells": settings.cells}
    )
    made = space(
        name,
        channels=settings.channels,
        classes=len(images.classes),
        input_channels=images.channels,
        activation=settings.activation,
        generator=generator(seed, "weights"),
        **own,
    )

    def loss(weights: Tree, alphas: Tree, batch: Batch) -> Tensor:
        return F.cross_entropy(made.logits(weights, alphas, batch[0]), batch[1])

    def stacked(weights: Tree, alphas: Tree, batch: Batch) -> Tensor:
        return stacked_cross_entropy(made.stacked_logits(weights, alphas, batch[0]), batch[1])

    return LabProblem(
        loss,
        loss,
        made.initial_weights(generator(seed, "weights")),
        made.initial_alphas(generator(seed, "alphas")),
        _stream(inner, plain),
        _stream(outer, plain),
        trainer=FirstOrder(),
        stacked_loss=stacked,
        most_examples=min(len(inner), len(outer)),
    )


def _stream(images: data.ImageSet, plain: data.Augmentation) -> Stream:
    def stream(draw: torch.Generator, examples: int) -> Iterator[Batch]:
        return data.BatchStream(images, examples, plain, draw)

    return stream
