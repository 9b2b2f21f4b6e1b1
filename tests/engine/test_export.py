from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sgenas.engine import TrainConfig, run_training
from sgenas.engine import checkpoint as checkpoints
from sgenas.engine.export import export_run, trained_network
from sgenas.engine.train import load_training
from sgenas.errors import CheckpointError, ConfigError, RunFolderError
from sgenas.nets import build

Make = Callable[..., TrainConfig]


@pytest.fixture
def run(training: Make, tmp_path: Path) -> Path:
    return run_training(training(), tmp_path / "run").path


def some_images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_network_is_the_one_that_was_tested(run: Path) -> None:
    network, images = trained_network(run)
    assert images.shape == (2, 1, 8, 8)
    assert not network.training
    tested = load_training(run)
    assert tested.average is not None
    batch = some_images(4)
    torch.testing.assert_close(network(batch), tested.average.network(batch))
    assert not torch.allclose(network(batch), tested.network.eval()(batch), atol=1e-3)


def test_without_a_running_average_it_is_the_network_itself(training: Make, tmp_path: Path) -> None:
    path = run_training(training(optimizer={"ema": None}), tmp_path / "run").path
    network, _ = trained_network(path)
    batch = some_images(4)
    torch.testing.assert_close(network(batch), load_training(path).network.eval()(batch))


def test_state_dict(run: Path, training: Make, tmp_path: Path) -> None:
    path = export_run(run, "state-dict", tmp_path / "weights.pt")
    network = build(training().genotype, channels=2, layers=3, input_channels=1)
    network.load_state_dict(torch.load(path, weights_only=True))
    expected, _ = trained_network(run)
    assert torch.equal(network.eval()(some_images(3)), expected(some_images(3)))


# torch 2.9 says so of its own reading
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
@pytest.mark.parametrize("count", [1, 2, 5])
def test_torch_export(run: Path, tmp_path: Path, count: int) -> None:
    path = export_run(run, "torch-export", tmp_path / "cell.pt2")
    program = torch.export.load(path).module()
    expected, _ = trained_network(run)
    torch.testing.assert_close(program(some_images(count)), expected(some_images(count)))


def test_onnx_runs_in_onnxruntime(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = export_run(run, "onnx", tmp_path / "cell.onnx")
    session = runtime.InferenceSession(str(path))
    assert [(item.name, item.shape) for item in session.get_inputs()] == [("images", ["batch", 1, 8, 8])]
    network, _ = trained_network(run)
    for count in (1, 5):
        batch = some_images(count)
        (logits,) = session.run(["logits"], {"images": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(batch).detach(), rtol=0, atol=1e-4)


def test_the_auxiliary_head_is_left_out(training: Make, photos: str, tmp_path: Path) -> None:
    changes = {"data": photos, "train_images": None, "test_images": None, "batch_size": 6}
    config = training(epochs=2, data=changes, network={"auxiliary_weight": 0.4})
    path = run_training(config, tmp_path / "run").path
    network, images = trained_network(path)
    assert images.shape == (2, 3, 32, 32)
    trained = load_training(path).result
    names = set(network.state_dict())
    left_out = set(trained.state_dict()) - names
    assert left_out
    assert all(name.startswith("auxiliary.") for name in left_out)
    torch.testing.assert_close(network(images), trained.eval()(images))


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_packages_are_named_with_the_extra(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr("sgenas.engine.export._has", lambda name: name != package)
    with pytest.raises(ConfigError, match=rf"{package} missing here: pip install 'sgenas\[onnx\]'"):
        export_run(run, "onnx", tmp_path / "cell.onnx")
    assert not (tmp_path / "cell.onnx").exists()


def test_bad_input(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--format must be one of state-dict, torch-export, onnx, got 'h5'"):
        export_run(run, "h5", tmp_path / "cell.h5")
    out = tmp_path / "weights.pt"
    export_run(run, "state-dict", out)
    out.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="must be a new file, or pass --overwrite"):
        export_run(run, "state-dict", out)
    assert out.read_bytes() == b"mine"
    export_run(run, "state-dict", out, overwrite=True)
    assert out.stat().st_size > 1000
    with pytest.raises(ConfigError, match="must be in a folder that exists"):
        export_run(run, "state-dict", tmp_path / "none" / "weights.pt")
    with pytest.raises(RunFolderError, match="does not exist"):
        export_run(tmp_path / "none", "state-dict", tmp_path / "other.pt")
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    state["average"].popitem()
    checkpoints.save(run / "checkpoint.pt", state)
    with pytest.raises(CheckpointError, match="checkpoint.pt does not fit"):
        export_run(run, "state-dict", tmp_path / "other.pt")
