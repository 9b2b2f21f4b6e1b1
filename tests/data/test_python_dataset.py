"""`from_dataset`: images of a torch Dataset, whatever form they have."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from sgenas.data import from_dataset
from sgenas.errors import DataError


class Listed(Dataset):
    """A map-style dataset of given items, with class names if given."""

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
    "double tensor": lambda array: torch.from_numpy(array).double() / 255,
    "array": lambda array: array.transpose(1, 2, 0),
    "reversed view": lambda array: array.transpose(1, 2, 0)[..., ::-1].copy()[..., ::-1],
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
    assert (data.name, data.classes, data.horizontal_flip) == ("python:mine", ("0", "1"), True)
    assert (data.origin, data.notes) == ("Listed from Python", ())
    assert data.train.images.is_contiguous()


def test_grayscale_images_keep_one_channel(pictures):
    arrays = pictures(3, 4, 4)
    for made in (torch.from_numpy, Image.fromarray, np.asarray):
        items = [(made(array), index) for index, array in enumerate(arrays)]
        data = from_dataset(items, horizontal_flip=False)
        assert np.array_equal(data.train.images.numpy(), arrays[:, None])
        assert (data.horizontal_flip, data.test) == (False, None)


def test_grayscale_among_color_images_becomes_rgb(pictures):
    gray, color = pictures(1, 4, 4)[0], pictures(1, 4, 4, 3)[0]
    data = from_dataset([(Image.fromarray(gray), 0), (Image.fromarray(color), 1)])
    assert np.array_equal(data.train.images[0].numpy(), np.stack([gray] * 3))
    assert np.array_equal(data.train.images[1].numpy(), color.transpose(2, 0, 1))
    assert data.notes == ("images changed: 1 grayscale converted to RGB",)


def test_tensor_dataset_with_tensor_labels(pictures):
    images = torch.from_numpy(pictures(6, 3, 4, 4))
    data = from_dataset(TensorDataset(images, torch.tensor([0, 1, 2, 0, 1, 2])))
    assert torch.equal(data.train.images, images)
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_class_names_come_from_the_argument_or_the_dataset(pictures):
    items = [(Image.fromarray(array), index % 2) for index, array in enumerate(pictures(4, 4, 4, 3))]
    named = Listed(items, ["cat", "dog"])
    assert from_dataset(named).classes == ("cat", "dog")
    assert from_dataset(Subset(named, [0, 1])).classes == ("cat", "dog")
    assert from_dataset(named, classes=["a", "b"]).classes == ("a", "b")
    # the largest label of both parts counts, and each class needs a training image
    with pytest.raises(DataError, match="'2' of python:dataset has no training image"):
        from_dataset(items, [(items[0][0], 2)])


GOOD = torch.zeros(1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("item", "word"),
    [
        (GOOD, "pair"),
        ((GOOD, 0, 0), "pair"),
        ((GOOD, "cat"), "integer, got 'cat'"),
        ((GOOD, 0.5), "integer"),
        ((GOOD, True), "integer"),
        (("a.png", 0), "got a str"),
        ((torch.zeros(2, 4, 4), 0), "1 or 3 channels"),
        ((torch.full((1, 4, 4), -1.5), 0), "not normalized, got -1.5"),
        ((torch.full((1, 4, 4), torch.nan), 0), "got nan"),
        ((torch.zeros(1, 4, 4, dtype=torch.int32), 0), "int32"),
        ((torch.zeros(1, 4, 5, dtype=torch.uint8), 0), r"got \(4, 5\)"),
        ((Image.new("I;16", (4, 4)), 0), "8 bits"),
    ],
)
def test_malformed_item_is_named(item, word):
    with pytest.raises(DataError, match=f"item 1 of the training data .*{word}"):
        from_dataset([(GOOD, 0), item])


def test_datasets_without_items_or_with_other_test_images_are_refused():
    for empty in ([], (item for item in [(GOOD, 0)])):
        with pytest.raises(DataError, match="length >= 1"):
            from_dataset(empty)
    with pytest.raises(DataError, match="test images of python:x must have shape"):
        from_dataset([(GOOD, 0), (GOOD, 1)], [(torch.zeros(1, 5, 5), 0)], name="x")


def test_transparency_is_put_on_white(pictures):
    pixels = pictures(1, 4, 4, 4)[0]
    color, alpha = pixels[..., :3].astype(float), pixels[..., 3:].astype(float)
    expected = np.round((color * alpha + 255 * (255 - alpha)) / 255)
    data = from_dataset([(Image.fromarray(pixels), 0), (Image.fromarray(pixels[..., :3]), 1)])
    assert np.array_equal(data.train.images[0].numpy(), expected.transpose(2, 0, 1))
    assert data.notes == ("images changed: 1 with transparency put on white",)


def test_labels_that_start_at_1_are_lowered():
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    data = from_dataset(TensorDataset(images, torch.tensor([1, 2, 3, 1])), TensorDataset(images[:1], torch.tensor([3])))
    assert data.train.labels.tolist() == [0, 1, 2, 0]
    assert (data.test.labels.tolist(), data.classes) == ([2], ("1", "2", "3"))
    assert "start at 1" in data.notes[0]
