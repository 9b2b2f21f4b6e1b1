"""Shared by the tests of sgenas.data: image makers, and a guard on global random state."""

import random
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgenas.data import ImageSet


@pytest.fixture(autouse=True)
def _global_random_state_untouched():
    """Every test here also checks that nothing it calls draws from or seeds a global generator."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert before[2][2:] == after[2][2:]
    assert np.array_equal(before[2][1], after[2][1])


@pytest.fixture
def encode():
    """encode(array (H, W) or (H, W, 3), file_format="PNG", mode=None) -> bytes of the image file."""

    def make(array: np.ndarray, file_format: str = "PNG", mode: str | None = None) -> bytes:
        image = Image.fromarray(array)
        buffer = BytesIO()
        (image if mode is None else image.convert(mode)).save(buffer, file_format)
        return buffer.getvalue()

    return make


@pytest.fixture
def pictures():
    """pictures(count, *shape, seed=0) -> random uint8 array (count, *shape)."""

    def make(count: int, *shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)

    return make


@pytest.fixture
def numbered():
    """numbered(n) -> n images of 1 x 2 x 2, all pixels of image i are i, labels i % 3."""

    def make(size: int) -> ImageSet:
        images = torch.arange(size, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
        return ImageSet(images, torch.arange(size) % 3)

    return make


@pytest.fixture
def shared_data() -> Path:
    """The directory with CIFAR-10 and others in Parquet; skips the test if it is missing."""
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not (folder / "cifar10-train.parquet").is_file():
        pytest.skip(f"no CIFAR-10 in {folder}")
    return folder


@pytest.fixture
def rows_of():
    """rows_of(images (M, C, H, W), arrays (N, H, W, C)) -> the rows of arrays that the images are."""

    def find(images: torch.Tensor, arrays: np.ndarray) -> list[int]:
        row_of = {array.transpose(2, 0, 1).tobytes(): row for row, array in enumerate(arrays)}
        return [row_of[image.numpy().tobytes()] for image in images]

    return find
