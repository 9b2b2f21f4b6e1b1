"""docs/command-line.md has what the code has."""

import re
from dataclasses import fields
from pathlib import Path

from sgenas.command_line.codes import EXIT_CODES
from sgenas.commands import COMMANDS

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()


def test_the_page_has_every_command_in_order() -> None:
    assert re.findall(r"^\| `([a-z0-9]+)` \|", PAGE, re.MULTILINE) == list(COMMANDS)


def test_the_page_has_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert {int(code): said for code, said in rows} == EXIT_CODES


def test_the_page_names_the_commands_with_json() -> None:
    [said] = re.findall(r"nothing else there: (.*?)\. ", PAGE.replace("\n", " "))
    having = {name for name, kind in COMMANDS.items() if "json" in {item.name for item in fields(kind)}}
    assert {name.split()[0] for name in re.findall(r"`([^`]+)`", said)} == having
