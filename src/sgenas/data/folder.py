"""``folder:DIR``: one folder per class, directly in DIR or below ``DIR/train`` and ``DIR/test``."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgenas.data.decode import Encoded, decoded
from sgenas.data.images import ImageData
from sgenas.data.sources import DATASET_SOURCES, DatasetSource, LoadRequest, absolute_path
from sgenas.errors import DataError, one_line

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_folder(place: str, request: LoadRequest) -> ImageData:
    """The images of class folders, classes in alphabetical order, found by torchvision's ``ImageFolder``."""
    root = Path(place).expanduser()
    train_root, test_root = root / "train", root / "test"
    # a class may be called "train" too; then it has no folders inside
    nested = train_root.is_dir() and any(item.is_dir() for item in train_root.iterdir())
    skipped: list[str] = []
    images, labels, classes = _find(train_root if nested else root, skipped)
    chosen = request.choose(labels, classes)
    test = None
    if request.test and nested and test_root.is_dir():
        test_images, test_labels, names = _find(test_root, skipped)
        for name in set(names) - set(classes):
            raise DataError(f"class folder {test_root / name} has no counterpart in {train_root}")
        test = test_images, torch.tensor([classes.index(name) for name in names])[test_labels]
    note = f"{len(skipped):,} files skipped that have no image extension" if skipped else ""
    train = [images[index] for index in chosen.tolist()], labels[chosen]
    return decoded(request, train, test, classes, origin=str(root), notes=(note,) if note else ())


def _find(root: Path, skipped: list[str]) -> tuple[list[Encoded], Tensor, tuple[str, ...]]:
    """Images, labels and class names below ``root``; adds other files to ``skipped``."""
    from torchvision.datasets import ImageFolder

    class VisibleFolder(ImageFolder):
        def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
            names = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
            return names, {name: index for index, name in enumerate(names)}

    def is_image(path: str) -> bool:
        good = path.lower().endswith(EXTENSIONS)
        if not good and not Path(path).name.startswith("."):
            skipped.append(path)
        return good

    try:
        found = VisibleFolder(str(root), is_valid_file=is_image)
    except OSError as error:
        raise DataError(f"{root} must have one folder of images per class: {one_line(error)}") from None
    images = [Encoded(path, Path(path)) for path, _ in found.samples]
    return images, torch.tensor(found.targets, dtype=torch.int64), tuple(found.classes)


DATASET_SOURCES.register("folder", DatasetSource(load_folder, "DIR", absolute=absolute_path))
