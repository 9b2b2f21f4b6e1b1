"""Help, version and errors of the parser; none of them imports torch."""

import argparse
import re
import shlex
import subprocess
import sys

import pytest

import sgenas
from sgenas.cli import flags
from sgenas.cli.commands import COMMANDS, run, train
from sgenas.cli.console import EXIT_CODES
from sgenas.cli.main import main


def shown(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_the_terminal_and_its_example_parses(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = shown(capsys, name, "--help")
        assert max(map(len, text.splitlines())) <= columns
    command = COMMANDS[name]
    assert " ".join(command.summary.split()) in " ".join(text.split())
    if name != "completion":
        program, called, *line = shlex.split(command.example)
        assert (program, called) == ("sgenas", name)
        assert isinstance(command.parse(line)[0], argparse.Namespace)


@pytest.mark.parametrize(
    ("name", "common"), [("search", run.COMMON_FLAGS), ("train", train.COMMON_FLAGS), ("plan", run.COMMON_FLAGS)]
)
def test_help_shows_common_flags_and_help_all_every_flag(
    name: str, common: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    schema = flags.load("train" if name == "train" else "search")
    every = {flag.name for flag in schema.flags}
    assert len(common) <= 20
    assert set(common) <= every
    found = set(re.findall(r"^  (--[a-z0-9-]+)", shown(capsys, name, "--help"), re.MULTILINE))
    assert set(common) == found & every
    found = set(re.findall(r"^  (--[a-z0-9-]+)", shown(capsys, name, "--help-all"), re.MULTILINE))
    assert every <= found


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("search",), "(default: 0.025)"),
        (("search", "--method", "pc-darts"), "(default: 256)"),
        (("search", "--estimator=sge"), "evolution-strategies; default: 0.1)"),
        (("search", "--preset", "paper"), "evolution-strategies; default: 0.01)"),
        (("train", "--recipe", "fast"), "(default: 128)"),
        (("size",), "(default: 10)"),
    ],
)
def test_help_shows_effective_defaults(line: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in " ".join(shown(capsys, *line, "--help").split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ((), "Alphas: learning rate, > 0 (default: 0.0003 with adam)"),
        (("--preset", "paper"), "Alphas: learning rate, > 0 (default: 0.01 with sgd)"),
        ((), "L2 regularization, >= 0 (default: 0.0003 with sgd, 0.0 with adam, 0.01 with adamw)"),
        ((), "(default: relu)"),
    ],
)
def test_help_all_names_the_component_of_a_default_that_not_all_share(
    line: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in " ".join(shown(capsys, "search", *line, "--help-all").split())


@pytest.mark.parametrize("line", [[], ["--help"], ["-h"]])
def test_overview_names_every_command_and_exit_code(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(line) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in (*COMMANDS, *map(str, EXIT_CODES)):
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sgenas {sgenas.__version__}\n"


def test_help_completion_and_usage_errors_import_neither_torch_nor_numpy() -> None:
    script = """
import contextlib, io, sys
from sgenas.cli.main import main
lines = (["--version"], ["--help"], ["search", "--help"], ["train", "--help-all"], ["table1", "--help"],
         ["completion", "bash"], ["serach"], ["search", "--directions", "x"], ["search", "--directions", "3"])
for line in lines:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(line)
sys.exit(bool({"torch", "numpy", "rich"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_spinning_is_limited_before_torch_is_imported_unless_the_user_has_set_it() -> None:
    script = "import os, sgenas.cli.main; print(os.environ.get('GOMP_SPINCOUNT'))"
    for given, expected in (({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")):
        found = subprocess.run([sys.executable, "-c", script], env=given, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == expected
