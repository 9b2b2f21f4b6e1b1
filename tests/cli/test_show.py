"""show, report and what `--json` prints: one JSON object on stdout and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sgenas.cli.main import main
from sgenas.spaces import Genotype


def printed(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


@pytest.mark.parametrize("flag", [("--json",), ("--format", "json")])
def test_show_prints_the_genotype_costs_and_files(
    flag: tuple[str, ...], searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = printed(capsys, "show", str(searched), *flag)
    genotype = Genotype.load(searched / "genotype.json")
    assert Genotype.from_dict(found["genotype"]) == genotype
    last = json.loads((searched / "metrics.jsonl").read_text().splitlines()[-1])
    assert (found["costs"]["forward"], found["costs"]["seconds"]) == (last["forward"], last["seconds"])
    assert [Path(file).name for file in found["files"]] == ["cell.png", "curves.png", "report.html"]
    file = tmp_path / "mine.json"
    file.write_text(genotype.to_json())
    found = printed(capsys, "show", str(file), "--out", str(tmp_path / "mine.svg"), *flag)
    assert (found["costs"], found["files"]) == ({}, [str(tmp_path / "mine.svg")])
    assert "<svg" in (tmp_path / "mine.svg").read_text()


def test_show_prints_text(searched: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, passes in ((searched, "24 forward passes, 24 backward"), (trained, "Cost: ")):
        assert main(["show", str(path)]) == 0
        out = capsys.readouterr().out
        assert "normal cell" in out
        assert passes in out


def test_show_darts_prints_what_every_command_reads(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(searched), "--format", "darts"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Genotype(normal=[(")
    (tmp_path / "cell.txt").write_text(text)
    assert Genotype.from_text(text) == Genotype.load(searched / "genotype.json")
    for given in (text, str(tmp_path / "cell.txt")):
        assert printed(capsys, "size", "--genotype", given, "--channels", "4", "--json")["params"] > 0
        assert main(["show", given, "--format", "darts"]) == 0
        assert capsys.readouterr().out == text


def test_show_draws_a_genotype_file_next_to_it(searched: Path, tmp_path: Path) -> None:
    shutil.copy(searched / "genotype.json", tmp_path / "mine.json")
    assert main(["show", str(tmp_path / "mine.json")]) == 0
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_report_of_one_run_and_of_several(searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    shutil.copytree(searched, tmp_path / "other")
    for runs in ([searched], [searched, tmp_path / "other"]):
        assert printed(capsys, "report", *map(str, runs), "--out", str(page), "--json") == {"report": str(page)}
        assert page.read_text().lower().startswith("<!doctype html>")
        page.unlink()
