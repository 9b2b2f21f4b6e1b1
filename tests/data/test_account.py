"""The account of a data set, and what the readers say of where it is from and what they passed over."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sgenas.data import ImageData, ImageSet, load
from sgenas.data.account import account
from sgenas.data.downloads import is_there


def test_an_account_counts_what_is_there():
    images = torch.tensor([0, 255, 0, 255, 255, 255], dtype=torch.uint8).view(6, 1, 1, 1).repeat(1, 1, 2, 3)
    train = ImageSet(images, torch.tensor([0, 0, 0, 0, 1, 2]))
    test = ImageSet(images[:3], torch.tensor([2, 2, 0]))
    made = ImageData("toy", train, test, ("a", "b", "c"), mirror=False, origin="here", notes=("one",))
    found = account(made)
    assert (found.data, found.origin, found.notes, found.mirror) == ("toy", "here", ("one",), False)
    assert (found.train_images, found.test_images) == (6, 3)
    assert (found.channels, found.height, found.width) == (1, 2, 3)
    assert [(row.name, row.train, row.test) for row in found.classes] == [
        ("a", 4, 1),
        ("b", 1, 0),
        ("c", 1, 2),
    ]
    assert found.imbalance == 4
    assert found.mean == pytest.approx((2 / 3,))
    assert found.std == pytest.approx(((2 / 9) ** 0.5,))
    assert json.loads(json.dumps(found.to_dict()))["classes"][2] == {"name": "c", "train": 1, "test": 2}


def test_without_test_images():
    train = ImageSet(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]))
    found = account(ImageData("toy", train, None, ("a", "b"), mirror=True))
    assert found.test_images is None
    assert [row.test for row in found.classes] == [None, None]


def test_a_folder_says_what_it_passed_over(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "train" / name / "1.png")
    spec = f"folder:{tmp_path}"
    assert account(load(spec)).notes == ()
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "dog" / ".hidden").write_text("no image")
    (tmp_path / "train" / "cat" / "more").mkdir()
    found = account(load(spec))
    assert found.origin == str(tmp_path)
    first = tmp_path / "train" / "cat" / "more"
    assert found.notes == (f"2 entries passed over that are no image by their ending, {first} first",)


def test_where_downloads_are_looked_for(tmp_path, monkeypatch):
    assert not is_there("cifar10", tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").touch()
    assert is_there("cifar10", tmp_path)
    assert not is_there("cifar100", tmp_path)
    (tmp_path / ".cache" / "sgenas" / "cifar-100-python").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_there("cifar100")
