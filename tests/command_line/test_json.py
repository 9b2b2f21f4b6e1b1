"""`--json`: one JSON document on stdout, nothing else there; errors on stderr."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sgenas.cli import main
from sgenas.commands import COMMANDS
from sgenas.spaces import Genotype

TESTED_HERE = {"show", "report"}
TESTED_ELSEWHERE = {"plan", "evaluate", "size", "query", "data", "doctor", "table1"}
"""By the tests of these commands; table1 in tests/experiments/test_status.py."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    command = ["search", "--data", "digits", "--train-images", "60", "--batch-size", "16", "--channels", "2"]
    command += ["--layers", "3", "--nodes", "1", "--directions", "2", "--epochs", "1", "--device", "cpu"]
    assert main([*command, "--out", str(path)]) == 0
    return path


def test_the_commands_with_json_are_those_that_are_tested() -> None:
    having = {name for name, kind in COMMANDS.items() if "json" in {item.name for item in fields(kind)}}
    assert having == TESTED_HERE | TESTED_ELSEWHERE


def test_show(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*command: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["show", *command, "--json"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert captured.out.count("\n") == 1
        return json.loads(captured.out)

    found = shown(str(run))
    genotype = Genotype.load(run / "genotype.json")
    assert Genotype.from_dict(found["genotype"]) == genotype
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["costs"]["forward"] == last["forward"]
    assert found["costs"]["seconds"] == last["seconds"]
    assert [Path(file).name for file in found["files"]] == [
        "cell.png",
        "cell.svg",
        "curves.png",
        "report.html",
    ]
    file = tmp_path / "mine.json"
    file.write_text(genotype.to_json())
    found = shown(str(file), "--out", str(tmp_path / "mine.svg"))
    assert (found["costs"], found["files"]) == ({}, [str(tmp_path / "mine.svg")])
    assert Path(found["files"][0]).is_file()


def test_report(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    page = tmp_path / "page.html"
    shutil.copytree(run, tmp_path / "other")
    for runs in ([run], [run, tmp_path / "other"]):
        assert main(["report", *map(str, runs), "--out", str(page), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"report": str(page)}
        assert page.read_text().startswith("<!doctype html>")
        page.unlink()


def test_errors_leave_stdout_empty(tmp_path: Path, fails: Callable[..., str]) -> None:
    # `fails` wants nothing on stdout and one line on stderr
    assert "does not exist" in fails("show", str(tmp_path / "none"), "--json")
    assert "at least one run folder" in fails("report", "--json")
    assert "banana" in fails("size", "--genotype", "banana", "--json")
    assert "--json only applies with --status" in fails("table1", "--out", str(tmp_path), "--json")
    assert "holds no grid" in fails("table1", "--out", str(tmp_path), "--status", "--json")
    assert "--status must not stand beside --submit" in fails(
        "table1", "--out", str(tmp_path), "--submit", "slurm", "--status"
    )
