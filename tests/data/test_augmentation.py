"""Augmentation against a slow reference that handles one image and one pixel at a time."""

import pytest
import torch
from torch import Tensor

from sgenas.data import Augmentation, statistics
from sgenas.errors import InvalidValueError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int, height: int = 8, width: int = 8, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (batch, channels, height, width), generator=generator(7), dtype=torch.uint8)


def reference(augmentation: Augmentation, images: Tensor, random: torch.Generator) -> Tensor:
    """The same from the definition: offsets in the documented order, then pixel by pixel."""
    batch, channels, height, width = images.shape
    pad, side = augmentation.pad, augmentation.cutout
    tops, lefts = torch.randint(0, 2 * pad + 1, (2, batch), generator=random).tolist()
    flips = torch.randint(0, 2, (batch,), generator=random).tolist()
    center_rows = torch.randint(0, height, (batch,), generator=random).tolist()
    center_columns = torch.randint(0, width, (batch,), generator=random).tolist()
    out = torch.empty(images.shape)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                y = tops[b] + i - pad
                x = lefts[b] + (width - 1 - j if augmentation.horizontal_flip and flips[b] else j) - pad
                inside = 0 <= y < height and 0 <= x < width
                top, left = center_rows[b] - side // 2, center_columns[b] - side // 2
                cut = top <= i < top + side and left <= j < left + side
                for c in range(channels):
                    level = int(images[b, c, y, x]) / 255 if inside else 0.0
                    value = (level - augmentation.mean[c]) / augmentation.std[c]
                    out[b, c, i, j] = 0.0 if cut else value
    return out


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pad": 0},
        {"horizontal_flip": False},
        {"cutout": 4},
        {"cutout": 5},
        {"pad": 0, "horizontal_flip": False, "cutout": 1},
        {"pad": 9, "cutout": 40},
    ],
)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9)])
def test_augmentation_equals_the_reference(fields, height, width):
    augmentation = Augmentation(mean=MEAN, std=STD, **fields)
    images = noise(6, height, width)
    kept = images.clone()
    out = augmentation(images, generator(3))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, reference(augmentation, images, generator(3)), rtol=1e-5, atol=1e-5)
    assert torch.equal(images, kept), "the input was changed"


def test_normalization_equals_torchvision():
    from torchvision.transforms.v2 import functional as V

    images = noise(6)
    expected = V.normalize(V.to_dtype(images, torch.float32, scale=True), list(MEAN), list(STD))
    augmentation = Augmentation(pad=0, horizontal_flip=False, mean=MEAN, std=STD)
    torch.testing.assert_close(augmentation.plain(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(augmentation(images, generator()), expected, rtol=1e-5, atol=1e-5)


def test_crops_and_flips_are_uniform():
    # one white pixel shows where the crop and the flip have put it
    images = torch.zeros(20_000, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 1] = 255
    augmentation = Augmentation(pad=1, mean=(0.0,), std=(1.0,))
    positions = augmentation(images, generator())[:, 0].flatten(1).argmax(1)
    share = torch.bincount(positions, minlength=25).view(5, 5) / len(positions)
    # without flip: columns 0..2, with flip: 2..4, each with 1/2, and rows 1..3
    expected = torch.zeros(5, 5)
    expected[1:4] = torch.tensor([1, 1, 2, 1, 1]) / 18
    torch.testing.assert_close(share, expected, rtol=0, atol=0.01)


def test_cutout_is_clipped_at_the_borders():
    augmentation = Augmentation(pad=0, horizontal_flip=False, cutout=4, mean=(0.0,), std=(1.0,))
    white = torch.full((5000, 1, 8, 8), 255, dtype=torch.uint8)
    cut = (augmentation(white, generator()) == 0).sum((1, 2, 3))
    # center - 2 .. center + 1, so 2, 3 or 4 rows and columns are inside
    assert set(cut.tolist()) == {4, 6, 8, 9, 12, 16}


def test_output_can_be_trained_on_after_use_in_inference_mode():
    augmentation = Augmentation(mean=(0.11, 0.12, 0.13), std=STD)
    with torch.inference_mode():
        augmentation.plain(noise(2))
    weight = torch.ones(1, requires_grad=True)
    (augmentation.plain(noise(2)) * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_batches_equal_cpu_batches():
    augmentation = Augmentation(mean=MEAN, std=STD, cutout=3)
    images = noise(16)
    on_gpu = augmentation(images.cuda(), generator(1))
    torch.testing.assert_close(on_gpu.cpu(), augmentation(images, generator(1)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pad", -1),
        ("pad", 1.0),
        ("cutout", True),
        ("mean", ()),
        ("mean", (0.1, float("nan"), 0.1)),
        ("std", (0.1, 0.0, 0.1)),
        ("std", (0.1,)),
    ],
)
def test_bad_field_is_named(field, value):
    with pytest.raises(InvalidValueError) as caught:
        Augmentation(**{"mean": MEAN, "std": STD, field: value})
    assert caught.value.field == f"Augmentation.{field}"


@pytest.mark.parametrize("images", [noise(2, channels=1), noise(2).float(), noise(2)[0]])
def test_images_of_another_form_are_refused(images):
    augmentation = Augmentation(mean=MEAN, std=STD)
    for use in (augmentation.plain, lambda images: augmentation(images, generator())):
        with pytest.raises(InvalidValueError, match=r"uint8 of shape \(B, 3, H, W\)"):
            use(images)


def test_statistics_equal_float64_and_normalize():
    images = noise(50, 6, 7)
    mean, std = statistics(images)
    scaled = images.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), rel=1e-12)
    out = Augmentation(mean=mean, std=std).plain(images)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.std((0, 2, 3), correction=0), torch.ones(3), rtol=1e-5, atol=0)


def test_std_of_a_constant_channel_is_one_gray_level():
    images = noise(4)
    images[:, 1] = 77
    mean, std = statistics(images)
    assert (mean[1], std[1]) == (pytest.approx(77 / 255), 1 / 255)
    with pytest.raises(InvalidValueError, match="not empty"):
        statistics(torch.zeros(0, 3, 4, 4, dtype=torch.uint8))
