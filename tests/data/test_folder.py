"""folder:DIR, from folders that the tests write."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgenas.data import load
from sgenas.errors import DataError


@pytest.fixture
def put(tmp_path, encode, pictures):
    """put("train/cat/1.png", shape=(4, 5, 3), seed=0) -> the array, written below tmp_path."""

    def make(place: str, shape=(4, 5, 3), seed: int = 0, file_format: str = "PNG", mode=None) -> np.ndarray:
        array = pictures(1, *shape, seed=seed)[0]
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(array, file_format, mode))
        return array

    return make


def refused(folder: Path, *words: object) -> None:
    """Loading raises a DataError of one line with all the words."""
    with pytest.raises(DataError) as caught:
        load(f"folder:{folder}")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


def test_classes_are_the_folders_in_alphabetical_order(tmp_path, put):
    dog = put("dog/b.png", seed=1)
    cats = [put("cat/a.PNG", seed=2), put("cat/c.bmp", seed=3, file_format="BMP")]
    put(".hidden/a.png")
    for name in ("notes.txt", ".hidden"):
        (tmp_path / "cat" / name).write_text("not an image")
    data = load(f"folder:{tmp_path}")
    assert (data.classes, data.horizontal_flip, data.test) == (("cat", "dog"), True, None)
    assert data.train.labels.tolist() == [0, 0, 1]
    assert np.array_equal(data.train.images.numpy(), np.stack([*cats, dog]).transpose(0, 3, 1, 2))
    assert data.train.images.is_contiguous()
    assert (data.origin, data.notes) == (str(tmp_path), ())


def test_train_and_test_folders(tmp_path, put):
    put("train/cat/1.png", seed=1)
    put("train/dog/1.png", seed=2)
    dog = put("test/dog/7.png", seed=3)
    data = load(f"folder:{tmp_path}")
    assert len(data.train) == 2
    assert data.test.labels.tolist() == [1]
    assert np.array_equal(data.test.images[0].numpy(), dog.transpose(2, 0, 1))
    assert load(f"folder:{tmp_path}", test=False).test is None
    put("test/cow/1.png")
    refused(tmp_path, tmp_path / "test" / "cow", "no counterpart")


def test_a_class_may_be_called_train(tmp_path, put):
    put("train/1.png")
    put("tram/1.png")
    assert load(f"folder:{tmp_path}").classes == ("train", "tram")


def test_lossy_formats_are_decoded(tmp_path):
    flat = {"red": (200, 30, 40), "blue": (20, 40, 220)}
    for name, color in flat.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), color).save(tmp_path / name / "1.jpg", quality=95)
        Image.new("RGB", (16, 16), color).save(tmp_path / name / "2.jpeg", quality=95)
        Image.new("RGB", (16, 16), color).save(tmp_path / name / "3.webp", lossless=True)
    data = load(f"folder:{tmp_path}")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for image, label in zip(data.train.images, data.train.labels.tolist(), strict=True):
        expected = torch.tensor(flat[data.classes[label]]).view(3, 1, 1)
        assert (image.int() - expected).abs().max() <= 4


def test_images_have_one_channel_only_if_all_are_grayscale(tmp_path, put):
    gray = put("a/1.png", shape=(4, 5))
    put("b/1.png", shape=(4, 5), seed=1, mode="1")
    data = load(f"folder:{tmp_path}")
    assert data.train.images.shape == (2, 1, 4, 5)
    assert np.array_equal(data.train.images[0, 0].numpy(), gray)
    assert set(data.train.images[1].unique().tolist()) <= {0, 255}
    for name, mode in (("a/2.png", None), ("a/3.png", "RGBA"), ("a/4.png", "P")):
        put(name, seed=2, mode=mode)
    data = load(f"folder:{tmp_path}")
    assert data.train.images.shape == (5, 3, 4, 5)
    assert np.array_equal(data.train.images[0].numpy(), np.stack([gray] * 3))


def test_image_size_scales_and_crops_at_the_center(tmp_path, put):
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 1:15] = (10, 200, 30)
    (tmp_path / "a").mkdir()
    Image.fromarray(wide).save(tmp_path / "a" / "1.png")
    fits = put("b/1.png", shape=(4, 4, 3))
    put("b/2.png", shape=(9, 7), seed=1)
    data = load(f"folder:{tmp_path}", image_size=4)
    assert data.train.images.shape == (3, 3, 4, 4)
    assert (data.train.images[0] == torch.tensor([10, 200, 30]).view(3, 1, 1)).all()
    assert np.array_equal(data.train.images[1].numpy(), fits.transpose(2, 0, 1))
    assert data.notes == ("images changed: 2 scaled and cropped to 4 x 4, 1 grayscale converted to RGB",)


def test_train_images_decodes_only_the_sample(tmp_path, put):
    for index in range(6):
        put(f"a/{index}.png", seed=index)
        put(f"b/{index}.png", seed=100 + index)
    data = load(f"folder:{tmp_path}", train_images=4, seed=0)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    kept = {image.numpy().transpose(1, 2, 0).tobytes() for image in data.train.images}
    for path in tmp_path.glob("*/*.png"):
        if np.asarray(Image.open(path)).tobytes() not in kept:
            path.write_bytes(b"broken")
    again = load(f"folder:{tmp_path}", train_images=4, seed=0)
    assert torch.equal(again.train.images, data.train.images)
    refused(tmp_path, "cannot be decoded")


def test_missing_and_empty_folders_are_refused(tmp_path, put):
    refused(tmp_path / "none", tmp_path / "none")
    refused(tmp_path, tmp_path, "one folder of images per class")
    put("cat/1.png")
    refused(tmp_path, "at least 2 classes")
    (tmp_path / "dog").mkdir()
    refused(tmp_path, tmp_path / "dog", "must have an image", "remove it")
    (tmp_path / "dog" / "1.tif").write_bytes(b"TIFF")
    refused(tmp_path, tmp_path / "dog", "must have an image", ".png, .jpg")


@pytest.mark.parametrize("place", ["train/dog/2.png", "test/cat/9.png"])
def test_images_of_another_size_are_refused(tmp_path, put, place):
    for name in ("train/cat/1.png", "train/dog/1.png"):
        put(name)
    put(place, shape=(6, 5, 3))
    refused(tmp_path, tmp_path / place, "5 x 4 pixels", "got 5 x 6", "set image_size")


def test_undecodable_images_are_named(tmp_path, put):
    put("a/1.png", shape=(64, 64, 3))
    put("b/1.png", shape=(64, 64, 3))
    broken = tmp_path / "b" / "1.png"
    whole = broken.read_bytes()
    for content in (b"no image at all", whole[: len(whole) // 2], b""):
        broken.write_bytes(content)
        refused(tmp_path, broken, "cannot be decoded")
    put("b/1.png", file_format="TIFF", shape=(64, 64, 3))
    refused(tmp_path, broken, "not a PNG", "replace or delete it")
    Image.fromarray(np.zeros((64, 64), dtype=np.uint16)).save(broken)
    refused(tmp_path, broken, "8 bits per channel", "convert it")


@pytest.mark.parametrize("pixels", [100_000_000, 200_000_000])
def test_decompression_bomb_is_refused_before_decoding(tmp_path, put, pixels):
    put("a/1.png")
    (tmp_path / "b").mkdir()
    large = tmp_path / "b" / "1.png"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new("1", (pixels // 10_000, 10_000)).save(large)
    # only the header is left: decoding would fail otherwise
    large.write_bytes(large.read_bytes()[:45])
    refused(tmp_path, large, "decompression bomb")


def test_hidden_files_thumbnails_and_other_types_are_skipped(tmp_path, put):
    kept = [put("cat/1.png", seed=1), put("dog/deep/er/1.png", seed=2)]
    for place in ("cat/.ipynb_checkpoints/1-checkpoint.png", "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.png", "@eaDir/1.png"):
        put(place)
    for place in ("cat/._1.png", "cat/Thumbs.db", "dog/deep/.DS_Store", "desktop.ini", ".DS_Store"):
        (tmp_path / place).write_bytes(b"no image")
    put("stray.png")
    (tmp_path / "cat" / "1.txt").write_text("a caption")
    (tmp_path / "LICENSE").write_text("free")
    data = load(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert np.array_equal(data.train.images.numpy(), np.stack(kept).transpose(0, 3, 1, 2))
    assert data.notes == ()


def test_links_are_followed_but_not_in_circles(tmp_path, put):
    cat, dog, far = put("p/cat/1.png", seed=1), put("p/dog/1.png", seed=2), put("far/2.png", seed=3)
    for place, target in (
        ("cat/loop", tmp_path / "p"),
        ("dog/more", tmp_path / "far"),
        ("dog/again", tmp_path / "far"),
    ):
        (tmp_path / "p" / place).symlink_to(target, target_is_directory=True)
    data = load(f"folder:{tmp_path / 'p'}")
    assert np.array_equal(data.train.images.numpy(), np.stack([cat, dog, far]).transpose(0, 3, 1, 2))
    (tmp_path / "p" / "dog" / "3.png").symlink_to(tmp_path / "gone.png")
    refused(tmp_path / "p", tmp_path / "p" / "dog" / "3.png", "No such file")


def test_pipes_are_not_opened(tmp_path, put):
    put("cat/1.png")
    put("dog/1.png")
    os.mkfifo(tmp_path / "dog" / "2.png")
    assert len(load(f"folder:{tmp_path}").train) == 2


@pytest.mark.parametrize(
    ("folders", "used", "note"),
    [
        (("train", "val"), "val", "val is the test set, as there is no test folder"),
        (("Training", "Validation"), "Validation", "Validation is the test set"),
        (("train", "test", "val", "extra"), "test", "folders skipped: extra, val"),
        (("TRAIN", "Test"), "Test", None),
        (("train", "valid", "test/unlabeled.png"), "valid", "folders skipped: test"),
    ],
)
def test_one_held_out_folder_tests_and_the_others_are_named(tmp_path, put, folders, used, note):
    written = {}
    for seed, folder in enumerate(folders):
        if folder.endswith(".png"):
            put(folder)
            continue
        written[folder] = [put(f"{folder}/{name}/1.png", seed=10 * seed + index) for index, name in enumerate("ab")]
    data = load(f"folder:{tmp_path}")
    assert np.array_equal(data.train.images.numpy(), np.stack(written[folders[0]]).transpose(0, 3, 1, 2))
    assert np.array_equal(data.test.images.numpy(), np.stack(written[used]).transpose(0, 3, 1, 2))
    assert data.test.labels.tolist() == [0, 1]
    assert (note is None and not data.notes) or any(note in said for said in data.notes)
    assert load(f"folder:{tmp_path}", test=False).test is None


@pytest.mark.parametrize(
    ("places", "word"),
    [
        (("train/1.png", "test/1.png"), "a folder train"),
        (("val/a/1.png", "val/b/1.png", "test/a/1.png"), "a folder train"),
        (("a/1.png", "b/1.png", "test/a/1.png"), "a folder train"),
        (("train/a/1.png", "Train/b/1.png"), "one training folder"),
        (("train/a/1.png", "train/b/1.png", "test/1.png"), "sort its images"),
        (("inside/train/a/1.png", "inside/train/b/1.png"), "at least 2 classes"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, put, places, word):
    for place in places:
        put(place)
    refused(tmp_path, word)


def test_folders_that_cannot_be_listed_are_named(tmp_path, put, monkeypatch):
    put("a/1.png")
    put("b/in/1.png")
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("in"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr("sgenas.data.folder.os.scandir", scandir)
    refused(tmp_path, tmp_path / "b" / "in", "Permission denied")
