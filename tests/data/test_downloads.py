"""The torchvision sources, on tiny archives in the official formats that the tests write; no network."""

import gzip
import hashlib
import io
import pickle
import re
import struct
import tarfile
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from sgenas.data import load
from sgenas.errors import DataError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Any attempt to reach the network fails as it does without one."""

    def fail(*_args, **_kwargs):
        raise urllib.error.URLError("no\nnetwork")

    monkeypatch.setattr("urllib.request.urlopen", fail)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar_part(pixels: np.ndarray, labels: list[int], key: str) -> dict:
    """One batch as in the official archive: rows of 3,072 values, all red ones first."""
    return {
        "data": pixels.reshape(len(pixels), -1),
        key: labels,
        "filenames": [f"{index}.png" for index in range(len(labels))],
    }


@pytest.fixture
def cifar100(tmp_path, monkeypatch, pictures):
    """300 + 100 images in tmp_path/cifar-100-python, with their MD5 sums known to torchvision."""
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    labels = {"train": [index % 100 for index in range(300)], "test": list(range(99, -1, -1))}
    pixels = {part: pictures(len(values), 3, 32, 32, seed=len(values)) for part, values in labels.items()}
    for part, values in labels.items():
        content = cifar_part(pixels[part], values, "fine_labels")
        content["coarse_labels"] = [value // 5 for value in values]
        (folder / part).write_bytes(pickle.dumps(content, protocol=2))
        monkeypatch.setattr(CIFAR100, f"{part}_list", [[part, md5(folder / part)]])
    meta = {"fine_label_names": [f"fine{index}" for index in range(100)], "coarse_label_names": ["x"] * 20}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    monkeypatch.setattr(
        CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5(folder / "meta")}
    )
    return pixels, labels


def check_cifar100(data, pixels, labels) -> None:
    assert data.classes == tuple(f"fine{index}" for index in range(100))
    assert data.mirror
    assert data.train.labels.tolist() == labels["train"]
    assert data.test.labels.tolist() == labels["test"]
    assert np.array_equal(data.train.images.numpy(), pixels["train"])
    assert np.array_equal(data.test.images.numpy(), pixels["test"])
    assert data.train.images.is_contiguous()


def test_cifar100_from_its_folder(tmp_path, cifar100):
    check_cifar100(load("cifar100", data_dir=tmp_path), *cifar100)


def test_cifar100_from_its_archive_without_a_word(tmp_path, cifar100, monkeypatch, capfd):
    from torchvision.datasets import CIFAR100

    archive = tmp_path / "place" / "cifar-100-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-100-python", "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive))
    check_cifar100(load("cifar100", data_dir=archive.parent), *cifar100)
    assert capfd.readouterr() == ("", "")


def test_cifar100_downloaded_once_with_only_a_progress_bar(tmp_path, cifar100, monkeypatch, capfd):
    from torchvision.datasets import CIFAR100

    archive = tmp_path / "served.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-100-python", "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive))
    asked = 0

    class Response(io.BytesIO):
        url = CIFAR100.url
        length = archive.stat().st_size

    def serve(*_args, **_kwargs):
        nonlocal asked
        asked += 1
        return Response(archive.read_bytes())

    monkeypatch.setattr("urllib.request.urlopen", serve)
    for _ in range(2):
        check_cifar100(load("cifar100", data_dir=tmp_path / "new" / "place"), *cifar100)
        assert asked == 2, "once to look for redirects, once for the file, and not again"
    captured = capfd.readouterr()
    assert captured.out == ""
    # with tqdm installed, as the extra hf has it, torchvision draws its bar otherwise
    assert re.search(r"100(\.0)?%", captured.err), "a download shows its progress"


def test_cifar100_limited(tmp_path, cifar100):
    pixels, labels = cifar100
    data = load("cifar100", data_dir=tmp_path, limit=100, seed=2)
    assert data.train.labels.sort().values.tolist() == list(range(100))
    label_of = {image.tobytes(): label for image, label in zip(pixels["train"], labels["train"], strict=True)}
    for image, label in zip(data.train.images, data.train.labels.tolist(), strict=True):
        assert label_of[image.numpy().tobytes()] == label
    with pytest.raises(DataError, match=r"^limit must be at least 100, the classes of cifar100, got 99$"):
        load("cifar100", data_dir=tmp_path, limit=99)


def test_a_file_with_a_wrong_sum_is_not_unpickled(tmp_path, cifar100):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="^cifar100 cannot be read from"):
        load("cifar100", data_dir=tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_cifar10_from_its_folder(tmp_path, monkeypatch, pictures):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = pictures(50, 3, 32, 32)
    names = ["data_batch_1", "data_batch_2", "test_batch"]
    for index, name in enumerate(names):
        part = cifar_part(pixels[index * 10 : index * 10 + 10], list(range(10)), "labels")
        (folder / name).write_bytes(pickle.dumps(part, protocol=2))
    classes = [f"class{index}" for index in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}, protocol=2))
    sums = [[name, md5(folder / name)] for name in names]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:2])
    monkeypatch.setattr(CIFAR10, "test_list", sums[2:])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    data = load("cifar10", data_dir=tmp_path)
    assert data.classes == tuple(classes)
    assert data.mirror
    assert np.array_equal(data.train.images.numpy(), pixels[:20])
    assert np.array_equal(data.test.images.numpy(), pixels[20:30])
    assert data.train.labels.tolist() == list(range(10)) * 2


def test_svhn_counts_its_zero_as_ten(tmp_path, monkeypatch, pictures):
    import scipy.io
    from torchvision.datasets import SVHN

    pixels = pictures(20, 32, 32, 3)
    stored = [index % 10 + 1 for index in range(20)]
    splits = {}
    for part in ("train", "test"):
        path = tmp_path / f"{part}_32x32.mat"
        scipy.io.savemat(path, {"X": pixels.transpose(1, 2, 3, 0), "y": np.array(stored)[:, None]})
        splits[part] = ["http://nowhere.invalid", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", splits)
    data = load("svhn", data_dir=tmp_path)
    assert data.classes == tuple("0123456789")
    assert not data.mirror
    assert data.train.labels.tolist() == [value % 10 for value in stored]
    assert np.array_equal(data.train.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert data.test.images.is_contiguous()


@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist(tmp_path, monkeypatch, pictures, zipped):
    from torchvision.datasets import FashionMNIST

    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels, labels, resources = pictures(30, 28, 28), [index % 10 for index in range(30)], []
    for prefix in ("train", "t10k"):
        contents = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">IIII", 2051, 30, 28, 28) + pixels.tobytes(),
            f"{prefix}-labels-idx1-ubyte": struct.pack(">II", 2049, 30) + bytes(labels),
        }
        for name, content in contents.items():
            path = raw / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(content) if zipped else content)
            resources.append((f"{name}.gz", md5(path)))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    data = load("fashion_mnist", data_dir=tmp_path)
    assert data.classes[0] == "T-shirt/top"
    assert data.mirror
    assert data.train.labels.tolist() == labels
    assert np.array_equal(data.train.images[:, 0].numpy(), pixels)
    assert (data.channels, data.height, data.width) == (1, 28, 28)
    assert data.train.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cifar10", "cifar-10-python.tar.gz or its folder cifar-10-batches-py"),
        ("cifar100", "cifar-100-python.tar.gz or its folder cifar-100-python"),
        ("svhn", "train_32x32.mat and test_32x32.mat"),
        ("fashion_mnist", "FashionMNIST/raw with its four idx files"),
    ],
)
def test_without_files_and_network_says_where_to_put_them(tmp_path, capfd, name, files):
    with pytest.raises(
        DataError,
        match=f"^{name} cannot be read from {re.escape(str(tmp_path))} nor downloaded"
        rf" \([^\n]*\); put {re.escape(files)} into {re.escape(str(tmp_path))}$",
    ):
        load(name, data_dir=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_default_folder_is_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"put .* into {re.escape(str(tmp_path))}/.cache/sgenas$"):
        load("cifar10")
