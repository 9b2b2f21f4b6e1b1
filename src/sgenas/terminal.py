"""Text from files on its way to a terminal, which obeys what is written in it."""

import re

_ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, what turns the direction of writing, and halves of characters,
which no terminal takes."""
_BREAKS = re.compile(r"[\t\n]")


def printable(text: str) -> str:
    r"""`text` with a terminal's orders written out: the escape character becomes the four characters \x1b."""
    return _ORDERS.sub(_written_out, text)


def printable_line(text: str) -> str:
    """`printable`, with line feeds and tabs written out too: one line."""
    return _BREAKS.sub(_written_out, printable(text))


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
