"""ImageSet and ImageData check themselves."""

import pytest
import torch

from sgenas.data import ImageData, ImageSet
from sgenas.errors import DataError


def images(count: int, channels: int = 3, side: int = 4) -> torch.Tensor:
    return torch.zeros(count, channels, side, side, dtype=torch.uint8)


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(
    ("pixels", "given", "word"),
    [
        (images(2).float(), labels(0, 0), "float32"),
        (images(2)[0], labels(0, 0, 0), r"\(3, 4, 4\)"),
        (images(0), labels(), "not empty"),
        (images(2), labels(0, 0).int(), "int64"),
        (images(2), labels(0, 0, 0), "one per image"),
        (images(2), labels(0, 0).to("meta"), "meta"),
    ],
)
def test_malformed_image_set_is_refused(pixels, given, word):
    with pytest.raises(DataError, match=word):
        ImageSet(pixels, given)


def test_subset_keeps_the_order_of_the_indices_and_copies(numbered):
    whole = numbered(9)
    part = whole.subset(torch.tensor([7, 2, 2]))
    assert part.images[:, 0, 0, 0].tolist() == [7, 2, 2]
    assert part.labels.tolist() == [1, 2, 2]
    part.images.zero_()
    assert whole.images[7, 0, 0, 0] == 7


def test_digest_changes_with_images_and_labels(numbered):
    first = numbered(9)
    other_label = ImageSet(first.images, first.labels.flip(0))
    assert first.digest() == numbered(9).digest()
    assert len({first.digest(), numbered(8).digest(), other_label.digest()}) == 3


def test_image_data_has_the_sizes_of_its_images():
    train = ImageSet(torch.zeros(2, 3, 5, 7, dtype=torch.uint8), labels(0, 1))
    data = ImageData("toy", train, ImageSet(torch.zeros(1, 3, 5, 7, dtype=torch.uint8), labels(1)), ("a", "b"))
    assert (data.channels, data.height, data.width) == (3, 5, 7)


@pytest.mark.parametrize(
    ("classes", "train", "test", "word"),
    [
        (("cat",), labels(0, 0), None, "at least 2 classes"),
        (("dog", "cat"), labels(0, 0), None, "'cat' of toy has no training image"),
        (("dog", "cat"), labels(0, 2), None, "from 0 to 1, got 2"),
        (("dog", "cat"), labels(-1, -1), None, "from 0 to 1, got -1"),
        (("dog", "cat"), labels(0, 1), ImageSet(images(1, 1), labels(0)), r"shape \(3, 4, 4\)"),
        (("dog", "cat"), labels(0, 1), ImageSet(images(1), labels(-1)), "from 0 to 1, got -1"),
    ],
)
def test_inconsistent_image_data_is_refused(classes, train, test, word):
    with pytest.raises(DataError, match=word):
        ImageData("toy", ImageSet(images(2), train), test, classes)
