"""Settings of a run's images, and what is made from them."""

import dataclasses

import pytest
import torch
from torch.utils.data import TensorDataset

from sgenas.data import (
    ImageSettings,
    SearchImageSettings,
    TrainImageSettings,
    absolute_paths,
    from_dataset,
    load,
    load_images,
    make_augmentation,
    make_class_weights,
    statistics,
)
from sgenas.errors import DataError, InvalidValueError
from sgenas.fields import documentation
from sgenas.random import seed_of


@pytest.fixture
def mine():
    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 2, 2).contiguous()
    return from_dataset(TensorDataset(images, torch.arange(40) % 4), [(images[0], 0)], name="mine")


@pytest.mark.parametrize(
    ("settings", "more", "field"),
    [
        (ImageSettings, {"data": ""}, "data"),
        (ImageSettings, {"train_images": 1}, "train_images"),
        (ImageSettings, {"image_size": 0}, "image_size"),
        (ImageSettings, {"batch_size": 1}, "batch_size"),
        (ImageSettings, {"augment": "yes"}, "augment"),
        (ImageSettings, {"cutout": -1}, "cutout"),
        (ImageSettings, {"class_weights": "rare"}, "class_weights"),
        (SearchImageSettings, {"train_fraction": 1.0}, "train_fraction"),
        (SearchImageSettings, {"train_fraction": float("nan")}, "train_fraction"),
        (SearchImageSettings, {"data_parallel": 0}, "data_parallel"),
        (SearchImageSettings, {"data_parallel": 3}, "batch_size"),
        (SearchImageSettings, {"data_parallel": 64}, "data_parallel"),
        (TrainImageSettings, {"test_images": 1}, "test_images"),
        (TrainImageSettings, {"batch_size": 0}, "batch_size"),
    ],
)
def test_setting_out_of_range_is_named(settings, more, field):
    with pytest.raises(InvalidValueError) as caught:
        settings(**more)
    assert caught.value.field == field


@pytest.mark.parametrize("settings", [ImageSettings, SearchImageSettings, TrainImageSettings])
def test_every_field_is_documented(settings):
    assert {field.name for field in dataclasses.fields(settings)} == set(documentation(settings))


def test_images_are_sampled_with_the_seed_of_the_run():
    settings = ImageSettings(data="digits", train_images=50)
    found = load_images(settings, 3, test=False)
    expected = load("digits", train_images=50, seed=seed_of(3, "sample"), test=False)
    assert found.test is None
    assert torch.equal(found.train.images, expected.train.images)


def test_given_images_are_sampled_by_class(mine):
    settings = ImageSettings(train_images=8)
    first, again, other = (load_images(settings, seed, test=False, given=mine) for seed in (3, 3, 4))
    assert torch.bincount(first.train.labels).tolist() == [2] * 4
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    assert (first.test, len(load_images(settings, 3, test=True, given=mine).test)) == (None, 1)
    assert load_images(ImageSettings(), 0, test=True, given=mine).train is mine.train
    with pytest.raises(InvalidValueError, match="train_images must be >= 4"):
        load_images(ImageSettings(train_images=3), 0, test=False, given=mine)


def test_fewer_images_than_asked_for_are_noted(mine):
    assert load_images(ImageSettings(train_images=len(mine.train)), 0, test=False, given=mine).notes == mine.notes
    for found in (
        load_images(ImageSettings(train_images=2000), 0, test=False, given=mine),
        load_images(ImageSettings(data="digits", train_images=2000), 0, test=False),
    ):
        assert found.notes[-1] == f"training images: all {len(found.train):,}, fewer than 2,000"


def test_error_names_the_dataset(tmp_path):
    with pytest.raises(DataError, match=f"^data parquet:{tmp_path}: "):
        load_images(ImageSettings(data=f"parquet:{tmp_path}"), 0, test=True)


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spec, expected in (
        ("folder:photos", f"folder:{tmp_path}/photos"),
        ("parquet:a.parquet, b", f"parquet:{tmp_path}/a.parquet,{tmp_path}/b"),
        ("digits", "digits"),
    ):
        assert absolute_paths(ImageSettings(data=spec)).data == expected
    found = absolute_paths(TrainImageSettings(data_dir="x"))
    assert (type(found), found.data_dir) == (TrainImageSettings, f"{tmp_path}/x")


def test_given_images_replace_the_data_setting(mine):
    assert absolute_paths(ImageSettings(), mine).data == "python:mine"
    for field, value in (("data_dir", "x"), ("image_size", 4)):
        with pytest.raises(InvalidValueError) as caught:
            absolute_paths(ImageSettings(**{field: value}), mine)
        assert caught.value.field == field
    with pytest.raises(InvalidValueError, match="passed from Python"):
        load_images(ImageSettings(data="python:mine"), 0, test=True)


def test_augmentation_is_an_eighth_of_the_side():
    data = load("digits")
    made = make_augmentation(ImageSettings(cutout=4), data, data.train)
    assert (made.pad, made.horizontal_flip, made.cutout) == (1, False, 4)
    assert (made.mean, made.std) == statistics(data.train.images)
    flipped = dataclasses.replace(data, horizontal_flip=True)
    assert make_augmentation(ImageSettings(), flipped, data.train).horizontal_flip
    plain = make_augmentation(ImageSettings(augment="none"), flipped, data.train)
    assert (plain.pad, plain.horizontal_flip) == (0, False)
    with pytest.raises(InvalidValueError) as caught:
        make_augmentation(ImageSettings(cutout=9), data, data.train)
    assert caught.value.field == "cutout"


def test_class_weights_are_balanced_only_on_request(mine):
    assert make_class_weights(ImageSettings(), mine) is None
    assert make_class_weights(ImageSettings(class_weights="balanced"), mine).tolist() == [1.0] * 4
