"""What all figures share: colours, plain text, and saving without global matplotlib state."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sgenas.errors import InvalidValueError
from sgenas.files import replacing
from sgenas.terminal import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
GREY = "#999999"

# Okabe and Ito's palette, which stays apart under the common kinds of colour blindness. Its yellow is left
# out: a thin yellow line cannot be seen on white.
_COLOURS = {
    "none": GREY,
    "max_pool_3x3": "#D55E00",
    "avg_pool_3x3": "#E69F00",
    "skip_connect": "#009E73",
    "sep_conv_3x3": "#0072B2",
    "sep_conv_5x5": "#56B4E9",
    "dil_conv_3x3": "#CC79A7",
    "dil_conv_5x5": "#000000",
    "nor_conv_1x1": "#56B4E9",
    "nor_conv_3x3": "#0072B2",
}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""For lines that stand for other things than operations."""
_DASHES: dict[str, tuple[float, tuple[float, ...]]] = {
    "none": (0, (1, 1.5)),
    "skip": (0, (5, 1.5, 1, 1.5)),
    "max": (0, (3.5, 1.5)),
    "avg": (0, (3.5, 1.5)),
    "dil": (0, (8, 1.5)),
}


def colour(operation: str) -> str:
    """The colour of an operation in every figure, as #RRGGBB."""
    return _COLOURS.get(operation, "#555555")


def dashes(operation: str) -> tuple[float, tuple[float, ...]]:
    """The line style of an operation's family (pooling, skip, separable, dilated), as matplotlib takes it."""
    return _DASHES.get(operation.split("_")[0], (0, ()))


def plain(text: str) -> str:
    """`text` such that matplotlib shows it as it is and reads nothing between `$` as mathematics.

    Control characters, which no SVG may hold, are written out.
    """
    return printable(text).replace("$", r"\$")


@contextmanager
def house_style() -> Iterator[None]:
    """matplotlib's own defaults, whatever the user has set, with text kept as text and fixed ids in SVG."""
    import matplotlib.style

    svg = {"svg.fonttype": "none", "svg.hashsalt": "sgenas"}
    with matplotlib.style.context(["default", svg]), warnings.catch_warnings():
        # names in a script that the font lacks: boxes in the drawing, and no line on stderr for each of them
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        yield


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Writes `figure` as PNG or SVG by the suffix of `path`; equal figures give equal bytes.

    Raises InvalidValueError for any other suffix, RunFolderError when the file cannot be written. An existing
    file is replaced once the new one is complete.
    """
    path = Path(path)
    suffix = check_suffix(path)
    metadata = {"Date": None} if suffix == ".svg" else None
    with house_style(), replacing(path) as file:
        figure.savefig(file, format=suffix[1:], dpi=150, metadata=metadata)
    return path


def check_suffix(path: str | Path) -> str:
    """The suffix of `path`, in lower case; InvalidValueError when no figure can be saved under it."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidValueError(f"path must end in one of {', '.join(SUFFIXES)}, got {str(path)!r}")
    return suffix


def inline_svg(figure: "Figure", prefix: str, description: str) -> str:
    """`figure` as one <svg> element to put into HTML: all ids begin with `prefix`, nothing points outside."""
    from markupsafe import escape

    buffer = io.StringIO()
    with house_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # the metadata names addresses on the web and the version of matplotlib: neither belongs in the page
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # only inside tags, so that no text of the figure is touched
    text = re.sub(
        r"<[^>]*>",
        lambda tag: re.sub(r'(\bid="|href="#|url\(#)', lambda match: match[1] + prefix + "-", tag[0]),
        text,
    )
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
