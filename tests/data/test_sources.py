"""`load`: specifications, samples, the registry, the built-in digits, and the shared Parquet files."""

import random
import subprocess
import sys

import pytest
import torch

from sgenas.data import DATASET_SOURCES, DatasetSource, ImageData, ImageSet, load, statistics
from sgenas.errors import DataError, InvalidValueError


def test_digits_are_those_of_scikit_learn():
    data = load("digits")
    # this import draws from Python's global generator
    state = random.getstate()
    from sklearn.datasets import load_digits

    random.setstate(state)
    assert (data.name, data.horizontal_flip, data.classes) == ("digits", False, tuple("0123456789"))
    assert data.train.images.shape == (1438, 1, 8, 8)
    assert len(data.test) == 359
    # both parts together are the original, image by image
    bunch = load_digits()
    expected = {
        (tuple((image / 16 * 255).round().astype(int).ravel()), int(target))
        for image, target in zip(bunch.images, bunch.target, strict=True)
    }
    got = {
        (tuple(image.flatten().tolist()), int(label))
        for part in (data.train, data.test)
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert got == expected


def test_digits_have_the_digest_of_the_first_edition():
    data = load("digits", seed=5)
    assert data.train.digest() == "cbad9944a9ce36ea7d2333eb8af5b611"
    assert data.test.digest() == "91927fb188b5d11eed2f7c830b2ca953"


def test_train_images_are_a_seeded_sample_of_each_class():
    whole, data = load("digits"), load("digits", train_images=30, seed=1)
    assert torch.bincount(data.train.labels).tolist() == [3] * 10
    assert len(data.test) == len(whole.test)
    assert torch.equal(data.train.images, load("digits", train_images=30, seed=1).train.images)
    assert not torch.equal(data.train.images, load("digits", train_images=30, seed=2).train.images)
    everything = {tuple(image.flatten().tolist()) for image in whole.train.images}
    assert {tuple(image.flatten().tolist()) for image in data.train.images} <= everything
    assert torch.equal(load("digits", train_images=10**9).train.images, whole.train.images)
    assert load("digits", test=False).test is None


@pytest.mark.parametrize(
    ("spec", "more", "field", "word"),
    [
        ("digits", {"train_images": 0}, "train_images", ">= 1"),
        ("digits", {"train_images": 9}, "train_images", ">= 10"),
        ("digits", {"image_size": 4}, "image_size", "None with data digits"),
        ("folder:.", {"image_size": 0}, "image_size", ">= 1"),
        ("cifar1", {}, "data", "did you mean 'cifar10'"),
        ("", {}, "data", "one of digits, cifar10"),
        ("zip:file", {}, "data", "one of"),
        ("digits:x", {}, "data", "digits, got"),
        ("parquet", {}, "data", "parquet:FILES_OR_DIR"),
        ("folder: ", {}, "data", "folder:DIR"),
        ("python:mine", {}, "data", "passed from Python"),
    ],
)
def test_bad_argument_is_named(spec, more, field, word):
    with pytest.raises(InvalidValueError, match=word) as caught:
        load(spec, **more)
    assert caught.value.field == field


def test_new_source_is_a_function_and_a_registry_line(monkeypatch):
    monkeypatch.setattr(DATASET_SOURCES, "_items", dict(DATASET_SOURCES._items))

    def load_noise(place, request):
        images = ImageSet(torch.zeros(int(place), 1, 2, 2, dtype=torch.uint8), torch.arange(int(place)) % 2)
        chosen = request.choose(images.labels, ("a", "b"))
        return ImageData(request.spec, images.subset(chosen), None, ("a", "b"))

    DATASET_SOURCES.register("noise", DatasetSource(load_noise, "COUNT"))
    assert len(load("noise:9").train) == 9
    assert len(load("noise:9", train_images=4).train) == 4


def test_digits_without_scikit_learn_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="digits.csv.gz: No such file"):
        load("digits")


def test_shared_cifar10_sample(shared_data):
    data = load(f"parquet:{shared_data / 'cifar10-train.parquet'}", train_images=500, seed=3)
    assert data.classes[:2] == ("airplane", "automobile")
    assert (data.horizontal_flip, data.test) == (True, None)
    assert data.train.images.shape == (500, 3, 32, 32)
    assert torch.bincount(data.train.labels).tolist() == [50] * 10
    mean, _ = statistics(data.train.images)
    assert mean == pytest.approx((0.491, 0.482, 0.447), abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("cifar10", "28b2b7411058bc0d5214e8c345da26ed", "c55e47731c698b738433ab01eadee85a"),
        ("cifar100", "8a52ea4c474a70c6f6883b48127dabe4", "dd8f8af5cc9cb900d4e5b5b30879d9e3"),
        ("mnist", "59e50090e5e0f04f663b7c6aaeef52d7", "2143997eefd131325cb280268637e9f4"),
    ],
)
def test_shared_files_have_the_digests_of_the_first_edition(shared_data, name, train, test):
    data = load(f"parquet:{shared_data / name}-train.parquet,{shared_data / name}-test.parquet")
    assert (data.train.digest(), data.test.digest()) == (train, test)


@pytest.mark.slow
def test_import_and_digits_load_no_reader():
    code = """if True:
        import sys, sgenas.data
        sgenas.data.load("digits")
        print(sorted({"torchvision", "sklearn", "pyarrow", "datasets"} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
