"""The help of every command, and `sgenas --help`."""

import re
import shlex
import subprocess

import pytest
from terminal import CONTROL, on_a_terminal, piped

from sgenas.cli import main
from sgenas.command_line.codes import EXIT_CODES
from sgenas.command_line.help import FLAG, HEADINGS, example, fold_command, summary
from sgenas.command_line.parsing import parse
from sgenas.commands import COMMANDS

MOST_FLAGS = 12
"""That may stand one below the other without a heading or a new box."""


@pytest.fixture
def help_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def say(name: str, columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code in (0, None)
        return capsys.readouterr().out.splitlines()

    return say


def option_blocks(lines: list[str]) -> list[list[str]]:
    """What is said about each flag, between headings and rules."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if FLAG.match(line):
            blocks[-1].append(line.strip())
        elif not line.strip() or "----" in line:
            blocks.append([])
        elif line.startswith("   ") and blocks[-1]:
            blocks[-1][-1] += f" {line.strip()}"
    return [block for block in blocks if block]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_shows_defaults_and_an_example_that_parses(name, help_of) -> None:
    for columns in (60, 80, 120):
        assert max(map(len, help_of(name, columns))) <= columns
    lines = help_of(name, 80)
    words = " ".join(" ".join(lines).split())
    assert summary(name) in words
    blocks = option_blocks(lines)
    assert blocks or name == "completion"
    for block in blocks:
        assert len(block) <= MOST_FLAGS, f"{name}: {len(block)} flags without a heading"
        for option in block:
            assert re.search(r"\((default: .+|required)\)$", option), option
    flags = {option.split()[0] for block in blocks for option in block}
    assert set(HEADINGS.get(name, {})) <= flags
    for heading in HEADINGS.get(name, {}).values():
        assert f"  {heading}" in lines

    start = lines.index("Example:") + 1
    shown = " ".join(lines[start : lines.index("", start)])
    command = shlex.split(re.sub(r"\\ ", " ", shown))
    assert command == shlex.split(example(name))
    assert command[:2] == ["sgenas", name]
    assert isinstance(parse(command[1:]), COMMANDS[name])


def test_paragraphs_are_filled_and_words_stay_whole(help_of) -> None:
    for columns in range(60, 121, 4):
        lines = help_of("lab", columns)
        assert "first-order, sge or sge:q=4,orthogonal,variate; see docs/lab.md" in " ".join(
            " ".join(lines).split()
        )
    lines = help_of("search", 80)
    continued = [at for at, line in enumerate(lines) if line.startswith(" " * 12)]
    assert len(continued) > 50
    for at in continued:
        # the line above is full, or ends with the flag
        full = len(lines[at - 1]) + 1 + len(lines[at].split()[0]) > 80
        assert full or re.search(r"--[a-z0-9-]+ [^ ]+$", lines[at - 1]), lines[at]


def test_a_folded_command_is_one_for_a_shell() -> None:
    words = ["sgenas", "query", "--table", "a.csv", "--arch", '"|a b|"', "--json"]
    lines = fold_command(words, 24)
    assert lines == ["  sgenas query \\", "    --table a.csv \\", '    --arch "|a b|" \\', "    --json"]
    out = subprocess.run(
        ["bash", "-c", "sgenas() { printf '%s;' \"$@\"; }\n" + "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout == "query;--table;a.csv;--arch;|a b|;--json;"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_overview_names_every_command_and_exit_code(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(arguments) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in COMMANDS:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
    for code in EXIT_CODES:
        assert sum(line.startswith(f"  {code} ") for line in lines) == 1


def test_help_on_a_terminal_has_boxes_and_a_pipe_has_plain_text() -> None:
    command = ("-m", "sgenas", "doctor", "--help")
    assert CONTROL.search(piped(*command)) is None
    shown = on_a_terminal(80, *command)
    assert b"\x1b[" in shown
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r", "")
    assert "╭─ options " in text
    assert max(map(len, text.splitlines())) <= 80
