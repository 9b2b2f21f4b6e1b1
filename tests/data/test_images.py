"""ImageSet and ImageData check themselves."""

import re

import pytest
import torch

from sgenas.data import ImageData, ImageSet
from sgenas.errors import DataError


def images(count: int, channels: int = 3, side: int = 4) -> torch.Tensor:
    return torch.zeros(count, channels, side, side, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (images(2).float(), torch.zeros(2).long(), "images must be uint8, got torch.float32"),
        (
            images(2)[0],
            torch.zeros(3).long(),
            "images must have shape (N, C, H, W) with every size >= 1, got (3, 4, 4)",
        ),
        (
            images(0),
            torch.zeros(0).long(),
            "images must have shape (N, C, H, W) with every size >= 1, got (0, 3, 4, 4)",
        ),
        (images(2), torch.zeros(2, dtype=torch.int32), "labels must be int64, got torch.int32"),
        (images(2), torch.zeros(3).long(), "labels must have shape (2,), one per image, got (3,)"),
        (images(2), torch.zeros(2, 1).long(), "labels must have shape (2,), one per image, got (2, 1)"),
        (images(2), torch.zeros(2, device="meta").long(), "labels must be on cpu, as images, got meta"),
    ],
)
def test_image_set_refuses(pixels, labels, message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        ImageSet(pixels, labels)


def test_subset_keeps_the_order_of_the_indices_and_copies(numbered):
    whole = numbered(9)
    part = whole.subset(torch.tensor([7, 2, 2]))
    assert len(part) == 3
    assert part.images[:, 0, 0, 0].tolist() == [7, 2, 2]
    assert part.labels.tolist() == [1, 2, 2]
    part.images.zero_()
    assert whole.images[7, 0, 0, 0] == 7


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([0, 9]), "indices must be from 0 to 8, got 0 to 9"),
        (torch.tensor([-1, 3]), "indices must be from 0 to 8, got -1 to 3"),
        (torch.tensor([True] * 9), "indices must be int64 of shape (M,), got torch.bool of (9,)"),
    ],
)
def test_subset_refuses(numbered, indices, message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        numbered(9).subset(indices)


def test_image_data_gives_its_sizes():
    train = ImageSet(torch.zeros(2, 3, 5, 7, dtype=torch.uint8), torch.tensor([0, 1]))
    data = ImageData("toy", train, None, ("cat", "dog"), mirror=True)
    assert (data.channels, data.height, data.width) == (3, 5, 7)


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        (("cat",), [0, 0], "toy must have at least 2 classes, got 1: ['cat']"),
        (("dog", "cat"), [0, 0], "class 'cat' has no training image in toy"),
        (("dog", "cat"), [0, 2], "training labels of toy must be from 0 to 1, got 2 (1 such labels)"),
        (("dog", "cat"), [-1, -1], "training labels of toy must be from 0 to 1, got -1 (2 such labels)"),
    ],
)
def test_image_data_refuses(classes, labels, message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        ImageData("toy", ImageSet(images(2), torch.tensor(labels)), None, classes, mirror=True)


def test_image_data_refuses_unfit_test_images():
    train = ImageSet(images(2), torch.tensor([0, 1]))
    with pytest.raises(DataError, match=r"shape of its training images, \(3, 4, 4\), got \(1, 4, 4\)$"):
        ImageData("toy", train, ImageSet(images(1, 1), torch.tensor([0])), ("a", "b"), mirror=True)
    with pytest.raises(DataError, match=r"^test labels of toy must be from 0 to 1, got -1"):
        ImageData("toy", train, ImageSet(images(1), torch.tensor([-1])), ("a", "b"), mirror=True)


def test_a_test_set_may_lack_classes():
    train = ImageSet(images(2), torch.tensor([0, 1]))
    data = ImageData("toy", train, ImageSet(images(1), torch.tensor([1])), ("a", "b"), mirror=True)
    assert data.test is not None
    assert len(data.test) == 1
