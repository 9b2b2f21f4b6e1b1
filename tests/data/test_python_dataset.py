"""`from_dataset`: images of a torch Dataset, whatever form they have."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from sgenas.data import from_dataset, limited
from sgenas.errors import DataError


class Listed(Dataset):
    """A map-style data set of given items, with class names where given."""

    def __init__(self, items, classes=None):
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


FORMS = {
    "uint8 tensor": torch.from_numpy,
    "float tensor": lambda array: torch.from_numpy(array).float() / 255,
    "half tensor": lambda array: torch.from_numpy(array).double() / 255,
    "array": lambda array: array.transpose(1, 2, 0),
    "float array": lambda array: array.transpose(1, 2, 0) / 255,
    "pil": lambda array: Image.fromarray(array.transpose(1, 2, 0)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels(form, pictures):
    arrays = pictures(4, 3, 5, 6)
    items = [(FORMS[form](array), index % 2) for index, array in enumerate(arrays)]
    data = from_dataset(Listed(items), Listed(items[:2]), name="mine")
    assert np.array_equal(data.train.images.numpy(), arrays)
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    assert np.array_equal(data.test.images.numpy(), arrays[:2])
    assert (data.name, data.classes, data.mirror) == ("python:mine", ("0", "1"), True)
    assert (data.channels, data.height, data.width) == (3, 5, 6)
    assert (data.origin, data.notes) == ("Listed from Python", ())
    assert data.train.images.is_contiguous()


def test_grey_images(pictures):
    arrays = pictures(3, 4, 4)
    for made in (torch.from_numpy, Image.fromarray, np.asarray):
        data = from_dataset([(made(array), index) for index, array in enumerate(arrays)], mirror=False)
        assert np.array_equal(data.train.images.numpy(), arrays[:, None])
        assert not data.mirror
        assert data.test is None


def test_grey_among_coloured_become_coloured(pictures):
    grey, coloured = pictures(1, 4, 4)[0], pictures(1, 4, 4, 3)[0]
    data = from_dataset([(Image.fromarray(grey), 0), (Image.fromarray(coloured), 1)])
    assert np.array_equal(data.train.images[0].numpy(), np.stack([grey] * 3))
    assert np.array_equal(data.train.images[1].numpy(), coloured.transpose(2, 0, 1))
    assert data.notes == ("1 grey images became coloured, as the others are",)


def test_a_tensor_dataset_and_its_labels(pictures):
    images = torch.from_numpy(pictures(6, 3, 4, 4))
    data = from_dataset(TensorDataset(images, torch.tensor([0, 1, 2, 0, 1, 2])))
    assert torch.equal(data.train.images, images)
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_class_names(pictures):
    items = [(Image.fromarray(array), index % 2) for index, array in enumerate(pictures(4, 4, 4, 3))]
    named = Listed(items, ["cat", "dog"])
    assert from_dataset(named).classes == ("cat", "dog")
    assert from_dataset(Subset(named, [0, 1])).classes == ("cat", "dog")
    assert from_dataset(named, classes=["a", "b"]).classes == ("a", "b")
    # the largest label of both parts counts, and each class needs a training image
    with pytest.raises(DataError, match="class '2' has no training image in python:dataset"):
        from_dataset(items, [(items[0][0], 2)])


def test_a_limit_is_drawn_by_class(pictures):
    images = torch.from_numpy(pictures(40, 1, 2, 2))
    data = from_dataset(TensorDataset(images, torch.arange(40) % 4))
    part = limited(data, 8, seed=3)
    assert torch.bincount(part.train.labels).tolist() == [2] * 4
    assert torch.equal(part.train.images, limited(data, 8, seed=3).train.images)
    assert not torch.equal(part.train.images, limited(data, 8, seed=4).train.images)
    assert limited(data, None) is data
    assert limited(data, 40) is data
    with pytest.raises(DataError, match="limit must be at least 4, the classes of python:dataset, got 3"):
        limited(data, 3)


GOOD = torch.zeros(1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (GOOD, "item 1 of the training data must be a pair (image, label), got Tensor"),
        ((GOOD, 0, 0), "item 1 of the training data must be a pair (image, label), got tuple"),
        ((GOOD, "cat"), "label of item 1 of the training data must be an integer, got 'cat'"),
        ((GOOD, 0.5), "label of item 1 of the training data must be an integer, got 0.5"),
        ((GOOD, True), "label of item 1 of the training data must be an integer, got True"),
        (("a.png", 0), "item 1 of the training data must be a PIL image, a tensor or an array, got str"),
        (
            (torch.zeros(2, 4, 4), 0),
            "item 1 of the training data must have 1 or 3 channels, got an image of shape (2, 4, 4)",
        ),
        (
            (torch.full((1, 4, 4), -1.5), 0),
            "item 1 of the training data must have floats from 0 to 1, not normalised, got -1.5 to -1.5",
        ),
        (
            (torch.full((1, 4, 4), torch.nan), 0),
            "item 1 of the training data must have floats from 0 to 1, not normalised, got nan to nan",
        ),
        (
            (torch.zeros(1, 4, 4, dtype=torch.int32), 0),
            "item 1 of the training data must be uint8 or floating-point, got torch.int32",
        ),
        (
            (torch.zeros(1, 4, 5, dtype=torch.uint8), 0),
            "item 1 of the training data must have the size of item 0, 4 x 4, got 5 x 4",
        ),
        (
            (Image.new("I;16", (4, 4)), 0),
            "item 1 of the training data must have 8 bits a channel, got PIL mode I;16",
        ),
        ((GOOD, 0), "python:dataset must have at least 2 classes, got 1: ['0']"),
    ],
)
def test_refuses(item, message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        from_dataset([(GOOD, 0), item])


def test_refuses_what_has_no_items_or_another_size():
    with pytest.raises(DataError, match="training data must hold at least one item, got none"):
        from_dataset([])
    with pytest.raises(DataError, match="training data must have a length, got generator without one"):
        from_dataset(item for item in [(GOOD, 0)])
    two = [(GOOD, 0), (GOOD, 1)]
    with pytest.raises(DataError, match="test images of python:x must have the shape"):
        from_dataset(two, [(torch.zeros(1, 5, 5), 0)], name="x")
    with pytest.raises(DataError, match="name must be a word for the data set, got ''"):
        from_dataset(two, name="")
