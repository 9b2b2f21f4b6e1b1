"""Problems of the benchmark: two with closed-form hypergradients, two on scikit-learn's digits, and supernets."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from sgenas import data, losses, tree
from sgenas.bilevel import BilevelProblem, Estimator, FiniteDifference, FirstOrder
from sgenas.bilevel.test_problems import Quadratic, WeightDecay
from sgenas.optim import InnerOptimizer
from sgenas.random import generator, seed_of
from sgenas.run.config import from_plain
from sgenas.searching.objectives import Objectives
from sgenas.spaces import SPACES
from sgenas.tree import TensorDict

HIDDEN = 16
"""Hidden units of the networks on digits."""
WRONG = 0.4
"""Share of wrong training labels in ``hyper-cleaning``."""
Stream = Callable[[torch.Generator, int], Iterator[Any]]
"""(generator, batch size) -> endless batches."""


@dataclass(frozen=True)
class Problem:
    """A bilevel problem with its initial weights and alphas and its data.

    Args:
        bilevel: Inner optimizer -> bilevel problem.
        weights: Initial weights.
        alphas: Initial outer variables.
        inner_stream: Batches of the inner loss.
        outer_stream: Batches of the outer loss.
        warmup_estimator: How the warm-up moves the alphas.
        dtype: The only precision in which it can be computed; None for any.
        most_examples: Largest batch size.
    """

    bilevel: Callable[[InnerOptimizer], BilevelProblem]
    weights: TensorDict
    alphas: TensorDict
    inner_stream: Stream
    outer_stream: Stream
    warmup_estimator: Estimator = FiniteDifference()  # noqa: RUF009 (frozen)
    dtype: torch.dtype | None = None
    most_examples: int | None = None

    def to(self, device: torch.device) -> "Problem":
        """The same with everything on ``device``."""

        def moved(stream: Stream) -> Stream:
            return lambda draw, size: (to_device(batch, device) for batch in stream(draw, size))

        return replace(
            self,
            weights=tree.to(self.weights, device),
            alphas=tree.to(self.alphas, device),
            inner_stream=moved(self.inner_stream),
            outer_stream=moved(self.outer_stream),
        )

    def batches(self, draw: int, size: int, steps: int, seed: int) -> tuple[list[Any], Any]:
        """(N inner batches, outer batch) number ``draw``, the same for every estimator; a smaller N takes the first."""
        inner = self.inner_stream(generator(seed, f"inner {draw}"), size)
        outer = self.outer_stream(generator(seed, f"outer {draw}"), size)
        return [next(inner) for _ in range(steps)], next(outer)


def to_device(values: Any, device: torch.device) -> Any:
    """A batch or state with its tensors on ``device``."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), values)


def to_dtype(values: Any, dtype: torch.dtype) -> Any:
    """A batch or state with its floating-point tensors in ``dtype``; labels and indices stay as they are."""
    return pytree.tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, values)


@dataclass(frozen=True)
class Defaults:
    """A problem and what it is measured with by default.

    Args:
        make: (seed, images, settings of the space, device) -> problem.
        inner_lr: Learning rate of the inner steps.
        weight_decay: Their weight decay.
        alpha_lr: Learning rate of the alphas in the warm-up.
        batch_size: Batch size, inner and outer.
        warmup_steps: Warm-up checkpoints.
    """

    make: Callable[[int, "Images", Mapping[str, Any], torch.device], Problem]
    inner_lr: float
    weight_decay: float
    alpha_lr: float
    batch_size: int
    warmup_steps: tuple[int, ...]


@dataclass(frozen=True)
class Images:
    """Dataset of a supernet, and how many of its training images are used."""

    data: str
    count: int


# -- closed forms: every difference is exact, so only sampling is measured --------------------------------------


def _normal_stream(size: int) -> Stream:
    """The mean of B standard normal vectors."""

    def stream(draw: torch.Generator, examples: int) -> Iterator[Tensor]:
        while True:
            yield torch.randn(size, generator=draw, dtype=torch.float64) / math.sqrt(examples)

    return stream


def _toy(toy: Quadratic | WeightDecay) -> Problem:
    stream = _normal_stream(len(toy.offset))
    return Problem(toy.problem, toy.weights, toy.alphas, stream, stream, dtype=torch.float64)


# -- digits -----------------------------------------------------------------------------------------------------


def _hyper_cleaning(seed: int) -> Problem:
    r"""Which training labels are wrong? One alpha for each of 719 digits, 40 % of them with a wrong label.

        L_train(w, a; B) = 1/|B| sum_{i in B} sigmoid(a_i) cross_entropy_i(w) + 0.001 ||w||^2 / 2
        L_val(w; B) = mean cross-entropy on digits with right labels

    of a network with one hidden layer of HIDDEN units (tanh).
    """
    clean, right = _digits(seed)
    draw = generator(seed, "labels")
    wrong = torch.rand(len(clean), generator=draw) < WRONG
    # never the right label by chance
    shift = torch.randint(1, 10, (len(clean),), generator=draw)
    noisy = data.ImageSet(clean.images, torch.where(wrong, (clean.labels + shift) % 10, clean.labels))

    def inner_loss(weights: TensorDict, alphas: TensorDict, batch: Any) -> Tensor:
        index, pixels, labels = batch
        each = F.cross_entropy(_logits(weights, pixels), labels, reduction="none")
        decay = torch.stack([weight.square().sum() for weight in weights.values()]).sum()
        return (torch.sigmoid(alphas["trust"][index]) * each).mean() + 0.0005 * decay

    return _on_digits(inner_loss, seed, {"trust": torch.zeros(len(noisy))}, noisy, right)


def _weight_decay(seed: int) -> Problem:
    r"""A decay for every weight of the network of ``hyper-cleaning``: 1,210 alphas.

    L_train(w, a; B) = mean cross-entropy + sum_i exp(a_i) w_i^2 / 2, a_i = log 0.001 at first; L_val without decay.
    """
    first, second = _digits(seed)

    def inner_loss(weights: TensorDict, alphas: TensorDict, batch: Any) -> Tensor:
        decay = sum((alphas[name].exp() * weight.square()).sum() for name, weight in weights.items())
        return _cross_entropy(weights, alphas, batch) + decay / 2

    alphas = {name: torch.full_like(weight, math.log(0.001)) for name, weight in _network(seed).items()}
    return _on_digits(inner_loss, seed, alphas, first, second)


def _on_digits(inner_loss: Any, seed: int, alphas: TensorDict, first: data.ImageSet, second: data.ImageSet) -> Problem:
    return Problem(
        lambda optimizer: BilevelProblem(inner_loss, _cross_entropy, optimizer),
        _network(seed),
        alphas,
        _example_stream(first),
        _example_stream(second),
        most_examples=min(len(first), len(second)),
    )


def _digits(seed: int) -> tuple[data.ImageSet, data.ImageSet]:
    images = data.load("digits", test=False).train
    first, second = data.split_stratified(images.labels, 0.5, generator(seed, "split"))
    return images.subset(first), images.subset(second)


def _network(seed: int) -> TensorDict:
    draw = generator(seed, "weights")
    return {
        "first.weight": torch.randn(HIDDEN, 64, generator=draw) / 8,
        "first.bias": torch.zeros(HIDDEN),
        "second.weight": torch.randn(10, HIDDEN, generator=draw) / math.sqrt(HIDDEN),
        "second.bias": torch.zeros(10),
    }


def _logits(weights: TensorDict, pixels: Tensor) -> Tensor:
    hidden = torch.tanh(F.linear(pixels, weights["first.weight"], weights["first.bias"]))
    return F.linear(hidden, weights["second.weight"], weights["second.bias"])


def _cross_entropy(weights: TensorDict, alphas: TensorDict, batch: Any) -> Tensor:
    return F.cross_entropy(_logits(weights, batch[1]), batch[2])


def _example_stream(images: data.ImageSet) -> Stream:
    """Batches (index, pixels, labels): (B,), (B, 64) from -1 to 1, (B,)."""
    pixels = images.images.flatten(1) / 127.5 - 1

    def stream(draw: torch.Generator, examples: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            order = torch.randperm(len(images), generator=draw)
            for index in order[: len(order) // examples * examples].reshape(-1, examples):
                yield index, pixels[index], images.labels[index]

    return stream


# -- supernets --------------------------------------------------------------------------------------------------


def _supernet(
    name: str, sizes: Mapping[str, Any], seed: int, images: Images, settings: Mapping[str, Any], device: torch.device
) -> Problem:
    """The supernet of a space: half of the images for each loss, both the mean cross-entropy, no augmentation.

    The warm-up is first order: its cost is least, and the direct gradient is most of the hypergradient here.
    """
    found = data.load(images.data, train_images=images.count, seed=seed_of(seed, "sample"), test=False)
    first, second = data.split_stratified(found.train.labels, 0.5, generator(seed, "split"))
    inner, outer = found.train.subset(first), found.train.subset(second)
    mean, std = data.statistics(inner.images)
    plain = data.Augmentation(pad=0, horizontal_flip=False, mean=mean, std=std)
    space = from_plain(SPACES.get(name), {**sizes, **settings}, "space")
    space = space.build(found.channels, len(found.classes)).to(device)
    objectives = Objectives(space, losses.cross_entropy, "float32", device)

    def stream(part: data.ImageSet) -> Stream:
        return lambda draw, examples: data.BatchStream(part, examples, plain, draw)

    return Problem(
        lambda optimizer: objectives.problem(optimizer, [], None),
        space.initial_weights(generator(seed, "weights")),
        space.initial_alphas(generator(seed, "alphas")),
        stream(inner),
        stream(outer),
        warmup_estimator=FirstOrder(),
        most_examples=min(len(inner), len(outer)),
    )


def _of_space(name: str, **sizes: Any) -> Defaults:
    def make(seed: int, images: Images, settings: Mapping[str, Any], device: torch.device) -> Problem:
        return _supernet(name, sizes, seed, images, settings, device)

    return Defaults(make, 0.025, 3e-4, 3e-3, 64, (0, 60, 300))


PROBLEMS = {
    "quadratic": Defaults(
        lambda seed, *_: _toy(Quadratic.random(generator(seed, "toy"))), 0.1, 0.0, 0.05, 16, (0, 100)
    ),
    "weight-decay-toy": Defaults(
        lambda seed, *_: _toy(WeightDecay.random(generator(seed, "toy"), size=20)), 0.1, 0.0, 0.05, 16, (0, 100)
    ),
    "hyper-cleaning": Defaults(lambda seed, *_: _hyper_cleaning(seed), 0.2, 0.0, 0.1, 64, (0, 300)),
    "weight-decay": Defaults(lambda seed, *_: _weight_decay(seed), 0.2, 0.0, 0.1, 64, (0, 300)),
    "darts": _of_space("darts", channels=4, layers=3),
    "nasbench201": _of_space("nasbench201", channels=4, layers=1),
}
"""Problems by name; a new one gets its row here. The first four take seconds."""
