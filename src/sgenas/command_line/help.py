"""Help that fits the screen: what tyro draws, with its long lines folded, headings and a foldable example."""

import inspect
import io
import re
import shutil
import textwrap
from collections import Counter
from typing import TextIO

from rich.console import Console
from rich.text import Text

import sgenas
from sgenas.command_line.codes import EXIT_CODES
from sgenas.commands import COMMANDS, GROUPS

MOST_COLUMNS, LEAST_COLUMNS = 120, 40
"""Longer lines are hard to read, and from 130 columns on tyro sets two boxes side by side."""
ESTIMATORS = {
    "--directions": "sge and evolution",
    "--last-steps": "unrolled, neumann and conjugate-gradient",
}
HEADINGS: dict[str, dict[str, str]] = {
    "search": {"--settings": "Where it starts", "--out": "Where it writes", **ESTIMATORS},
    "plan": {"--settings": "Where it starts", **ESTIMATORS},
    "train": {"--genotype": "What is trained, and where it writes", "--recipe": "Where it starts"},
    "table1": {
        "--out": "The grid",
        "--jobs": "Where its runs run",
        "--only-tables": "Instead of running what is missing",
    },
    "lab": {
        "--problem": "What is measured",
        "--directions": "Axes: each takes several values",
        "--batches": "How often",
        "--momentum": "The weights, and the way to a moment",
        "--truth-directions": "The truths, and precision",
        "--data": "Supernets",
        "--seed": "The run",
    },
}
"""Command -> a flag -> the heading above it, where a box holds too many to be read in one go."""
FLAG = re.compile(r"[│ ] (--[a-z][a-z0-9-]*)")
"""A line that begins what is said about a flag; what goes on with it stands further to the right."""
BESIDE = re.compile("  [^ ]")
"""Two columns before what is said about a flag, where that begins beside the flag."""
BROKEN = re.compile("=[^ ]*,$")
LEAST_INDENT = 6
"""Of what goes on with a flag; boxes have two columns, and nothing else in them is so far to the right."""
WORD = re.compile(r'(?:[^\s"]|"[^"]*")+')


class Drawn(io.StringIO):
    """Stands in for stdout while tyro draws, which styles and draws boxes as the `real` one can show them."""

    def __init__(self, real: TextIO) -> None:
        super().__init__()
        self._real = real

    def isatty(self) -> bool:
        return self._real.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._real, "encoding", None) or "ascii"


def help_width() -> int:
    """Columns that help takes: those of the terminal or of COLUMNS, within reason."""
    return max(LEAST_COLUMNS, min(MOST_COLUMNS, shutil.get_terminal_size().columns))


def summary(name: str) -> str:
    """The first paragraph of a command's doc as one line."""
    return " ".join(_paragraphs(name)[0].split())


def example(name: str) -> str:
    """The command line that a command's doc gives as its example."""
    found = [" ".join(text.split()) for text in _paragraphs(name) if text.startswith("Example: ")]
    return found[0].removeprefix("Example: ")


def overview() -> str:
    """What `sgenas --help` says: every command in a line or two, by groups, and the exit codes."""
    width = help_width()
    indent = max(map(len, COMMANDS)) + 4
    lines = ["usage: sgenas COMMAND [OPTIONS]", "", *textwrap.wrap(inspect.getdoc(sgenas) or "", width)]
    for heading, commands in GROUPS.items():
        lines += ["", f"{heading}:"]
        for name in commands:
            lines += _row(name, summary(name), indent, width)
    lines += ["", "Exit codes:"]
    for code, said in EXIT_CODES.items():
        lines += _row(str(code), said, 6, width)
    more = (
        "sgenas COMMAND --help lists a command's options with their defaults, and an example;"
        " sgenas --version says the version."
    )
    lines += ["", *textwrap.wrap(more, width)]
    return "\n".join(lines) + "\n"


def print_help(name: str, drawn: str) -> None:
    """Prints what tyro has drawn for a command: paragraphs filled, long lines folded, headings put in."""
    console = Console(markup=False, highlight=False, width=help_width())
    headings = dict(HEADINGS.get(name, {}))
    lines = [Text.from_ansi(raw) for raw in drawn.rstrip().split("\n")]
    for line in _filled(lines, console):
        flag = FLAG.match(line.plain)
        if flag is not None and flag[1] in headings:
            for text in ("", headings.pop(flag[1])):
                console.print(_boxed(text, line.plain), soft_wrap=True)
        for part in _folded(line, console):
            console.print(part, soft_wrap=True)


def _filled(lines: list[Text], console: Console) -> list[Text]:
    """The lines with what is said about each flag filled anew: tyro keeps the line breaks of the source."""
    indents = Counter(found for found in map(_indent, lines) if found > LEAST_INDENT)
    if not indents:
        return lines
    column = indents.most_common(1)[0][0]
    filled: list[Text] = []
    while lines:
        end = next((at for at, line in enumerate(lines[1:], 1) if _indent(line) != column), len(lines))
        first, said, lines = lines[0], lines[1:end], lines[end:]
        beside = BESIDE.match(first.plain, column - 2) is not None
        if not said or first.plain[0] not in "│ ":
            filled += [first, *said]
            continue
        # a box has a side and a space on the right too
        right = 2 if first.plain[0] == "│" else 0
        side = first[len(first) - right :]
        if beside:
            begin, said = first[:column], [first, *said]
        else:
            filled.append(first)
            begin = first[:2].append(" " * (column - 2))
        words = _stripped(said[0][column : len(said[0]) - right])
        for line in said[1:]:
            # tyro breaks a long word after a comma: that of a specification, sge:q=4,variate, is one word
            broken = BROKEN.search(words.plain) is not None
            words.append("" if broken else " ").append_text(_stripped(line[column : len(line) - right]))
        width = len(first) - right - column
        for part in words.wrap(console, width):
            part.rstrip()
            part.pad_right(width - len(part))
            filled.append(Text().join([begin, part, side]))
            begin = first[:2].append(" " * (column - 2))
    return filled


def _indent(line: Text) -> int:
    """Column of the first letter beside the left side of the box."""
    inside = line.plain[1:]
    return len(line.plain) - len(inside.lstrip(" "))


def _stripped(line: Text) -> Text:
    line = line[len(line.plain) - len(line.plain.lstrip()) :]
    line.rstrip()
    return line


def _paragraphs(name: str) -> list[str]:
    return (inspect.getdoc(COMMANDS[name]) or "").split("\n\n")


def _row(name: str, said: str, indent: int, width: int) -> list[str]:
    begin = f"  {name}".ljust(indent)
    return textwrap.wrap(said, width, initial_indent=begin, subsequent_indent=" " * indent)


def _boxed(text: str, like: str) -> Text:
    """A heading with the sides of the box that the line `like` stands in."""
    if like[0] == " ":
        return Text(f"  {text}".rstrip(), style="bold")
    line = Text(like[0], style="dim")
    line.append(f" {text}".ljust(len(like) - 2), style="bold")
    return line.append(like[-1], style="dim")


def _folded(line: Text, console: Console) -> list[Text]:
    line.rstrip()
    if line.plain.startswith("Example: "):
        words = WORD.findall(line.plain.removeprefix("Example: "))
        return [Text("Example:"), *map(Text, fold_command(words, console.width))]
    if len(line.plain) <= console.width:
        return [line]
    begin = len("usage: ") if line.plain.startswith("usage: ") else 0
    parts = line.wrap(console, console.width - begin)
    for part in parts:
        part.rstrip()
    return [parts[0], *(Text(" " * begin).append_text(part) for part in parts[1:])]


def fold_command(words: list[str], width: int) -> list[str]:
    """A command in lines that a shell reads as one; a flag stays with its first value."""
    pieces: list[str] = []
    for word in words:
        if pieces and pieces[-1].startswith("--") and " " not in pieces[-1] and not word.startswith("--"):
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
    lines = [f"  {pieces[0]}"]
    for piece in pieces[1:]:
        # two columns stay free for the backslash
        if len(lines[-1]) + 1 + len(piece) <= width - 2:
            lines[-1] += f" {piece}"
        else:
            lines[-1] += " \\"
            lines.append(f"    {piece}")
    return lines
