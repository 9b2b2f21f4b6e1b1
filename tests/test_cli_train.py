import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sgenas.cli import main
from sgenas.command_line.parsing import parse
from sgenas.display import LiveDisplay
from sgenas.engine import TrainConfig, run_training
from sgenas.nets import published

SMALL = [
    *("--data", "digits", "--train-images", "96", "--test-images", "60", "--batch-size", "32"),
    *("--channels", "2", "--layers", "3", "--epochs", "3", "--log-every", "1", "--device", "cpu"),
]
CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
REAL = Path(__file__).parents[2] / "shared" / "data"


def arguments(out: Path, *more: str) -> list[str]:
    return ["train", "--genotype", "darts-v2", "--recipe", "fast", *SMALL, *more, "--out", str(out)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert main(arguments(path)) == 0
    return path


def settings(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())["config"]


def test_train_says_what_came_out(finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(arguments(tmp_path / "again")) == 0
    out = capsys.readouterr().out
    assert "training on digits: 96 images train, 60 test, 10 classes; network of" in out
    assert "epoch 3/3  train loss" in out
    assert "best so far, chosen on the test images" in out
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"test accuracy of the last epoch: {100 * last['test_accuracy']:.2f} % after 3 epochs" in out
    assert f"best epoch, chosen on the test images: {100 * last['best_test_accuracy']:.2f} %" in out
    for name in ("cell.png", "curves.png", "report.html"):
        assert (tmp_path / "again" / name).stat().st_size > 1000


def test_a_config_file_runs_again_and_flags_change_it(finished: Path, tmp_path: Path) -> None:
    assert main(["train", "--config", str(finished), "--out", str(tmp_path / "a")]) == 0
    ours, again = (
        torch.load(path / "checkpoint.pt", weights_only=True)["network"]
        for path in (finished, tmp_path / "a")
    )
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    changed = ["--epochs", "4", "--genotype", CELL, "--layers", "1", "--seed", "2"]
    assert main(["train", f"--config={finished}", *changed, "--out", str(tmp_path / "b")]) == 0
    found, before = settings(tmp_path / "b"), settings(finished)
    assert found.pop("genotype")["space"] == "nasbench201"
    before["network"]["layers"] = 1
    del before["genotype"]
    assert found == before | {"epochs": 4, "seed": 2}


def test_recipes_and_flags() -> None:
    def chosen(*flags: str) -> TrainConfig:
        return parse(["train", "--genotype", "darts-v2", *flags]).chosen

    genotype = published("darts-v2")
    assert chosen() == chosen("--recipe", "source") == TrainConfig(genotype=genotype)
    assert chosen("--recipe", "paper") == TrainConfig.of_recipe("paper", genotype=genotype)
    fast = chosen("--recipe=fast", "--lr", "0.2", "--no-nesterov", "--ema", "None")
    assert (fast.optimizer.lr, fast.optimizer.nesterov, fast.optimizer.ema, fast.epochs) == (
        *(0.2, False, None),
        30,
    )
    assert chosen("--drop-path", "0.3").drop_path == 0.3


def test_a_trained_run_is_a_genotype_too(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "--genotype", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["params"] == 3349342


def test_resume_and_show_know_a_training(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resume", str(finished)]) == 0
    assert "test accuracy of the last epoch" in capsys.readouterr().out
    (finished / "report.html").unlink()
    assert main(["show", str(finished)]) == 0
    assert "normal cell" in capsys.readouterr().out
    text = (finished / "report.html").read_text()
    for said in (
        "Training on digits: 3 epochs",
        "final test accuracy",
        "chosen on the test images",
        "<h2>Training",
    ):
        assert said in text
    for other in ("inner loss", "validation", "Search"):
        assert other not in text


def test_evaluate_says_whether_the_log_is_right(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is True
    assert found["test_accuracy"] == found["logged_test_accuracy"]
    assert main(["evaluate", str(finished)]) == 0
    assert "equal to the logged figure" in capsys.readouterr().out
    shutil.copytree(finished, tmp_path / "other")
    log = tmp_path / "other" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"test_accuracy": 0.', '"test_accuracy": 1.'))
    assert main(["evaluate", str(tmp_path / "other")]) == 0
    assert "not equal to the logged figure, 1" in capsys.readouterr().out


def test_export_writes_the_weights(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    out = tmp_path / "weights.pt"
    command = ["export", str(finished), "--format", "state-dict", "--out", str(out)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "classifier.weight" in torch.load(out, weights_only=True)
    assert "must be a new file, or pass --overwrite" in fails(*command)
    assert main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("train",), "--genotype must be given: a published name, a genotype file or a run folder"),
        (("train", "--genotype", "darts-v9"), "genotype must be a published name"),
        (
            ("train", "--genotype", "darts-v2", "--recipe", "slow"),
            "--recipe must be one of source, paper, fast",
        ),
        (
            ("train", "--genotype", "darts-v2", "--data", "digits"),
            "--cutout must be at most the image's side 8",
        ),
        (
            ("train", "--genotype", "darts-v2", "--data", "digits", "--cutout", "0"),
            "--auxiliary-weight must be 0 with images of less than 29 x 29 pixels, got 0.4",
        ),
        (
            ("train", "--genotype", CELL, "--drop-path", "0.1"),
            "--drop-path must be 0 in the space nasbench201",
        ),
        (("train", "--config", "/none/config.json"), "/none/config.json cannot be read"),
        (("train", "--recipe", "fast", "--config", "x"), "--recipe must not stand beside --config"),
        (("evaluate", "/none"), "run folder /none does not exist"),
        (
            ("export", "/none", "--format", "onnx", "--out", "/tmp/none.onnx"),
            "run folder /none does not exist",
        ),
    ],
)
def test_bad_input_is_one_line(
    command: tuple[str, ...], message: str, fails: Callable[..., str], tmp_path: Path
) -> None:
    if command[0] == "train":
        command = (*command, "--out", str(tmp_path / "run"))
    assert message in fails(*command)
    assert not (tmp_path / "run").exists()


def test_a_config_of_the_other_kind_is_refused(finished: Path, fails: Callable[..., str]) -> None:
    assert "must be of a search, got a training run" in fails("search", "--config", str(finished))


def test_the_live_display_shows_a_training(tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=200, markup=False, highlight=False)
    config = parse(arguments(tmp_path)).chosen
    seen = []

    class Watched(LiveDisplay):
        def row(self, row: dict[str, Any], genotype: Any) -> None:
            super().row(row, genotype)
            seen.append(dict(self._values))
            self._live.refresh()

    with Watched(console) as display:
        run_training(config, tmp_path / "run", observer=display)
    assert set(seen[0]) == {"loss", "lr"}
    assert "after epoch 3  (best so far, chosen on the test images" in seen[-1]["test accuracy"]
    assert "step 9/9" in text.getvalue()
    assert "sep_conv_3x3" in text.getvalue()


def test_ctrl_c_stops_cleanly_and_resume_ends_in_the_same_place(tmp_path: Path) -> None:
    longer = ("--epochs", "12", "--checkpoint-every", "1")
    assert main(arguments(tmp_path / "whole", *longer)) == 0
    path = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "sgenas", *arguments(path, *longer)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    log, deadline = path / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_bytes().count(b"\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after this step" in err
    assert f"sgenas resume {path}" in out
    assert main(["resume", str(path)]) == 0
    ours, theirs = (
        torch.load(place / "checkpoint.pt", weights_only=True) for place in (tmp_path / "whole", path)
    )
    assert all(torch.equal(ours["network"][name], theirs["network"][name]) for name in ours["network"])
    assert ours["best_test_accuracy"] == theirs["best_test_accuracy"]


@pytest.mark.skipif(not (REAL / "cifar10-train.parquet").exists(), reason="needs ../shared/data")
def test_a_training_on_cifar10(tmp_path: Path) -> None:
    command = ["train", "--genotype", "darts-v2", "--data", f"parquet:{REAL}", "--recipe", "source"]
    small = ["--train-images", "200", "--test-images", "100", "--channels", "2", "--layers", "3"]
    run = ["--epochs", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main([*command, *small, *run]) == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["drop_path"] == 0.1
    assert main(["evaluate", str(tmp_path / "run")]) == 0
