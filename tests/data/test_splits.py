"""Stratified splits and samples."""

import re

import pytest
import torch

from sgenas.data import sample_stratified, split_stratified
from sgenas.errors import DataError, InvalidValueError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(*counts: int) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=generator(99))]


@pytest.mark.parametrize("counts", [(10, 10, 10), (3, 50, 7, 2), (8, 9), (5, 4, 3, 1000)])
@pytest.mark.parametrize("fraction", [0.5, 0.8, 0.37])
def test_split_parts_the_images_in_proportion(counts, fraction):
    labels = labels_of(*counts)
    first, second = split_stratified(labels, fraction, generator())
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(len(labels)))
    assert torch.equal(first, first.sort().values)
    assert torch.equal(second, second.sort().values)
    assert len(first) == round(fraction * len(labels))
    for count, part in zip(
        counts, torch.bincount(labels[first], minlength=len(counts)).tolist(), strict=True
    ):
        assert 1 <= part <= count - 1
        # one image for rounding, and what other classes cannot take because of their own limits
        assert abs(part - fraction * count) <= 1.5


def test_split_leaves_each_class_in_both_parts_when_the_fraction_is_extreme():
    labels = labels_of(5, 5, 5)
    for fraction, share in ((0.001, 1), (0.999, 4)):
        first, _ = split_stratified(labels, fraction, generator())
        assert torch.bincount(labels[first]).tolist() == [share] * 3


def test_split_is_drawn_from_its_generator_alone():
    labels = labels_of(40, 40)
    first, _ = split_stratified(labels, 0.5, generator(1))
    again, _ = split_stratified(labels, 0.5, generator(1))
    other, _ = split_stratified(labels, 0.5, generator(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, torch.arange(40)), "not shuffled"


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_a_fraction(fraction):
    with pytest.raises(InvalidValueError, match=f"^fraction must be between 0 and 1.* got {fraction}$"):
        split_stratified(labels_of(4, 4), fraction, generator())


@pytest.mark.parametrize(("counts", "index", "count"), [((4, 1, 4), 1, 1), ((4, 0, 4), 1, 0)])
def test_split_refuses_a_class_too_small(counts, index, count):
    with pytest.raises(DataError, match=f"^class {index} must have at least 2 images .* got {count}$"):
        split_stratified(labels_of(*counts), 0.5, generator())


@pytest.mark.parametrize("labels", [torch.zeros(0).long(), torch.tensor([-1, 0]), torch.zeros(3, 1).long()])
def test_labels_must_be_labels(labels):
    with pytest.raises(DataError, match=r"^labels must be int64 of shape"):
        split_stratified(labels, 0.5, generator())


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ((50, 50), 10, [5, 5]),
        ((90, 10), 10, [9, 1]),
        ((998, 1, 1), 3, [1, 1, 1]),
        ((1, 1, 98), 50, [1, 1, 48]),
        ((3, 3, 3), 4, [2, 1, 1]),
        ((3, 4), 7, [3, 4]),
    ],
)
def test_sample_has_its_size_and_every_class(counts, size, expected):
    labels = labels_of(*counts)
    chosen = sample_stratified(labels, size, generator())
    assert torch.equal(chosen, chosen.unique())
    assert torch.bincount(labels[chosen]).tolist() == expected


@pytest.mark.parametrize("size", [0, 1, 9])
def test_sample_refuses_a_size(size):
    message = f"sample size must be from 2 (one image per class) to 8, got {size}"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        sample_stratified(labels_of(4, 4), size, generator())


def test_sample_refuses_a_missing_class():
    with pytest.raises(DataError, match=r"^class 1 must have at least 1 image"):
        sample_stratified(labels_of(4, 0, 4), 4, generator())
