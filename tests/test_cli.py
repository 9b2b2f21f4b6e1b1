import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sgenas
from sgenas.cli import main

SMALL = [
    *("--data", "digits", "--train-images", "120", "--batch-size", "16", "--channels", "2", "--layers", "3"),
    *("--nodes", "1", "--directions", "2", "--epochs", "3", "--log-every", "1", "--device", "cpu"),
]


def arguments(out: Path, *more: str) -> list[str]:
    return ["search", *SMALL, *more, "--out", str(out)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert main(arguments(path)) == 0
    return path


def test_search_writes_pictures_and_says_where(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "again")) == 0
    out = capsys.readouterr().out
    assert "60 images train the weights, 60 the alphas, 10 classes" in out
    assert "epoch 3/3  inner loss" in out
    assert "validation accuracy of the supernet" in out
    assert str(sgenas.Genotype.load(finished / "genotype.json")["normal"]).split("; ")[0] in out
    for name in ("cell.png", "cell.svg", "curves.png", "report.html"):
        assert str(tmp_path / "again" / name) in out
        assert (tmp_path / "again" / name).stat().st_size > 1000


def test_a_config_file_runs_again_and_flags_change_it(finished: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        source = finished if name == "a" else finished / "config.json"
        assert main(["search", "--config", str(source), "--out", str(tmp_path / name)]) == 0
    ours, again = (np.load(path / "alphas.npz")["normal"] for path in (finished, tmp_path / "a"))
    assert (ours == again).all()
    changed = ["search", f"--config={finished}", "--epochs", "1", "--seed", "5", "--out", str(tmp_path / "c")]
    assert main(changed) == 0
    config = json.loads((tmp_path / "c" / "config.json").read_text())["config"]
    before = json.loads((finished / "config.json").read_text())["config"]
    assert config == before | {"epochs": 1, "seed": 5}


def test_show_draws_a_run_and_a_genotype_file(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "normal cell" in out
    assert re.search(r"Cost: .* of device time, at most .*B of memory, 36 forward passes, 36 backward", out)
    assert main(["show", str(finished), "--out", str(tmp_path / "cell.svg")]) == 0
    assert "<svg" in (tmp_path / "cell.svg").read_text()
    file = tmp_path / "mine.json"
    shutil.copy(finished / "genotype.json", file)
    assert main(["show", str(file)]) == 0
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_with_settings_of_another_version_can_be_shown_but_not_repeated(
    finished: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    old = tmp_path / "old"
    shutil.copytree(finished, old)
    data = json.loads((old / "config.json").read_text())
    del data["config"]["space"]["activation"]
    (old / "config.json").write_text(json.dumps(data))
    assert "missing activation" in fails("search", "--config", str(old), "--out", str(tmp_path / "new"))
    assert main(["show", str(old)]) == 0


def test_resume_of_a_finished_search_says_what_came_out(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resume", str(finished)]) == 0
    assert "validation accuracy of the supernet" in capsys.readouterr().out


def test_square_brackets_in_paths_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "[bold]" / "[/x]"
    assert main(arguments(out, "--epochs", "1")) == 0
    assert str(out / "cell.png") in capsys.readouterr().out


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sgenas {sgenas.__version__}\n"
    with pytest.raises(SystemExit) as stop:
        main(["search", "--help"])
    assert stop.value.code in (0, None)
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for said in (
        "--directions INT",
        "Q: random directions of sge",
        "(default: 10)",
        "Example: sgenas search",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "nas"], "--method must be one of darts, .*, beta-darts, got 'nas'"),
        (["--estimator", "es"], "--estimator must be one of first-order, .*, evolution, got 'es'"),
        (["--smoothing", "small"], "--smoothing must be auto or a number > 0, got 'small'"),
        (
            ["--blocks", "edge"],
            "--blocks edge: num_directions must be at least 4, 1 for each of 4 blocks, got 2",
        ),
        (["--data", "mnist"], "--data mnist .*: data set must be one of digits, cifar10"),
        (["--data", "folder:/none"], "--data folder:/none .*: .*/none"),
        (["--data", "parquet:/none"], "--data parquet:/none .*: .*/none"),
        (["--directions", "0"], "--directions must be >= 1, got 0"),
        (["--directions", "many"], "--directions.* 'many'"),
        (["--smoothing", "0"], "--smoothing must be > 0 and finite, got 0.0"),
        (["--smoothing", "-1"], "--smoothing must be > 0 and finite, got -1.0"),
        (
            ["--train-images", "9"],
            "--data digits --train-images 9: limit must be at least 10, the classes of digits, got 9",
        ),
        (["--train-images", "10"], "--data digits --train-images 10: class 0 must have at least 2 images"),
        (["--colour", "red"], "Unrecognized options: --colour"),
        (["--config"], "--config must be followed by a value"),
        (["--config", "/none/config.json"], "/none/config.json cannot be read"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], message: str, fails: Callable[..., str], tmp_path: Path
) -> None:
    # SMALL's own value of a repeated flag would win
    command = arguments(tmp_path / "run")
    if flags[0] in command:
        place = command.index(flags[0])
        command[place : place + 2] = []
    command = command + flags if len(flags) == 1 else [*command[:1], *flags, *command[1:]]
    assert re.search(message, fails(*command))
    assert not (tmp_path / "run").exists()


def image_folder(path: Path, sizes: dict[str, list[int]]) -> None:
    draw = np.random.default_rng(0)
    for name, sides in sizes.items():
        (path / name).mkdir(parents=True)
        for index, side in enumerate(sides):
            pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / name / f"{index}.png")


def test_bad_images_are_one_line(fails: Callable[..., str], tmp_path: Path) -> None:
    image_folder(tmp_path / "mixed", {"cat": [8, 8, 8], "dog": [8, 9, 8]})
    line = fails("search", "--data", f"folder:{tmp_path / 'mixed'}", "--out", str(tmp_path / "run"))
    assert "dog/1.png" in line
    assert "9 x 9" in line or "9x9" in line
    image_folder(tmp_path / "empty", {"cat": [8, 8, 8], "dog": []})
    line = fails("search", "--data", f"folder:{tmp_path / 'empty'}", "--out", str(tmp_path / "run"))
    assert "dog" in line
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(finished: Path, fails: Callable[..., str]) -> None:
    line = fails(*arguments(finished))
    assert "already holds a run" in line
    assert "--overwrite" in line


def test_a_budget_is_kept_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budget = ("--max-params", "2000", "--budget-channels", "4", "--budget-layers", "3", "--cost", "macs")
    assert main(["search", *SMALL, *budget, "--out", str(tmp_path / "run")]) == 0
    found = re.search(
        r"network of the cell: ([\d,]+) parameters, ([\d,]+) multiply-adds", capsys.readouterr().out
    )
    assert found is not None
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert int(found[1].replace(",", "")) == last["derived_params"] <= 2000
    assert int(found[2].replace(",", "")) == last["derived_macs"]


def test_a_damaged_checkpoint_is_a_line_of_warning(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    newest = path / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert main(["resume", str(path)]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith(f"sgenas: warning: checkpoint {newest} is damaged (1000 bytes): ")
    assert "takes its place: what came after it is lost, until the run is resumed" in line


def test_bad_run_folders_are_one_line(finished: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    assert "does not exist" in fails("resume", str(tmp_path / "none"))
    assert "does not exist" in fails("show", str(tmp_path / "none"))
    assert "holds no run" in fails("resume", str(tmp_path))
    assert "holds no run" in fails("show", str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    (broken / "checkpoint-previous.pt").unlink()
    whole = (broken / "checkpoint.pt").read_bytes()
    (broken / "checkpoint.pt").write_bytes(whole[:1000])
    assert "checkpoint.pt is damaged (1000 bytes)" in fails("resume", str(broken))
    (broken / "checkpoint.pt").write_bytes(whole)
    text = (broken / "config.json").read_text()
    (broken / "config.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    assert "another configuration: seed is 1 in config.json, 0 there" in fails("resume", str(broken))
    (broken / "config.json").write_text("{")
    assert "must be JSON" in fails("resume", str(broken))
    (broken / "genotype.json").unlink()
    (broken / "config.json").write_text(text)
    assert "has no cell yet" in fails("show", str(broken))


def test_a_second_ctrl_c_ends_at_once_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr("sgenas.command_line.running.run_search", interrupted)
    # a shell starts what runs in the background with Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(arguments(tmp_path / "run")) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    err = capsys.readouterr().err
    assert "stopping after this step" in err
    assert "stopped at once" in err


def start(*command: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "sgenas", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


LONGER = ("--epochs", "20", "--checkpoint-every", "1")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "uninterrupted"
    process = start(*arguments(path, *LONGER))
    process.communicate(timeout=200)
    assert process.returncode == 0
    return path


def test_ctrl_c_stops_cleanly_and_resume_ends_in_the_same_place(
    uninterrupted: Path, tmp_path: Path, wait_for_rows: Any, assert_same_runs: Any
) -> None:
    path = tmp_path / "stopped"
    process = start(*arguments(path, *LONGER))
    wait_for_rows(path, 5, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this step" in err
    assert "Traceback" not in err
    assert f"sgenas resume {path}" in out
    process = start("resume", str(path))
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert_same_runs(uninterrupted, path)


def test_kill_9_and_resume_end_in_the_same_place(
    uninterrupted: Path, tmp_path: Path, wait_for_rows: Any, assert_same_runs: Any
) -> None:
    path = tmp_path / "killed"
    wait = random.Random(0)
    process = start(*arguments(path, *LONGER))
    for rows in (4, 20, 45):
        wait_for_rows(path, rows, process)
        time.sleep(wait.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        process = start("resume", str(path))
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert_same_runs(uninterrupted, path)


def test_plan_says_what_a_search_takes_and_runs_none(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sgenas.engine.plan.ENOUGH_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "60 images train the weights, 60 the alphas; supernet of" in out
    assert re.search(r"sge, Q = 2, N = 1 \(asked for\) +9 +36 +2\.00 ", out)
    assert re.search(r"first-order, N = 1 +9 +18 +1\.00 ", out)
    assert "no more passes than first-order from --alpha-every 3 on, than second-order from" in out
    assert main(["plan", "--config", str(finished), "--directions", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found["rows"][0][name] for name in ("forward", "directions", "steps")] == [54, 4, 9]
    assert list(tmp_path.iterdir()) == []


def test_bad_plans_are_one_line(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "--estimator must be one of" in fails("plan", "--estimator", "es")
    assert "--batch-size must be at most the 60 images" in fails("plan", *SMALL, "--batch-size", "64")
    line = fails("plan", *SMALL, "--out", str(tmp_path))
    assert line.startswith("sgenas: Unrecognized or misplaced options: --out")


TABLE = Path(__file__).parents[2] / "shared" / "data" / "nasbench201-200epochs.csv"


def test_size_of_a_published_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "--genotype", "darts-v2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params"] == 3349342
    assert found["params_with_auxiliary"] > found["params"]
    assert main(["size", "--genotype", "darts-v2", "--classes", "100", "--channels", "36"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["params", "params", "macs"]
    assert f"{found['params'] + 90 * 577:,}" in out


def test_size_of_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "--genotype", str(finished), "--channels", "4", "--layers", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["params"] > 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("size", "--genotype", "darts-v9"), "darts-v9"),
        (("size", "--genotype", "darts-v2", "--layers", "1"), "layers must be an integer >= 3, got 1"),
        (
            ("size", "--genotype", "darts-v2", "--resolution", "0"),
            "resolution must be an integer >= 1, got 0",
        ),
        (("query", "--table", "none.csv", "--arch", "|a~0|"), "none.csv"),
    ],
)
def test_bad_size_and_query(command: tuple[str, ...], message: str, fails: Callable[..., str]) -> None:
    assert message in fails(*command)


@pytest.mark.skipif(not TABLE.exists(), reason="needs ../shared/data")
def test_query_knows_the_best_and_the_worst_of_darts(
    capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    skip = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
    assert main(["query", "--table", str(TABLE), "--arch", skip, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    row = next(value for name, value in found.items() if "cifar10" in name and "cifar100" not in name)
    assert row["accuracy"] == pytest.approx(54.30, abs=0.01)
    assert row["regret"] == pytest.approx(94.37 - 54.30, abs=0.02)
    assert main(["query", "--table", str(TABLE), "--arch", skip]) == 0
    assert "rank" in capsys.readouterr().out
    message = fails("query", "--table", str(TABLE), "--arch", skip.replace("skip_connect~2", "conv~2"))
    assert "conv" in message


def test_the_settings_of_a_method_are_those_of_its_source() -> None:
    from sgenas.command_line.parsing import parse

    pc = parse(["search", "--method", "pc-darts"]).chosen
    assert (pc.weights.lr, pc.data.batch_size, pc.alphas.warmup_epochs) == (0.1, 256, 15)
    changed = parse(["search", "--method=pc-darts", "--lr", "0.05"]).chosen
    assert (changed.weights.lr, changed.alphas.alpha_lr) == (0.05, 6e-4)
    paper = parse(["search", "--method", "fair-darts", "--settings", "paper"]).chosen
    assert (paper.alphas.alpha_optimizer, paper.alphas.alpha_lr, paper.alphas.alpha_beta1) == (
        "sgd",
        0.01,
        0.5,
    )
    assert (paper.weights.weights, paper.weights.lr, paper.space.operations) == ("separate", 0.005, "paper")


def test_bad_methods_and_settings(fails: Callable[..., str], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "run"))
    known = "must be one of darts, pc-darts, fair-darts, beta-darts, got 'nas'"
    assert known in fails("search", "--method", "nas", *out)
    assert "--pooling only applies with --space darts, got 'smooth'" in fails(
        *("search", "--pooling", "smooth", "--space", "nasbench201", *out)
    )
    fair = ("search", "--method", "fair-darts", "--space", "nasbench201")
    assert "--derivation must be one of strongest, threshold, got 'top2'" in fails(
        *(*fair, "--derivation", "top2", *out)
    )
    assert "--threshold only applies with a --derivation other than strongest, got 0.5" in fails(
        *(*fair, "--threshold", "0.5", *out)
    )
    assert "--zero-one must be one of squared, absolute, got 'cubed'" in fails(
        *("search", "--method", "fair-darts", "--zero-one", "cubed", *out)
    )
    assert "--table" in fails("search", "--space", "nasbench201", "--table", str(tmp_path / "no.csv"), *out)
    assert "--threshold only applies with a method that has it, not darts, got 0.5" in fails(
        *("search", "--threshold", "0.5", *out)
    )
    assert "--regulariser-weight only applies with a method that has one, not pc-darts" in fails(
        *("search", "--method", "pc-darts", "--regulariser-weight", "1", *out)
    )
    assert "--layers only applies with --space darts, got 4" in fails(
        *("search", "--space", "nasbench201", "--layers", "4", *out)
    )
    assert "partial_channels must divide channels 16" in fails(
        *("search", "--method", "pc-darts", "--partial-channels", "5", "--data", "digits", *out)
    )
    assert not (tmp_path / "run").exists()


def test_a_method_setting_without_effect_gives_way(fails: Callable[..., str], tmp_path: Path) -> None:
    from sgenas.command_line.parsing import parse

    found = parse(["search", "--settings", "paper", "--space", "nasbench201"]).chosen
    assert found.space.operations is None
    assert found.estimator.smoothing == 0.01
    found = parse(["search", "--settings", "paper", "--estimator", "second-order"]).chosen
    assert found.estimator.smoothing is None
    found = parse(["search", "--method", "fair-darts", "--alpha-optimizer", "sgd"]).chosen
    assert found.alphas.alpha_beta1 == 0.5
    assert found.weights.lr == 0.005


def test_a_saved_configuration_keeps_its_method(
    finished: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    config = str(finished / "config.json")
    message = fails("search", "--config", config, "--method", "pc-darts", "--out", str(tmp_path / "run"))
    assert "--method must be darts as in" in message
