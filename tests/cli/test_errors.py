"""Bad input is one line on stderr and exit code 2, before anything is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_lines import SEARCH, TRAIN
from PIL import Image

from sgenas.cli.main import main

Fails = Callable[..., str]
CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("serach", "unknown command 'serach'; did you mean 'search'?"),
        ("banana", "see sgenas --help"),
        ("search --colour red", "unknown flag --colour"),
        ("search --directons 3", "did you mean '--directions'?"),
        ("search digits", "unknown argument 'digits'"),
        ("search --config", "--config needs a value"),
        ("search --directions many", "--directions must be one of auto or an integer, got 'many'"),
        ("search --method nas", "--method must be one of darts,"),
        ("search --estimator es", "--estimator must be one of first-order,"),
        ("search --operations skip", "--operations must be one of darts, paper, none,"),
        ("search --space nasbench201 --operations skip", "--operations must be one of nasbench201, without"),
        ("search --data digits --alpha-optimizer sgd", "--alpha-lr must be set"),
        ("search --data digits --weight-optimizer adam", "--lr must be set"),
        ("search --rank-timeout 0", "--rank-timeout must be > 0"),
        ("search --rank-timeout 5", "--rank-timeout must be left out without torchrun"),
        ("train --genotype darts-v2 --rank-timeout 5", "--rank-timeout must be left out without torchrun"),
        ("train --genotype darts-v2 --data-parallel 5", "--batch-size must be a multiple of --data-parallel (5)"),
        ("resume", "resume needs RUN"),
        ("show", "show needs RUN"),
        ("evaluate", "evaluate needs RUN"),
        ("report", "report needs RUN"),
        ("data", "data needs SPEC"),
        ("size", "size needs --genotype"),
        ("export runs/x --format onnx", "export needs --out"),
        ("export runs/x --format png --out x", "--format must be one of state-dict,"),
        ("train", "train needs --genotype"),
        ("train --genotype darts-v2 --recipe slow", "--recipe must be one of source, paper, fast"),
        ("train --recipe fast --config x", "--recipe must be left out with --config"),
        ("search --preset paper --config x", "--preset must be left out with --config"),
        ("completion powershell", "SHELL must be one of bash, zsh, fish"),
        ("table1", "table1 needs --out"),
        ("table1 --out x --seeds 0,a", "--seeds must be"),
        ("table1 --out x --json", "--json only applies with --status"),
        ("table1 --out x --gpus 1", "--gpus only applies with --submit"),
        ("search --out x --estimator unrolled --truncate 3", "--truncate must be at most 1 (inner batches), got 3"),
        ("table1 --out x --gpus 0", "--gpus only applies with --submit"),
        ("table1 --out x --status --jobs 0", "--jobs makes no sense with --status"),
        ("table1 --out x --submit slurm --status", "--submit makes no sense with --status"),
        ("table1 --out x --job a/b/seed-0 --jobs 2", "--jobs makes no sense with --job"),
        ("table1 --out x --ray --submit slurm", "--ray makes no sense with --submit"),
        ("plan --out x", "unknown flag --out"),
        ("latency --out x --space nasbench201 --nodes 3", "--nodes must be left out"),
    ],
)
def test_bad_command_line_is_one_line(command: str, words: str, fails: Fails, tmp_path: Path) -> None:
    assert words in fails(*command.split())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--smoothing", "small"), "--smoothing must be > 0"),
        (("--smoothing", "0"), "--smoothing must be > 0 and finite"),
        (("--smoothing", "-1"), "--smoothing must be > 0 and finite"),
        (("--directions", "0"), "--directions must be a whole number >= 1, got 0"),
        (("--directions", "3", "--direction-kind", "antithetic"), "--directions must be"),
        (("--data", "mnist"), "mnist"),
        (("--data", "folder:/none"), "/none"),
        (("--data", "parquet:/none"), "/none"),
        (("--train-images", "9"), ">= 10"),
        (("--train-images", "10"), "at least 2 images"),
        (("--batch-size", "64"), "--batch-size must be at most 60"),
        (("--config", "/none/config.json"), "/none/config.json"),
        (("--table", "/none.csv"), "--table must be None without"),
        (("--table", "/none.csv", "--space", "nasbench201"), "/none.csv"),
        (("--zero-one", "cubed"), "unknown flag --zero-one"),
        (("--method", "fair-darts", "--regularizer-form", "cubed"), "--regularizer-form must be one of"),
        (("--method", "pc-darts", "--partial-channels", "5"), "--partial-channels must"),
        (("--discretization", "top-edges", "--threshold", "2"), "--threshold must be"),
        (("--early-stop",), "--early-stop must be False without --eigenvalue-every"),
        (("--warmup-epochs", "2"), "--warmup-epochs must be from 0 to"),
        (("--lr-min", "1"), "--lr-min must be from 0 to the learning rate"),
        (("--precision", "bf16"), "--precision must be ieee with SGE"),
        (("--control-variate", "sge"), "--control-variate must be one of"),
        (("--max-params", "10"), "--max-params must be >= "),
        (("--device", "cuda:77"), "--device must be"),
        (("--inner-steps", "9"), "--inner-steps must be at most"),
        (("--logger", "csv"), "--logger must be one of tensorboard, wandb"),
    ],
)
def test_bad_search_setting_is_one_line(flags: tuple[str, ...], words: str, fails: Fails, tmp_path: Path) -> None:
    kept = list(SEARCH)
    if flags[0] == "--config":
        kept = ["search"]
    if "nasbench201" in flags:
        del kept[kept.index("--nodes") : kept.index("--nodes") + 2]
    assert words in fails(*kept, *flags, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--genotype", "darts-v9"), "darts-v9"),
        (("--cutout", "16"), "--cutout must be at most 8"),
        (("--auxiliary-weight", "0.4"), "--auxiliary-weight must be 0"),
        (("--genotype", CELL, "--drop-path", "0.1"), "--drop-path must be 0 in the space nasbench201"),
        (("--ema", "1"), "--ema must be in (0, 1)"),
        (("--lr-min", "5"), "--lr-min must be"),
        (("--test-images", "1"), "--test-images must be >= 2"),
    ],
)
def test_bad_train_setting_is_one_line(flags: tuple[str, ...], words: str, fails: Fails, tmp_path: Path) -> None:
    assert words in fails(*TRAIN, *flags, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("resume", "/none"),
        ("show", "/none"),
        ("report", "/none"),
        ("evaluate", "/none"),
        ("export", "/none", "--format", "onnx", "--out", "/tmp/none.onnx"),
        ("train", "--config", "/none/config.json"),
        ("query", "--table", "/none", "--arch", CELL),
        ("size", "--genotype", "/none"),
        ("data", "folder:/none"),
        ("table1", "--out", "/none", "--status"),
        ("table1", "--out", "/none", "--only-tables"),
    ],
)
def test_missing_path_is_one_line(command: tuple[str, ...], fails: Fails) -> None:
    assert "/none" in fails(*command)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("size", "--genotype", "darts-v2", "--layers", "1"), "--layers must be"),
        (("size", "--genotype", "darts-v2", "--resolution", "0"), "--resolution must be"),
        (("size", "--genotype", "banana", "--json"), "banana"),
        (("show", "banana"), "banana"),
    ],
)
def test_bad_lookup_is_one_line(command: tuple[str, ...], words: str, fails: Fails) -> None:
    assert words in fails(*command)


def test_bad_images_are_one_line(fails: Fails, tmp_path: Path) -> None:
    def write(name: str, sizes: dict[str, list[int]]) -> str:
        for label, sides in sizes.items():
            (tmp_path / name / label).mkdir(parents=True)
            for index, side in enumerate(sides):
                Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / name / label / f"{index}.png")
        return f"folder:{tmp_path / name}"

    mixed, empty = write("mixed", {"cat": [8, 8], "dog": [8, 9]}), write("empty", {"cat": [8, 8], "dog": []})
    out = ("--out", str(tmp_path / "run"))
    assert "dog/1.png" in fails("search", "--data", mixed, *out)
    assert "dog" in fails("search", "--data", empty, *out)
    assert not (tmp_path / "run").exists()


def test_existing_run_is_not_overwritten(searched: Path, trained: Path, fails: Fails) -> None:
    for command, path in ((SEARCH, searched), (TRAIN, trained)):
        line = fails(*command, "--out", str(path))
        assert "already holds a run" in line
        assert "--overwrite" in line


def test_runs_of_the_other_kind_are_refused(searched: Path, trained: Path, fails: Fails) -> None:
    assert "search" in fails("search", "--config", str(trained))
    assert "training" in fails("train", "--config", str(searched))
    assert "training" in fails("evaluate", str(searched))


def test_saved_configuration_keeps_its_method(searched: Path, fails: Fails) -> None:
    line = fails("search", "--config", str(searched), "--method", "pc-darts")
    assert "--method must be darts as in" in line


def test_damaged_run_directories_are_one_line(searched: Path, tmp_path: Path, fails: Fails) -> None:
    assert "holds no run" in fails("resume", str(tmp_path))
    assert "holds no run" in fails("show", str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(searched, broken)
    (broken / "checkpoint-previous.safetensors").unlink()
    whole = (broken / "checkpoint.safetensors").read_bytes()
    (broken / "checkpoint.safetensors").write_bytes(whole[:1000])
    assert "checkpoint.safetensors" in fails("resume", str(broken))
    (broken / "checkpoint.safetensors").write_bytes(whole)
    text = (broken / "config.json").read_text()
    (broken / "config.json").write_text("{")
    assert "must be JSON" in fails("resume", str(broken))
    (broken / "config.json").write_text(text)
    (broken / "genotype.json").unlink()
    assert "has no cell yet" in fails("show", str(broken))


def test_damaged_checkpoint_is_a_line_of_warning(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(searched, path)
    newest = path / "checkpoint.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert main(["resume", str(path)]) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith(f"sgenas: warning: checkpoint {newest}")


def test_messages_escape_what_a_terminal_would_obey(fails: Fails) -> None:
    assert "\\x1b[2J" in fails("size", "--genotype", "\x1b[2J\nx")


def test_torchrun_is_refused_for_one_process_and_with_a_bad_timeout(
    fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "torchrun must start search, train or resume, got doctor" in fails("doctor")
    # before the processes join, which take it as their time limit
    assert "--rank-timeout must be > 0 and finite, got inf" in fails("resume", "x", "--rank-timeout", "inf")


@pytest.mark.parametrize("name", ["mps", "xpu", "cuda"])
@pytest.mark.parametrize("command", [SEARCH, TRAIN], ids=["search", "train"])
def test_device_that_cannot_be_used_is_one_line(
    name: str, command: tuple[str, ...], fails: Fails, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = fails(*command, "--out", str(tmp_path / "new"), "--device", name)
    assert said.startswith("--device must be auto or cpu on this machine")
    assert repr(name) in said
    assert not (tmp_path / "new").exists()
