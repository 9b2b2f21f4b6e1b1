"""folder:DIR, from folders that the tests write."""

import re
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


def refused(folder: Path, message: str, **arguments) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load(f"folder:{folder}", **arguments)


def test_classes_directly_in_the_folder(tmp_path, put):
    dog = put("dog/b.png", seed=1)
    cats = [put("cat/a.PNG", seed=2), put("cat/c.bmp", seed=3, file_format="BMP")]
    put(".hidden/a.png")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    data = load(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert data.mirror
    assert data.test is None
    assert data.train.labels.tolist() == [0, 0, 1]
    assert (data.channels, data.height, data.width) == (3, 4, 5)
    expected = np.stack([*cats, dog]).transpose(0, 3, 1, 2)
    assert np.array_equal(data.train.images.numpy(), expected)
    assert data.train.images.is_contiguous()


def test_train_and_test_folders(tmp_path, put):
    put("train/cat/1.png", seed=1)
    put("train/dog/1.png", seed=2)
    dog = put("test/dog/7.png", seed=3)
    data = load(f"folder:{tmp_path}")
    assert len(data.train) == 2
    assert data.test.labels.tolist() == [1]
    assert np.array_equal(data.test.images[0].numpy(), dog.transpose(2, 0, 1))


def test_a_class_may_be_called_train(tmp_path, put):
    put("train/1.png")
    put("tram/1.png")
    assert load(f"folder:{tmp_path}").classes == ("train", "tram")


def test_lossy_formats(tmp_path):
    flat = {"red": (200, 30, 40), "blue": (20, 40, 220)}
    for name, colour in flat.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), colour).save(tmp_path / name / "1.jpg", quality=95)
        Image.new("RGB", (16, 16), colour).save(tmp_path / name / "2.jpeg", quality=95)
        Image.new("RGB", (16, 16), colour).save(tmp_path / name / "3.webp", lossless=True)
    data = load(f"folder:{tmp_path}")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for image, label in zip(data.train.images, data.train.labels.tolist(), strict=True):
        expected = torch.tensor(flat[data.classes[label]]).view(3, 1, 1)
        assert (image.int() - expected).abs().max() <= 4


def test_one_channel_only_if_all_images_are_grey(tmp_path, put):
    grey = put("a/1.png", shape=(4, 5))
    put("b/1.png", shape=(4, 5), seed=1, mode="1")
    data = load(f"folder:{tmp_path}")
    assert data.train.images.shape == (2, 1, 4, 5)
    assert np.array_equal(data.train.images[0, 0].numpy(), grey)
    assert set(data.train.images[1].unique().tolist()) <= {0, 255}
    put("a/2.png", seed=2)
    data = load(f"folder:{tmp_path}")
    assert data.train.images.shape == (3, 3, 4, 5)
    assert np.array_equal(data.train.images[0].numpy(), np.stack([grey] * 3))


def test_alpha_and_palettes_become_rgb(tmp_path, put):
    put("a/1.png", mode="RGBA")
    put("b/1.png", mode="P")
    assert load(f"folder:{tmp_path}").channels == 3


def test_an_image_size_scales_and_cuts(tmp_path, put):
    """Left and right of a wide image are cut off alike; one that fits stays as it is."""
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 1:15] = (10, 200, 30)
    (tmp_path / "a").mkdir()
    Image.fromarray(wide).save(tmp_path / "a" / "1.png")
    same = put("b/1.png", shape=(4, 4, 3))
    put("b/2.png", shape=(9, 7), seed=1)
    data = load(f"folder:{tmp_path}", image_size=4)
    assert data.train.images.shape == (3, 3, 4, 4)
    assert (data.train.images[0] == torch.tensor([10, 200, 30]).view(3, 1, 1)).all()
    assert np.array_equal(data.train.images[1].numpy(), same.transpose(2, 0, 1))
    assert data.notes == (
        "2 images scaled and cut to 4 x 4",
        "1 grey images became coloured, as the others are",
    )
    for path in (tmp_path / "a" / "1.png", tmp_path / "b" / "1.png"):
        path.unlink()
    put("a/1.png", shape=(4, 4))
    grey = load(f"folder:{tmp_path}", image_size=4)
    assert (grey.channels, grey.notes) == (1, ("1 images scaled and cut to 4 x 4",))
    with pytest.raises(DataError, match="^image size must be at least 1, got 0$"):
        load(f"folder:{tmp_path}", image_size=0)
    with pytest.raises(DataError, match="^image size only applies with parquet, folder, hf, got 4$"):
        load("digits", image_size=4)


def test_limit_decodes_only_what_it_keeps(tmp_path, put, encode, pictures):
    for index in range(6):
        put(f"a/{index}.png", seed=index)
        put(f"b/{index}.png", seed=100 + index)
    data = load(f"folder:{tmp_path}", limit=4, seed=0)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    # broken files outside of the sample are not noticed, so they were not read
    kept = {image.numpy().transpose(1, 2, 0).tobytes() for image in data.train.images}
    for path in tmp_path.glob("*/*.png"):
        if np.asarray(Image.open(path)).tobytes() not in kept:
            path.write_bytes(b"broken")
    again = load(f"folder:{tmp_path}", limit=4, seed=0)
    assert torch.equal(again.train.images, data.train.images)
    with pytest.raises(DataError, match="cannot be decoded"):
        load(f"folder:{tmp_path}")


def test_refuses_missing_and_empty_folders(tmp_path, put):
    refused(tmp_path / "none", f"folder {tmp_path / 'none'} does not exist")
    refused(tmp_path, f"folder {tmp_path} holds no class folders")
    put("cat/1.png")
    refused(tmp_path, f"folder:{tmp_path} must have at least 2 classes, got 1: ['cat']")
    (tmp_path / "dog").mkdir()
    refused(tmp_path, f"class folder {tmp_path / 'dog'} holds no image (.png, .jpg, .jpeg, .bmp, .webp)")


def test_refuses_an_unknown_test_class(tmp_path, put):
    for place in ("train/cat/1.png", "train/dog/1.png", "test/cow/1.png"):
        put(place)
    refused(tmp_path, f"class folder {tmp_path / 'test' / 'cow'} has no counterpart in {tmp_path / 'train'}")


def test_refuses_mixed_sizes(tmp_path, put):
    put("a/1.png")
    put("a/2.png")
    put("b/1.png", shape=(6, 5, 3))
    refused(
        tmp_path,
        f"{tmp_path / 'b' / '1.png'} must have the size of {tmp_path / 'a' / '1.png'}, 5 x 4, got 5 x 6"
        " (an image size brings all to one)",
    )


def test_refuses_a_test_image_of_another_size(tmp_path, put):
    for place in ("train/cat/1.png", "train/dog/1.png"):
        put(place)
    put("test/cat/9.png", shape=(4, 4, 3))
    with pytest.raises(DataError, match=r"9\.png must have the size of .*1\.png, 5 x 4, got 4 x 4 "):
        load(f"folder:{tmp_path}")


def test_refuses_undecodable_images(tmp_path, put):
    put("a/1.png")
    put("b/1.png", shape=(64, 64, 3))
    broken = tmp_path / "b" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image at all")
    refused(tmp_path, f"{broken} cannot be decoded: not a PNG, JPEG, BMP, WEBP image")
    # header and size are fine, pixels are cut off
    put("a/1.png", shape=(64, 64, 3))
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"^{re.escape(str(broken))} cannot be decoded: [^\n]+$"):
        load(f"folder:{tmp_path}")


def test_refuses_a_format_in_disguise(tmp_path, put):
    put("a/1.png")
    put("b/1.png", file_format="GIF")
    with pytest.raises(DataError, match=r"1\.png cannot be decoded: not a PNG"):
        load(f"folder:{tmp_path}")


def test_refuses_large_images_before_decoding(tmp_path, put):
    put("a/1.png")
    (tmp_path / "b").mkdir()
    large = tmp_path / "b" / "1.png"
    Image.new("1", (4097, 2)).save(large)
    # only the header is left: decoding would fail
    large.write_bytes(large.read_bytes()[:45])
    refused(tmp_path, f"{large} must have at most 4096 pixels on a side, got 4097 x 2")


def test_refuses_deep_images(tmp_path, put):
    put("a/1.png")
    (tmp_path / "b").mkdir()
    deep = tmp_path / "b" / "1.png"
    Image.fromarray(np.zeros((4, 5), dtype=np.uint16)).save(deep)
    refused(tmp_path, f"{deep} must have 8 bits a channel, got PIL mode I;16")
