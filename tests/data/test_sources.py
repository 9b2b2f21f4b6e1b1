"""`load`: specifications, limits, the built-in digits, and CIFAR-10 from the shared Parquet files."""

import re
import subprocess
import sys
import time

import pytest
import torch

from sgenas.data import KNOWN_SOURCES, load, statistics
from sgenas.errors import DataError

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def test_digits_are_those_of_scikit_learn():
    data = load("digits")
    # only now: this import disturbs Python's global generator, and load must not
    from sklearn.datasets import load_digits

    assert (data.name, data.mirror, data.test is None) == ("digits", False, False)
    assert data.classes == tuple("0123456789")
    assert (data.channels, data.height, data.width) == (1, 8, 8)
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.train.images.max() == 255
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


def test_digits_are_cut_by_class_and_always_alike():
    data, again = load("digits"), load("digits", seed=5)
    shares = torch.bincount(data.train.labels) / torch.bincount(
        torch.cat([data.train.labels, data.test.labels])
    )
    assert shares.sub(0.8).abs().max() < 0.01
    assert torch.equal(data.train.images, again.train.images)
    assert torch.equal(data.test.images, again.test.images)


def test_limit_keeps_a_seeded_sample_of_each_class():
    whole, data = load("digits"), load("digits", limit=30, seed=1)
    assert torch.bincount(data.train.labels).tolist() == [3] * 10
    assert len(data.test) == len(whole.test)
    assert torch.equal(data.train.images, load("digits", limit=30, seed=1).train.images)
    assert not torch.equal(data.train.images, load("digits", limit=30, seed=2).train.images)
    everything = {tuple(image.flatten().tolist()) for image in whole.train.images}
    assert {tuple(image.flatten().tolist()) for image in data.train.images} <= everything


@pytest.mark.parametrize("limit", [1438, 10**9])
def test_a_limit_above_the_size_keeps_all_in_order(limit):
    assert torch.equal(load("digits", limit=limit).train.images, load("digits").train.images)


@pytest.mark.parametrize(
    ("spec", "limit", "message"),
    [
        ("digits", 0, "limit must be at least 1, got 0"),
        ("digits", -3, "limit must be at least 1, got -3"),
        ("digits", 9, "limit must be at least 10, the classes of digits, got 9"),
        ("mnist", None, f"data set must be one of {', '.join(KNOWN_SOURCES)}, got 'mnist'"),
        ("", None, f"data set must be one of {', '.join(KNOWN_SOURCES)}, got ''"),
        ("zip:file", None, f"data set must be one of {', '.join(KNOWN_SOURCES)}, got 'zip:file'"),
        ("parquet", None, f"data set must be one of {', '.join(KNOWN_SOURCES)}, got 'parquet'"),
        ("parquet:", None, "data set 'parquet:' must name a path after the colon"),
        ("folder: ", None, "data set 'folder: ' must name a path after the colon"),
    ],
)
def test_refuses(spec, limit, message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load(spec, limit=limit)


def test_shared_cifar10_limited(cifar_folder):
    data = load(f"parquet:{cifar_folder / 'cifar10-train.parquet'}", limit=500, seed=3)
    assert data.classes == CIFAR10_CLASSES
    assert data.mirror
    assert data.test is None
    assert data.train.images.shape == (500, 3, 32, 32)
    assert torch.bincount(data.train.labels).tolist() == [50] * 10
    mean, _ = statistics(data.train.images)
    assert mean == pytest.approx((0.491, 0.482, 0.447), abs=0.03)


def test_shared_cifar10_limited_images_keep_their_labels(cifar_folder):
    import io

    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    path = cifar_folder / "cifar10-test.parquet"
    rows = pq.read_table(path).slice(0, 3000).to_pylist()
    labels_of = {}
    for row in rows:
        pixels = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB"))
        labels_of[pixels.transpose(2, 0, 1).tobytes()] = row["label"]
    train = cifar_folder / "cifar10-train.parquet"
    data = load(f"parquet:{train},{path}", limit=10)
    assert len(data.test) == 10_000
    for image, label in zip(data.test.images[:3000], data.test.labels[:3000].tolist(), strict=True):
        assert labels_of[image.numpy().tobytes()] == label


@pytest.mark.slow
def test_shared_cifar10_whole(cifar_folder):
    start = time.perf_counter()
    data = load(f"parquet:{cifar_folder}")
    assert time.perf_counter() - start < 30
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    assert torch.bincount(data.train.labels).tolist() == [5_000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1_000] * 10
    mean, std = statistics(data.train.images)
    # the constants of the DARTS code, for the original arrays; these images went through JPEG
    assert mean == pytest.approx((0.49139968, 0.48215827, 0.44653124), abs=5e-4)
    assert std == pytest.approx((0.24703233, 0.24348505, 0.26158768), abs=3e-3)


def test_import_brings_in_no_reader():
    code = (
        "import sys, sgenas.data;"
        "print([name for name in ('torchvision', 'sklearn', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
