"""Flags, exit codes and output of `sgenas table1`; what the grid does is tested in tests/experiments."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sgenas.cli.main import main
from sgenas.experiments import table1
from sgenas.experiments.clusters import Ray, Slurm
from sgenas.experiments.launchers import Local


class Calls(list[Any]):
    """Stands in for the functions of `sgenas.experiments.table1`."""

    states: tuple[str, ...] = ("done",)

    def run(self, out: str, settings: Any, *, launcher: Any, command: str, **_: Any) -> list[Any]:
        self.append((out, settings, launcher, command))
        return [SimpleNamespace(state=state) for state in self.states]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    found = Calls()
    (tmp_path / "table.md").write_text("a table\n")
    monkeypatch.setattr(table1, "run", found.run)
    monkeypatch.setattr(table1, "write_tables", lambda _: [tmp_path / "table.md"])
    return found


@pytest.mark.parametrize(
    ("flags", "launcher"),
    [
        (("--jobs", "2", "--threads", "1"), Local(2, 1)),
        (("--ray",), Ray("")),
        (("--ray", "host:1", "--threads", "3"), Ray("host:1", None, 3)),
        (("--submit", "slurm", "--gpus", "1", "--minutes", "60"), Slurm(minutes=60, gpus=1)),
    ],
)
def test_flags_choose_the_launcher(flags: tuple[str, ...], launcher: Any, calls: Calls) -> None:
    assert main(["table1", "--out", "x", "--preset", "smoke", *flags]) == 0
    assert calls[0][2] == launcher


def test_flags_choose_the_grid(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--seeds", "0,3", "--data", "digits", "mine=folder:x", "--methods", "drnas", "--estimators", "sge,unrolled"]
    assert main(["table1", "--out", "x y", *line]) == 0
    out, settings, _, command = calls[0]
    assert (out, settings.preset, settings.seeds, settings.data) == ("x y", None, (0, 3), ("digits", "mine=folder:x"))
    assert (settings.methods, settings.estimators) == (("drnas",), ("sge", "unrolled"))
    assert command.startswith("sgenas table1 --out 'x y' --seeds 0,3")
    assert "a table" in capsys.readouterr().out


def test_missing_jobs_are_exit_code_1(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.states = ("done", "failed", "missing")
    assert main(["table1", "--out", "x"]) == 1
    assert "2 jobs missing" in capsys.readouterr().out


@pytest.mark.parametrize(("reason", "code"), [(None, 0), ("diverged", 1)])
def test_job_runs_one_job(
    reason: str | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table1, "run_job", lambda *_, **__: SimpleNamespace(reason=reason, stage="search"))
    assert main(["table1", "--out", "x", "--job", "digits/darts-sge/seed-0"]) == code
    assert (reason or "") in capsys.readouterr().err


def test_stopped_job_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table1, "run_job", lambda *_, **__: None)
    assert main(["table1", "--out", "x", "--job", "digits/darts-sge/seed-0"]) == 130


def test_status_prints_text_or_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(table1, "status", lambda _: {"jobs": []})
    monkeypatch.setattr(table1, "status_text", lambda _: "0 jobs\n")
    assert main(["table1", "--out", "x", "--status"]) == 0
    assert capsys.readouterr().out == "0 jobs\n"
    assert main(["table1", "--out", "x", "--status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"jobs": []}


def test_dry_run_prints_hours_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(table1, "forecast", lambda *given, machine: asked.append((*given, machine)) or "12.4 hours")
    line = ["table1", "--out", str(tmp_path / "new"), "--preset", "medium", "--seeds", "3", "--threads", "1"]
    assert main([*line, "--dry-run"]) == 0
    assert main([*line, "--dry-run", "a100"]) == 0
    assert capsys.readouterr().out == "12.4 hours\n12.4 hours\n"
    assert [machine for *_, machine in asked] == ["auto", "a100"]
    assert asked[0][:2] == (str(tmp_path / "new"), table1.GridSettings("medium", seeds=(3,)))
    assert not calls
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("other", [("--ray",), ("--submit", "slurm"), ("--status",)])
def test_dry_run_makes_no_sense_with_other_machines(other: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table1", "--out", "x", "--dry-run", *other]) == 2
    assert "--dry-run" in capsys.readouterr().err
