"""Shared by all figures: colors, text that is shown as it is, saving as PNG or SVG. Never touches pyplot."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgenas.errors import InvalidValueError
from sgenas.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
DPI = 130
GRAY = "#999999"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette, distinct under the common kinds of color blindness, without its yellow: a thin
yellow line is invisible on white."""
_COLORS = {
    "none": GRAY,
    "max_pool_3x3": "#D55E00",
    "avg_pool_3x3": "#E69F00",
    "skip_connect": "#009E73",
    "sep_conv_3x3": "#0072B2",
    "sep_conv_5x5": "#56B4E9",
    "dil_conv_3x3": "#CC79A7",
    "dil_conv_5x5": "#000000",
    "nor_conv_1x1": "#56B4E9",
    "nor_conv_3x3": "#0072B2",
    "mb3_k3": "#0072B2",
    "mb6_k5": "#D55E00",
}
_DASHES: dict[str, tuple[float, tuple[float, ...]]] = {
    "none": (0, (1, 1.5)),
    "skip": (0, (5, 1.5, 1, 1.5)),
    "max": (0, (3.5, 1.5)),
    "avg": (0, (3.5, 1.5)),
    "dil": (0, (8, 1.5)),
}
STYLES = ("-", "--", "-.", ":")


def color(operation: str) -> str:
    """The color of an operation in every figure, as #RRGGBB."""
    return _COLORS.get(operation, PALETTE[0])


def dashes(operation: str) -> tuple[float, tuple[float, ...]]:
    """The line style of an operation's family (pooling, skip, separable, dilated), for matplotlib."""
    return _DASHES.get(operation.split("_")[0], (0, ()))


def plain(text: str) -> str:
    """``text`` without control characters, and with ``$`` escaped: matplotlib would read mathematics."""
    visible = re.sub(
        "[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda found: found[0].encode("unicode_escape").decode(), text
    )
    return visible.replace("$", r"\$")


@contextmanager
def house_style() -> Iterator[None]:
    """The defaults of matplotlib, whatever the user's settings; SVG keeps text as text and has fixed ids."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # a letter that the font lacks becomes a box, without a warning for each of them
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sgenas"})
        yield


def image_bytes(figure: "Figure", suffix: str = ".png") -> bytes:
    """``figure`` as a PNG or SVG file; equal figures give equal bytes."""
    options: dict[str, Any] = (
        {"metadata": {"Date": None}} if suffix == ".svg" else {"dpi": DPI, "pil_kwargs": {"compress_level": 3}}
    )
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format=suffix[1:], **options)
    return buffer.getvalue()


def save_figure(figure: "Figure", path: str | Path) -> bytes:
    """Writes ``figure`` as PNG or SVG, by the suffix of ``path``, and returns the content.

    Raises:
        InvalidValueError: If the suffix is neither.
        RunDirError: If the file cannot be written.
    """
    suffix = check_suffix(path)
    content = image_bytes(figure, suffix)
    with replacing(Path(path)) as file:
        file.write(content)
    return content


def check_suffix(path: str | Path) -> str:
    """The suffix of ``path`` in lower case.

    Raises:
        InvalidValueError: If no figure can be saved under it.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        message = f"path must end in one of {', '.join(SUFFIXES)}, got {str(path)!r}"
        raise InvalidValueError(message, field="path")
    return suffix
