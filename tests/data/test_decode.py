"""What Pillow leaves to its callers: orientation, transparency, frames, depth; through folder:DIR."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sgenas.data import load
from sgenas.errors import DataError

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The blend in float64, (H, W, C) of color and (H, W) of alpha; 255 is odd, so that nothing is a tie."""
    share = alpha[..., None].astype(np.float64) / 255
    return np.round(color * share + 255 * (1 - share)).astype(np.uint8)


@pytest.fixture
def load_one(tmp_path):
    """load_one(content, ...) -> (pixels (C, H, W) of that image among plain ones of 5 x 4 pixels, notes)."""

    def make(content: bytes, name: str = "1.png", gray: bool = False, **arguments) -> tuple[torch.Tensor, str]:
        for folder in "ab":
            (tmp_path / folder).mkdir(exist_ok=True)
            plain = pixels(4, 5) if gray else pixels(4, 5, 3)
            (tmp_path / folder / "0.png").write_bytes(encoded(Image.fromarray(plain)))
        (tmp_path / "a" / name).write_bytes(content)
        data = load(f"folder:{tmp_path}", **arguments)
        assert len(data.notes) <= 1
        return data.train.images[1], "".join(data.notes)

    return make


# numpy's own turns, written out: rows run down, rot90 turns counterclockwise
UPRIGHT = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, k=-1),
    7: lambda image: np.rot90(image.swapaxes(0, 1), k=2),
    8: lambda image: np.rot90(image, k=1),
}


@pytest.mark.parametrize("value", [*UPRIGHT, 0, 9])
def test_orientation_turns_the_image_upright(load_one, value):
    image = pixels(5, 4, 3) if 5 <= value <= 8 else pixels(4, 5, 3)
    content = encoded(Image.fromarray(image), exif=orientation(value))
    found, note = load_one(content)
    expected = UPRIGHT.get(value, UPRIGHT[1])(image)
    assert np.array_equal(found.numpy(), expected.transpose(2, 0, 1))
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(content)))), expected)
    assert ("1 rotated or flipped" in note) == (2 <= value <= 8)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_orientation_of_compressed_photos(load_one, file_format):
    content = encoded(Image.fromarray(pixels(5, 4, 3)), file_format, exif=orientation(8))
    found, note = load_one(content, "1.jpg")
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("RGB"))
    assert np.array_equal(found.numpy(), expected.transpose(2, 0, 1))
    assert "1 rotated" in note


def test_orientation_behind_the_pixels_of_a_png_is_honored(load_one):
    image = pixels(5, 4, 3)
    content = encoded(Image.fromarray(image), exif=orientation(6))
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    late = content[:start] + content[end:last] + content[start:end] + content[last:]
    found, _ = load_one(late)
    assert np.array_equal(found.numpy(), np.rot90(image, k=-1).transpose(2, 0, 1))


def test_orientation_in_xmp_is_honored(load_one):
    content = encoded(Image.fromarray(pixels(5, 4, 3)), "JPEG", xmp=b'<x tiff:Orientation="6"/>')
    expected = np.rot90(np.asarray(Image.open(BytesIO(content))), k=-1)
    assert np.array_equal(load_one(content)[0].numpy(), expected.transpose(2, 0, 1))


@pytest.mark.filterwarnings("error")
def test_damaged_metadata_leaves_the_image_as_it_is(load_one):
    image = pixels(4, 5, 3)
    found, note = load_one(encoded(Image.fromarray(image), exif=b"Exif\0\0no such thing"))
    assert np.array_equal(found.numpy(), image.transpose(2, 0, 1))
    assert note == ""


def test_orientation_decides_the_size(load_one, tmp_path):
    with pytest.raises(DataError, match="got 4 x 5"):
        load_one(encoded(Image.fromarray(pixels(4, 5, 3)), exif=orientation(6)))
    turned = pixels(6, 3, 3)
    found, _ = load_one(encoded(Image.fromarray(turned), exif=orientation(6)), image_size=3)
    expected = ImageOps.fit(Image.fromarray(np.rot90(turned, k=-1)), (3, 3), Image.Resampling.BICUBIC)
    assert np.array_equal(found.numpy(), np.asarray(expected).transpose(2, 0, 1))


def test_alpha_is_put_on_white(load_one):
    image = pixels(4, 5, 4)
    image[0, :3, 3] = (0, 128, 255)
    found, note = load_one(encoded(Image.fromarray(image)))
    expected = on_white(image[..., :3], image[..., 3])
    assert np.array_equal(found.numpy(), expected.transpose(2, 0, 1))
    assert expected[0, 0].tolist() == [255, 255, 255]
    assert note == "images changed: 1 with transparency put on white"


def test_opaque_alpha_changes_nothing(load_one):
    image = pixels(4, 5, 4)
    image[..., 3] = 255
    found, note = load_one(encoded(Image.fromarray(image)))
    assert np.array_equal(found.numpy(), image[..., :3].transpose(2, 0, 1))
    assert note == ""


def test_gray_alpha_stays_gray(load_one):
    image = pixels(4, 5, 2)
    found, note = load_one(encoded(Image.fromarray(image, "LA")), gray=True)
    assert found.shape == (1, 4, 5)
    assert np.array_equal(found.numpy(), on_white(image[..., :1], image[..., 1]).transpose(2, 0, 1))
    assert "1 with transparency" in note


@pytest.mark.parametrize("transparency", [1, b"\x00\x80\xff"])
@pytest.mark.filterwarnings("error")
def test_palette_transparency_is_put_on_white(load_one, transparency):
    colors = np.array([[10, 20, 30], [40, 150, 60], [70, 80, 190]], dtype=np.uint8)
    index = RNG.integers(0, 3, (4, 5)).astype(np.uint8)
    image = Image.fromarray(index)
    image.putpalette(colors.tobytes())
    alphas = np.array([255, 0, 255] if transparency == 1 else list(transparency), dtype=np.uint8)
    found, note = load_one(encoded(image, transparency=transparency))
    assert np.array_equal(found.numpy(), on_white(colors[index], alphas[index]).transpose(2, 0, 1))
    assert "1 with transparency" in note


@pytest.mark.parametrize("gray", [False, True])
def test_a_transparent_color_is_put_on_white(load_one, gray):
    image = pixels(4, 5) if gray else pixels(4, 5, 3)
    key = image[1, 2]
    hidden = image == key if gray else (image == key).all(-1)
    found, note = load_one(encoded(Image.fromarray(image), transparency=int(key) if gray else tuple(map(int, key))))
    expected = np.where(hidden, 255, image) if gray else np.where(hidden[..., None], 255, image)
    expected = np.stack([expected] * 3, -1) if gray else expected
    assert np.array_equal(found.numpy(), expected.transpose(2, 0, 1))
    assert "1 with transparency" in note


def test_transparency_is_blended_before_scaling(load_one):
    image = np.zeros((8, 8, 4), dtype=np.uint8)
    image[2:6, 2:6] = (200, 100, 50, 255)
    found, _ = load_one(encoded(Image.fromarray(image)), image_size=4)
    blended = Image.fromarray(on_white(image[..., :3], image[..., 3]))
    expected = ImageOps.fit(blended, (4, 4), Image.Resampling.BICUBIC)
    assert np.array_equal(found.numpy(), np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize(("file_format", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_animations_give_their_first_frame(load_one, file_format, options):
    frames = [Image.new("RGB", (5, 4), color) for color in ((200, 30, 40), (1, 2, 3), (9, 90, 9))]
    content = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    found, note = load_one(content, f"1.{file_format.lower()}")
    assert (found == torch.tensor([200, 30, 40]).view(3, 1, 1)).all()
    assert note == "images changed: 1 animated, first frame used"


def test_second_picture_of_a_phone_photo_is_no_animation(load_one):
    frames = [Image.fromarray(pixels(4, 5, 3)) for _ in range(2)]
    content = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    found, note = load_one(content, "1.jpg")
    assert np.array_equal(found.numpy(), np.asarray(Image.open(BytesIO(content))).transpose(2, 0, 1))
    assert note == ""


def test_cmyk_is_converted_and_counted(load_one):
    content = encoded(Image.new("CMYK", (5, 4), (0, 255, 255, 0)), "JPEG", quality=95)
    found, note = load_one(content, "1.JPG")
    assert (found.int() - torch.tensor([255, 0, 0]).view(3, 1, 1)).abs().max() <= 8
    assert note == "images changed: 1 CMYK converted to RGB"


def test_color_of_16_bits_keeps_its_upper_8(load_one):
    # Pillow writes no such file: header, unfiltered rows of big-endian samples, end
    import struct
    import zlib

    samples = RNG.integers(0, 65536, (4, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    content = b"\x89PNG\r\n\x1a\n"
    parts = ((b"IHDR", struct.pack(">2I5B", 5, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    for kind, body in parts:
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    found, note = load_one(content)
    assert np.array_equal(found.numpy(), (samples >> 8).astype(np.uint8).transpose(2, 0, 1))
    assert note == "images changed: 1 reduced from 16 to 8 bits per channel"
