import re
import tomllib
from pathlib import Path

import pytest
import torch

from sgenas.engine import doctor

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PASSES_SECONDS", 0.0)
    monkeypatch.setattr(doctor, "PRODUCT_SECONDS", 0.0)


def test_what_is_looked_for_is_what_the_project_says() -> None:
    names = [re.match(r"[A-Za-z0-9-]+", line)[0] for line in PROJECT["dependencies"]]
    assert {MODULES.get(name, name) for name in names} == set(doctor.NEEDED)
    optional = PROJECT["optional-dependencies"]
    for extra, modules in doctor.EXTRAS.items():
        assert {re.match(r"[A-Za-z0-9-]+", line)[0] for line in optional[extra]} == set(modules)
    assert set(doctor.EXTRAS) == set(optional) - {"coverage", "docs", "lint", "test"}
    least = re.search(r">=(\d+)\.(\d+)", PROJECT["dependencies"][0])
    assert tuple(map(int, least.groups())) == doctor.LEAST_TORCH


def test_a_checkup_of_this_machine(quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = doctor.examine()
    assert found.ok
    assert found.reasons == ()
    assert found.versions["torch"] == torch.__version__
    assert None not in found.versions.values()
    assert found.devices[0].kind
    assert 0 < found.devices[0].free <= found.devices[0].memory
    assert len(found.devices) == 1 + torch.cuda.device_count()
    assert 1 <= found.cores <= found.all_cores
    assert found.threads == torch.get_num_threads()
    assert found.settings["OMP_NUM_THREADS"] == "1"
    assert found.disk_free > 0
    assert found.data == dict.fromkeys(found.data, False)
    assert any("cifar10" in warning for warning in found.warnings)
    assert found.extras["onnx"] == [name for name in doctor.EXTRAS["onnx"] if doctor._missing(name)]
    assert found.speed is not None
    assert found.speed.passes > 0
    assert found.speed.gflops > 0
    (tmp_path / ".cache" / "sgenas" / "cifar-10-batches-py").mkdir(parents=True)
    again = doctor.examine()
    assert again.data["cifar10"]
    assert not any("cifar10" in warning for warning in again.warnings)
    assert again.to_dict()["ok"] is True


def test_why_no_search_can_run(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error:\n no kernel")

    monkeypatch.setattr(doctor, "measure", broken)
    monkeypatch.setattr(doctor, "LEAST_MEMORY", 10**18)
    monkeypatch.setattr(doctor, "LEAST_DISK", 10**18)
    monkeypatch.setattr(doctor, "LEAST_TORCH", (99, 0))
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no_such_module"))
    monkeypatch.setattr(doctor, "_usable_cores", lambda: 0)
    found = doctor.examine()
    assert not found.ok
    assert found.speed is None
    expected = (
        "the module no_such_module is missing: install sgenas again",
        r"torch must be at least 99\.0, got .*",
        "free memory must be at least 1,000,000,000,000,000,000 bytes, got .*",
        "free disk of .* must be at least 1,000,000,000,000,000,000 bytes, got .*",
        "a pass through a small supernet fails: CUDA error: no kernel",
    )
    for reason, pattern in zip(found.reasons, expected, strict=True):
        assert re.fullmatch(pattern, reason), reason
    assert any("threads share 0 usable cores" in warning for warning in found.warnings)


def test_gpus_stand_beside_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda index: (index + 1, 10 * index + 10))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"GPU {index}")
    _, first, second = doctor._devices()
    assert first == doctor.Device("cuda:0", "GPU 0", 10, 1)
    assert second == doctor.Device("cuda:1", "GPU 1", 20, 2)


def test_seconds_are_those_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that every call moves on by a quarter of a second."""
    clock = [0.0]
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += 0.25

    assert doctor._seconds(call, torch.device("cpu"), 1.0) == 0.25
    assert clock[0] == 1.25
