"""`evaluate_run`, `export_run` and `export_network`."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from stopping import stop_after
from torch import nn

from sgenas.errors import CheckpointError, InvalidValueError, RunDirError
from sgenas.run.checkpoint import load_checkpoint, save_checkpoint
from sgenas.spaces.networks import build
from sgenas.training import TrainConfig, evaluate_run, export_network, export_run, trained_network

Make = Callable[..., TrainConfig]


@pytest.fixture
def run(training: Make, tmp_path: Path) -> Path:
    training().run(tmp_path / "run", progress=False)
    return tmp_path / "run"


def some_images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_evaluation_reproduces_the_logged_accuracy(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    found = evaluate_run(run)
    assert found.equal is True
    assert found.test_accuracy == found.logged_test_accuracy == last["test_accuracy"]
    assert found.test_loss == last["test_loss"]
    assert (found.test_images, found.epochs, found.step) == (60, 3, 9)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_evaluation_in_the_middle_of_an_epoch_has_no_logged_accuracy(training: Make, tmp_path: Path) -> None:
    training().run(tmp_path / "run", stop=stop_after(4), progress=False)
    found = evaluate_run(tmp_path / "run")
    assert (found.epochs, found.step, found.logged_test_accuracy, found.equal) == (1, 4, None, None)


def test_evaluation_chooses_its_device(run: Path) -> None:
    head = json.loads((run / "config.json").read_text())
    head["config"]["device"] = "cuda:97"
    (run / "config.json").write_text(json.dumps(head))
    assert evaluate_run(run, device="cpu").equal is True
    with pytest.raises(InvalidValueError) as caught:
        evaluate_run(run, device="abacus")
    assert caught.value.field == "device"


@pytest.mark.parametrize("use", [evaluate_run, trained_network])
def test_directory_without_a_whole_training_is_refused(use: Callable[[Path], Any], run: Path) -> None:
    with pytest.raises(RunDirError, match="exist"):
        use(run / "none")
    state = load_checkpoint(run / "checkpoint.safetensors")
    state["own"]["average"].popitem()
    save_checkpoint(run / "checkpoint.safetensors", state)
    with pytest.raises(CheckpointError, match="match"):
        use(run)
    head = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(head | {"kind": "search"}))
    with pytest.raises(RunDirError, match="training"):
        use(run)
    (run / "config.json").write_text(json.dumps(head))
    for path in run.glob("checkpoint*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="exist"):
        use(run)


@pytest.mark.parametrize("ema", [0.9, None])
def test_trained_network_is_the_one_that_was_tested(ema: float | None, training: Make, tmp_path: Path) -> None:
    result = training(ema=ema).run(tmp_path / "run", progress=False)
    network, images = trained_network(tmp_path / "run")
    assert images.shape == (2, 1, 8, 8)
    assert not network.training
    torch.testing.assert_close(network(some_images(4)), result.network.eval()(some_images(4)))


def test_auxiliary_head_is_left_out(training: Make, photos: str, tmp_path: Path) -> None:
    images = {"data": photos, "train_images": None, "test_images": None, "batch_size": 6}
    result = training(epochs=2, data=images, auxiliary_weight=0.4).run(tmp_path / "run", progress=False)
    network, zeros = trained_network(tmp_path / "run")
    assert zeros.shape == (2, 3, 32, 32)
    left_out = set(result.network.state_dict()) - set(network.state_dict())
    assert left_out
    assert all(name.startswith("auxiliary.") for name in left_out)
    torch.testing.assert_close(network(zeros), result.network.eval()(zeros))


def test_state_dict_round_trip(run: Path, training: Make, tmp_path: Path) -> None:
    path = export_run(run, "state-dict", tmp_path / "weights.safetensors")
    network = build(training().genotype, channels=2, layers=3, input_channels=1)
    network.load_state_dict(safetensors.torch.load_file(path))
    expected, _ = trained_network(run)
    assert torch.equal(network.eval()(some_images(3)), expected(some_images(3)))


# torch 2.9 says so of its own reading
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
def test_torch_export_round_trip_takes_any_batch(run: Path, tmp_path: Path) -> None:
    program = torch.export.load(export_run(run, "torch-export", tmp_path / "cell.pt2")).module()
    expected, _ = trained_network(run)
    for count in (1, 2, 5):
        torch.testing.assert_close(program(some_images(count)), expected(some_images(count)))


@pytest.mark.slow
def test_onnx_round_trip_takes_any_batch(run: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(export_run(run, "onnx", tmp_path / "cell.onnx")))
    assert [(item.name, item.shape) for item in session.get_inputs()] == [("inputs", ["batch", 1, 8, 8])]
    network, _ = trained_network(run)
    for count in (1, 5):
        batch = some_images(count)
        (logits,) = session.run(["outputs"], {"inputs": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(batch).detach(), rtol=0, atol=1e-4)


def test_any_network_is_exported_and_keeps_its_mode(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    path = export_network(network, torch.zeros(2, 3), "torch-export", tmp_path / "network.pt2")
    assert network.training
    network[0].eval()
    export_network(network, torch.zeros(2, 3), "state-dict", tmp_path / "network.safetensors")
    assert [each.training for each in network.modules()] == [True, False, True]
    program, inputs = torch.export.load(path).module(), torch.randn(4, 3)
    torch.testing.assert_close(program(inputs), network.eval()(inputs))


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_packages_are_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None if name == package else types.ModuleType(name))
    with pytest.raises(InvalidValueError, match=rf"package {package}, .*: pip install 'sgenas\[onnx\]'"):
        export_network(nn.Linear(3, 2), torch.zeros(2, 3), "onnx", tmp_path / "network.onnx")
    assert not (tmp_path / "network.onnx").exists()


def test_export_refuses_other_formats_and_existing_files(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights"
    out.write_bytes(b"mine")
    for format, path, field in (
        ("h5", tmp_path / "other", "format"),
        ("state-dict", out, "out"),
        ("state-dict", tmp_path / "none" / "weights", "out"),
    ):
        with pytest.raises(InvalidValueError) as caught:
            export_run(run, format, path)
        assert caught.value.field == field
    assert out.read_bytes() == b"mine"
    export_run(run, "state-dict", out, overwrite=True)
    assert out.stat().st_size > 1000
