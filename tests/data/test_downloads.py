"""The torchvision sources, on tiny archives in the official formats that the tests write; no network."""

import gzip
import hashlib
import pickle
import re
import struct
import tarfile
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgenas.data import load
from sgenas.data.downloads import DOWNLOADS, is_downloaded
from sgenas.errors import DataError


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Any attempt to reach the network fails as it does without one."""

    def fail(*_args, **_kwargs):
        raise urllib.error.URLError("no\nnetwork")

    monkeypatch.setattr("urllib.request.urlopen", fail)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar_part(pixels: np.ndarray, labels: list[int], key: str) -> dict:
    """One batch as in the official archive: rows of 3,072 values, all red ones first."""
    return {"data": pixels.reshape(len(pixels), -1), key: labels, "filenames": ["x.png"] * len(labels)}


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
    sums = {"filename": "meta", "key": "fine_label_names", "md5": md5(folder / "meta")}
    monkeypatch.setattr(CIFAR100, "meta", sums)
    archive = tmp_path / "packed" / "cifar-100-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive))

    def check(data) -> None:
        assert data.classes == tuple(f"fine{index}" for index in range(100))
        assert data.horizontal_flip
        for name, part in (("train", data.train), ("test", data.test)):
            assert part.labels.tolist() == labels[name]
            assert np.array_equal(part.images.numpy(), pixels[name])
            assert part.images.is_contiguous()

    return check


def test_cifar100_is_read_from_folder_or_archive_without_output(tmp_path, cifar100, capfd):
    for place in (tmp_path, tmp_path / "packed"):
        cifar100(load("cifar100", data_dir=place))
    part = load("cifar100", data_dir=tmp_path, train_images=100, test=False)
    assert part.train.labels.sort().values.tolist() == list(range(100))
    assert part.test is None
    assert capfd.readouterr() == ("", "")


def test_downloaded_images_are_resized_as_pillow_does_it(tmp_path, cifar100):
    whole = load("cifar100", data_dir=tmp_path)
    found = load("cifar100", data_dir=tmp_path, image_size=16)
    assert found.train.images.shape == (300, 3, 16, 16)
    assert found.notes == ("images changed: 400 scaled and cropped to 16 x 16",)
    for ours, image in ((found.train.images[7], whole.train.images[7]), (found.test.images[3], whole.test.images[3])):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC)
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(picture))
    assert not load("cifar100", data_dir=tmp_path, image_size=32).notes


def test_file_with_a_wrong_md5_sum_is_not_unpickled(tmp_path, cifar100):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="^cifar100 can be neither read"):
        load("cifar100", data_dir=tmp_path)
    assert not (tmp_path / "exploded").exists()


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
    assert (data.classes, data.horizontal_flip) == (tuple("0123456789"), False)
    assert data.train.labels.tolist() == [value % 10 for value in stored]
    assert np.array_equal(data.train.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert data.test.images.is_contiguous()


@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_is_read_packed_or_unpacked(tmp_path, monkeypatch, pictures, zipped):
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
    assert (data.classes[0], data.horizontal_flip) == ("T-shirt/top", True)
    assert data.train.labels.tolist() == labels
    assert np.array_equal(data.train.images.numpy(), pixels[:, None])


@pytest.mark.parametrize("name", DOWNLOADS)
def test_missing_files_without_network_are_one_line_with_the_remedy(tmp_path, monkeypatch, capfd, name):
    file, place = re.escape(DOWNLOADS[name][1]), re.escape(str(tmp_path))
    with pytest.raises(DataError, match=rf"^{name} [^\n]* put {file}[^\n]* into {place}$"):
        load(name, data_dir=tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"into {place}/.cache/sgenas$"):
        load(name)
    assert capfd.readouterr() == ("", "")


def test_downloads_are_found_without_reading(tmp_path, monkeypatch):
    assert not is_downloaded("cifar10", tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").touch()
    (tmp_path / ".cache" / "sgenas" / "cifar-100-python").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_downloaded("cifar10", tmp_path)
    assert not is_downloaded("cifar100", tmp_path)
    assert is_downloaded("cifar100")
