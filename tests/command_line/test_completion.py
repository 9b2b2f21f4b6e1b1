"""`sgenas completion SHELL`, with real shells where they are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sgenas.cli import main
from sgenas.commands import COMMANDS

CANDIDATES = """
candidates() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    $(complete -p sgenas | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    printf '%s\\n' "${COMPREPLY[@]}"
}
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def write(shell: str) -> Path:
        assert main(["completion", shell]) == 0
        path = tmp_path / f"sgenas.{shell}"
        path.write_text(capsys.readouterr().out)
        return path

    return write


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sea"], ["search"]),
        (["search", "--est"], ["--estimator"]),
        (["table1", "--preset", "sm"], ["small", "smoke"]),
        (["size", "--j"], ["--json"]),
        ([""], ["-h", "--help", *COMMANDS]),
    ],
)
def test_bash_completes_commands_flags_and_values(words: list[str], expected: list[str], script) -> None:
    command = f'source {script("bash")}\n{CANDIDATES}\ncandidates "$@"'
    found = subprocess.run(
        ["bash", "-c", command, "bash", "sgenas", *words], capture_output=True, text=True, check=True
    )
    assert found.stderr == ""
    assert sorted(found.stdout.split("\n")[:-1]) == sorted(expected)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_names_every_command_and_its_shell_can_read_it(shell: str, script) -> None:
    path = script(shell)
    text = path.read_text()
    for name in COMMANDS:
        assert f"'{name}'" in text
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n", str(path)], check=True)


def test_an_unknown_shell_is_one_line(fails) -> None:
    assert "'powershell'" in fails("completion", "powershell")
