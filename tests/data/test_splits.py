"""Stratified splits and samples."""

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
def test_split_keeps_the_proportions(counts, fraction):
    labels = labels_of(*counts)
    first, second = split_stratified(labels, fraction, generator())
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(len(labels)))
    assert torch.equal(first, first.sort().values)
    assert torch.equal(second, second.sort().values)
    assert len(first) == round(fraction * len(labels))
    for count, part in zip(counts, torch.bincount(labels[first], minlength=len(counts)).tolist(), strict=True):
        assert 1 <= part <= count - 1
        # one image for rounding, and what other classes cannot take because of their own limits
        assert abs(part - fraction * count) <= 1.5


def test_extreme_fraction_leaves_each_class_in_both_parts():
    labels = labels_of(5, 5, 5)
    for fraction, share in ((0.001, 1), (0.999, 4)):
        first, _ = split_stratified(labels, fraction, generator())
        assert torch.bincount(labels[first]).tolist() == [share] * 3


def test_split_depends_on_its_generator_alone():
    labels = labels_of(40, 40)
    first, again, other = (split_stratified(labels, 0.5, generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, torch.arange(40)), "not shuffled"
    # the numbers of the first edition
    assert split_stratified(torch.arange(12) % 3, 0.5, generator(0))[0].tolist() == [0, 1, 3, 7, 8, 11]
    assert sample_stratified(torch.arange(12) % 3, 5, generator(0)).tolist() == [0, 1, 3, 7, 11]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(InvalidValueError) as caught:
        split_stratified(labels_of(4, 4), fraction, generator())
    assert caught.value.field == "fraction"


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


@pytest.mark.parametrize("labels", [torch.zeros(0).long(), torch.tensor([-1, 0]), torch.zeros(3, 1).long()])
def test_malformed_labels_are_refused(labels):
    with pytest.raises(DataError, match="labels must be"):
        split_stratified(labels, 0.5, generator())


def test_impossible_draws_are_refused():
    for counts in ((4, 1, 4), (4, 0, 4)):
        with pytest.raises(DataError, match="class 1 must have at least 2 images"):
            split_stratified(labels_of(*counts), 0.5, generator())
    with pytest.raises(DataError, match="class 1 must have at least 1 images"):
        sample_stratified(labels_of(4, 0, 4), 4, generator())
    for size in (0, 1, 9):
        with pytest.raises(DataError, match=f"from 2 .* to 8, got {size}"):
            sample_stratified(labels_of(4, 4), size, generator())
