"""size, latency, query, data, doctor and completion."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from sgenas.cli.commands import COMMANDS, doctor
from sgenas.cli.main import main

ROOT = Path(__file__).parents[2]
TABLE = ROOT.parent / "shared" / "data" / "nasbench201-200epochs.csv"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn"}
SKIP = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
CANDIDATES = """
candidates() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    $(complete -p sgenas | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    printf '%s\\n' "${COMPREPLY[@]}"
}
"""


def test_size_is_that_of_the_published_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "--genotype", "darts-v2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params"] == 3349342
    assert found["params_with_auxiliary"] > found["params"]
    assert main(["size", "--genotype", "darts-v2", "--num-classes", "100"]) == 0
    assert f"{found['params'] + 90 * 577:,}" in capsys.readouterr().out


def test_latency_writes_a_table_that_a_search_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "cpu.json"
    sizes = ("--channels", "2", "--layers", "3", "--nodes", "1", "--resolution", "8", "--repeats", "1")
    assert main(["latency", *sizes, "--device", "cpu", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert json.loads(out.read_text())["format"] == "sgenas-latency"


@pytest.mark.skipif(not TABLE.exists(), reason="needs ../shared/data")
def test_query_prints_accuracy_rank_and_regret(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", "--table", str(TABLE), "--arch", SKIP, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    row = next(value for name, value in found.items() if "cifar10" in name and "cifar100" not in name)
    assert row["accuracy"] == pytest.approx(54.30, abs=0.01)
    assert row["regret"] == pytest.approx(94.37 - 54.30, abs=0.02)
    assert main(["query", "--table", str(TABLE), "--arch", SKIP]) == 0
    assert "rank" in capsys.readouterr().out


def test_data_prints_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "digits"]) == 0
    assert "8 x 8 pixels" in capsys.readouterr().out
    assert main(["data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["height"], len(found["classes"])) == (8, 10)


# -- doctor -------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PASSES_SECONDS", 0.0)
    monkeypatch.setattr(doctor, "PRODUCT_SECONDS", 0.0)


def test_doctor_looks_for_the_dependencies_of_the_project() -> None:
    names = [re.match(r"[A-Za-z0-9-]+", line)[0] for line in PROJECT["dependencies"]]
    assert {MODULES.get(name, name) for name in names} == set(doctor.NEEDED)
    optional = PROJECT["optional-dependencies"]
    for extra, modules in doctor.EXTRAS.items():
        assert {re.match(r"[A-Za-z0-9-]+", line)[0] for line in optional[extra]} == set(modules)
    assert set(doctor.EXTRAS) == set(optional) - {"coverage", "docs", "lint", "test"}
    least = re.search(r">=(\d+)\.(\d+)", PROJECT["dependencies"][0])
    assert tuple(map(int, least.groups())) == doctor.LEAST_TORCH


def test_doctor_examines_this_machine(
    quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert found["versions"]["torch"] == torch.__version__
    assert 0 < found["devices"][0]["free"] <= found["devices"][0]["memory"]
    assert len(found["devices"]) == 1 + torch.cuda.device_count()
    assert found["variables"]["OMP_NUM_THREADS"] == "1"
    assert found["data"] == dict.fromkeys(found["data"], False)
    assert any("cifar10" in warning for warning in found["warnings"])
    assert min(found["speed"]["passes"], found["speed"]["gflops"]) > 0
    (tmp_path / ".cache" / "sgenas" / "cifar-10-batches-py").mkdir(parents=True)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert ": cifar10; missing: cifar100" in out
    assert "a search can run" in out


def test_doctor_says_which_devices_can_be_used(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(index: int) -> tuple[int, int]:
        if index:
            raise RuntimeError("CUDA error: all devices are busy\nCompile with")
        return 3 * 2**30, 4 * 2**30

    monkeypatch.setattr(doctor, "measure", lambda: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr("torch.cuda.mem_get_info", ask)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("mps"))
    assert main(["doctor", "--json"]) == 0
    devices = {each.pop("name"): each for each in json.loads(capsys.readouterr().out)["devices"]}
    assert [name for name, each in devices.items() if each["usable"]] == ["cpu", "cuda:0"]
    assert [name for name, each in devices.items() if not each["usable"]] == ["cuda:1", "mps"]
    assert devices["cuda:0"] == {"kind": "Card 0", "free": 3 * 2**30, "memory": 4 * 2**30, "usable": True}
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^mps +not supported; cannot be used$", said, re.MULTILINE)
    assert re.search(r"^cuda:1 +Card 1 \(CUDA error: all devices are busy.*cannot be used$", said, re.MULTILINE)


def test_doctor_names_every_reason_and_exits_with_1(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("CUDA error:\n no kernel")

    monkeypatch.setattr(doctor, "measure", broken)
    for name, value in {"LEAST_MEMORY": 10**18, "LEAST_DISK": 10**18, "LEAST_TORCH": (99, 0)}.items():
        monkeypatch.setattr(doctor, name, value)
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no_such_module"))
    assert main(["doctor", "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["speed"] is None
    words = ("no_such_module", "torch must be at least 99.0", "free memory", "free disk", "CUDA error: no kernel")
    for reason, word in zip(found["reasons"], words, strict=True):
        assert word in reason
        assert word in captured.err


# -- completion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sea"], {"search"}),
        (["search", "--est"], {"--estimator"}),
        (["search", "--estimator", "s"], {"sge"}),
        (["table1", "--preset", "sm"], {"small", "smoke"}),
        (["size", "--j"], {"--json"}),
        ([""], set(COMMANDS)),
    ],
)
def test_bash_completes_commands_flags_and_values(
    words: list[str], expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    command = ["bash", "-c", f'source {tmp_path / "script"}\n{CANDIDATES}\ncandidates "$@"', "bash", "sgenas", *words]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stderr == ""
    assert set(found.stdout.split()) - {"-h", "--help", "--version"} == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_every_command_and_its_shell_reads_it(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for name in (*COMMANDS, "inner-steps", "alpha-betas", "evolution-strategies"):
        assert name in text
    (tmp_path / "script").write_text(text)
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
