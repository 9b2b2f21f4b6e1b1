"""search, train, resume and what they print; Ctrl-C and kills with real processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_lines import SEARCH, TRAIN
from terminal import CONTROL, on_a_terminal, piped

import sgenas
from sgenas.cli.main import main
from sgenas.errors import DivergenceError, OutOfMemoryError, ProcessError
from sgenas.searching.config import SearchConfig
from sgenas.spaces.darts_space import published

Start = Callable[..., "subprocess.Popen[str]"]
Wait = Callable[[Path, int, "subprocess.Popen[str]"], None]


def settings(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())["config"]


def alphas(path: Path) -> Any:
    return np.load(path / "alphas.npz")["normal"]


def test_search_prints_what_runs_what_came_out_and_where(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # resuming a finished run prints the same
    assert main(["resume", str(searched)]) == 0
    out = capsys.readouterr().out
    last = json.loads((searched / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"validation accuracy of the supernet: {last['val_accuracy']:.2%} (chance 10 %)" in out
    genotype = sgenas.Genotype.load(searched / "genotype.json")
    assert str(genotype["normal"]).split("; ")[0] in out
    for name in ("cell.png", "curves.png", "report.html"):
        assert str(searched / name) in out
        assert (searched / name).stat().st_size > 1000


@pytest.mark.slow
def test_config_file_runs_again_and_flags_change_it(searched: Path, tmp_path: Path) -> None:
    assert main(["search", "--config", str(searched), "--out", str(tmp_path / "a")]) == 0
    assert (alphas(tmp_path / "a") == alphas(searched)).all()
    file = searched / "config.json"
    assert main(["search", f"--config={file}", "--epochs", "1", "--seed", "5", "--out", str(tmp_path / "b")]) == 0
    assert settings(tmp_path / "b") == settings(searched) | {"epochs": 1, "seed": 5}


def test_config_file_without_a_newer_setting_still_runs(searched: Path, tmp_path: Path) -> None:
    kept = json.loads((searched / "config.json").read_text())
    del kept["config"]["space"]["activation"], kept["config"]["log_every"]
    (tmp_path / "old.json").write_text(json.dumps(kept))
    command = ["search", "--config", str(tmp_path / "old.json"), "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert settings(tmp_path / "run")["log_every"] is None


def test_square_brackets_in_paths_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "[bold]" / "[/x]"
    assert main([*SEARCH, "--epochs", "1", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert str(out / "cell.png") in captured.out
    assert "sge on digits: 60 training, 60 validation images, 10 classes; supernet of" in captured.out
    assert re.search(r"^epoch 1/1 ", captured.err, re.MULTILINE)


def test_run_directory_is_named_after_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []

    def run(self: SearchConfig, path: Path, **_: Any) -> None:
        seen.append((str(path), self))
        raise DivergenceError("weights are NaN")

    monkeypatch.setattr(SearchConfig, "run", run)
    assert main([*SEARCH, "--seed", "3"]) == 1
    [(path, config)] = seen
    assert path == "runs/darts-sge-digits-3"
    assert config.seed == 3


@pytest.mark.parametrize(
    ("error", "code"), [(DivergenceError("x"), 1), (OutOfMemoryError("x"), 2), (ProcessError("x"), 3)]
)
def test_exit_code_says_what_went_wrong(
    error: Exception, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(SearchConfig, "run", run)
    assert main([*SEARCH, "--out", str(tmp_path / "run")]) == code
    assert capsys.readouterr().err == "sgenas: x\n"


def test_budget_is_kept_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budget = ("--max-params", "2000", "--budget-channels", "4", "--budget-layers", "3", "--penalty", "macs")
    assert main([*SEARCH, *budget, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    found = re.search(r"network of the cell: ([\d,]+) parameters, ([\d,]+) multiply-adds", capsys.readouterr().out)
    assert found is not None
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert int(found[1].replace(",", "")) == last["derived_params"] <= 2000
    assert int(found[2].replace(",", "")) == last["derived_macs"]


def test_search_started_from_python_is_resumed_there(searched: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    shutil.copytree(searched, tmp_path / "run")
    kept = json.loads((searched / "config.json").read_text())
    kept["config"] = {"source": "python", "seed": 0}
    (tmp_path / "run" / "config.json").write_text(json.dumps(kept))
    assert "started from Python" in fails("resume", str(tmp_path / "run"))


def test_run_that_has_lost_files_says_so(
    searched: Path, tmp_path: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(searched, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert "metrics.jsonl has no epoch" in capsys.readouterr().out
    shutil.copytree(searched, tmp_path / "other")
    for name in ("checkpoint.safetensors", "checkpoint-previous.safetensors"):
        (tmp_path / "other" / name).unlink(missing_ok=True)
    assert "checkpoint.safetensors is missing" in fails("resume", str(tmp_path / "other"))
    assert (tmp_path / "other" / "metrics.jsonl").read_text() == (searched / "metrics.jsonl").read_text()


def test_cells_below_the_threshold_are_said_to_be_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SEARCH, "--method", "fair-darts", "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    err = capsys.readouterr().err
    assert "no operation reaches the threshold in the normal and reduce cell" in err
    assert "--discretization top-edges" in err


def test_train_prints_what_came_out(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(trained)]) == 0
    out = capsys.readouterr().out
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"test accuracy of the last epoch: {last['test_accuracy']:.2%} after 3 epochs" in out
    assert f"best epoch, chosen on the test images: {last['best_test_accuracy']:.2%}" in out
    for name in ("cell.png", "curves.png", "report.html"):
        assert (trained / name).stat().st_size > 1000


def test_training_configuration_runs_again_with_another_cell(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
    changed = ["--genotype", cell, "--layers", "1", "--seed", "2"]
    assert main(["train", f"--config={trained}", *changed, "--out", str(tmp_path / "run")]) == 0
    assert "training on digits: 96 training, 60 test images, 10 classes; network of" in capsys.readouterr().out
    found, before = settings(tmp_path / "run"), settings(trained)
    assert found.pop("genotype")["space"] == "nasbench201"
    del before["genotype"]
    assert found == before | {"layers": 1, "seed": 2}


def test_evaluate_compares_with_the_log(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is True
    assert found["test_accuracy"] == found["logged_test_accuracy"]
    assert main(["evaluate", str(trained)]) == 0
    assert "equal to the logged figure" in capsys.readouterr().out


def test_export_writes_a_file_once(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    out = tmp_path / "weights.safetensors"
    command = ["export", str(trained), "--format", "state-dict", "--out", str(out)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.stat().st_size > 1000
    assert "--out must be a new file" in fails(*command)
    assert main([*command, "--overwrite"]) == 0


# -- signals, pipes and terminals ---------------------------------------------------------------------------


def test_second_ctrl_c_ends_at_once_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(SearchConfig, "run", interrupted)
    # a shell starts what runs in the background with Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main([*SEARCH, "--out", str(tmp_path / "run")]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    err = capsys.readouterr().err
    assert "stopping after this step" in err
    assert "stopped at once" in err


def test_ctrl_c_during_the_import_of_torch_waits_for_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def found(name: str) -> None:
        monkeypatch.setattr(torch.__spec__, "_initializing", True, raising=False)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        seen.append("end of the import")
        monkeypatch.setattr(torch.__spec__, "_initializing", False, raising=False)
        time.sleep(5)
        seen.append("went on")

    monkeypatch.setattr(published, "find_genotype", found)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["size", "--genotype", "darts-v2"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["end of the import"]
    assert "stopped at once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "number"),
    [(SEARCH, signal.SIGINT), pytest.param((*TRAIN, "--warmup", "1"), signal.SIGTERM, marks=pytest.mark.slow)],
    ids=["search", "train"],
)
def test_signal_stops_after_a_checkpoint_and_resume_ends_in_the_same_place(
    command: tuple[str, ...], number: int, tmp_path: Path, start: Start, wait_for_rows: Wait
) -> None:
    longer = (*command, "--epochs", "2", "--checkpoint-every", "1")
    path = tmp_path / "stopped"
    process = start(*longer, "--out", str(path))
    wait_for_rows(path, 4, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after this step" in err
    assert "Traceback" not in err
    assert f"sgenas resume {path}" in out
    assert main(["resume", str(path)]) == 0
    assert main([*longer, "--out", str(tmp_path / "whole")]) == 0
    ours, theirs = (
        [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()]
        for each in (path, tmp_path / "whole")
    )
    measured = ("seconds", "device_seconds", "peak_memory_bytes")
    assert [{name: value for name, value in row.items() if name not in measured} for row in ours] == [
        {name: value for name, value in row.items() if name not in measured} for row in theirs
    ]


@pytest.mark.slow
def test_search_draws_on_a_terminal_and_prints_lines_into_a_pipe(tmp_path: Path) -> None:
    command = ("-m", "sgenas", *SEARCH, "--epochs", "1", "--out")
    lines = piped(*command, str(tmp_path / "piped"))
    assert CONTROL.search(lines) is None
    assert lines.decode().count("\nepoch ") == 1
    drawn = on_a_terminal(80, *command, str(tmp_path / "drawn"))
    # the cursor is hidden while the bar is redrawn, and comes back
    assert b"\x1b[?25l" in drawn
    assert b"\x1b[?25h" in drawn
