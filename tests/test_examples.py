"""The examples: quickly with few steps, and slowly as they are, with what their first lines promise."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_cleaning(found: dict[str, float]) -> None:
    assert found["recognised"] > 80
    assert found["all labels as given"] + 2 < found["cleaned"] < found["only right labels"] + 1
    assert found["the known ones alone"] < found["cleaned"]


def check_decay(found: dict[str, float]) -> None:
    assert found["best common decay"] + 5 < found["learned decays"]
    assert found["noise over pixels"] > 2


def check_few_shot(found: dict[str, float]) -> None:
    assert found["unrolled"] < 0.9 * found["first-order"]
    assert found["first-order"] < 0.9 * found["none"]


def check_table(found: dict[str, float]) -> None:
    assert 1 < found["found choices"] < 1.1 * found["usual choices"]


def check_transformer(found: dict[str, float]) -> None:
    assert found["found choices"] < found["usual choices"]


def check_resnet(found: dict[str, float]) -> None:
    # it does not pay, and the example says so: half the weights
    assert found["usual choices"] - 6 < found["found choices"] < found["usual choices"]


CHECKS = {
    "hyper_cleaning": check_cleaning,
    "weight_decay": check_decay,
    "few_shot": check_few_shot,
    "tabular_mlp": check_table,
    "text_transformer": check_transformer,
    "resnet_blocks": check_resnet,
}
NEEDS = {"resnet_blocks": load("resnet_blocks").SHARED}
"""Data that are not everywhere."""


def test_every_example_is_checked() -> None:
    assert {path.stem for path in EXAMPLES} == set(CHECKS)


def test_hyper_cleaning_quickly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("hyper_cleaning")
    monkeypatch.setattr(module, "TRAINING_STEPS", 150)
    check_cleaning(module.main(["--steps", "25", "--estimator", "second-order"]))
    assert "labels told right from wrong" in capsys.readouterr().out
    # the outer loss knows the alphas through the weights alone
    assert module.main(["--steps", "1", "--estimator", "first-order"])["recognised"] < 60


def test_weight_decay_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("weight_decay")
    monkeypatch.setattr(module, "TRAINING_STEPS", 300)
    found = module.main(["--steps", "15", "--estimator", "unrolled-last"])
    assert found["best common decay"] < found["learned decays"]
    assert found["noise over pixels"] > 1.5


def test_few_shot_quickly() -> None:
    found = load("few_shot").main(["--steps", "40"])
    assert found["unrolled"] < found["first-order"] < found["none"]


def test_tabular_mlp_quickly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("tabular_mlp")
    monkeypatch.setattr(module, "TRAINING_EPOCHS", 4)
    found = module.main(["--epochs", "2", "--estimator", "first-order"])
    assert set(found) == {"mixture", "usual choices", "found choices"}
    # 4 epochs of training are enough to beat the mean, whose error is the variance
    assert all(1 < error < 20 for error in found.values())
    assert "activation" in capsys.readouterr().out


def test_text_transformer_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("text_transformer")
    monkeypatch.setattr(module, "BATCH", 4)
    found = module.main(["--steps", "10"])
    # better than guessing among 100 characters with equal chances
    assert all(1 < loss < 4.6 for loss in found.values())


def test_resnet_blocks_quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load("resnet_blocks")
    for name, value in {"TRAIN": 60, "TEST": 20, "BATCH": 10, "CHANNELS": 4}.items():
        monkeypatch.setattr(module, name, value)
    for folder, count in (("train", 40), ("test", 10)):
        for label in ("cat", "dog"):
            (tmp_path / folder / label).mkdir(parents=True)
            for number in range(count):
                shade = (number, 200 if label == "cat" else 20, 0)
                Image.new("RGB", (32, 32), shade).save(tmp_path / folder / label / f"{number}.png")
    found = module.main(["--data", f"folder:{tmp_path}", "--epochs", "2"])
    assert all(0 <= accuracy <= 100 for accuracy in found.values())
    with pytest.raises(SystemExit, match="say where CIFAR-10 is with --data"):
        module.main(["--data", f"parquet:{tmp_path}/nothing"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_an_example_keeps_its_promise(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name in NEEDS and not NEEDS[name].exists():
        pytest.skip(f"needs {NEEDS[name]}")
    module = load(name)
    CHECKS[name](module.main([]))
    # how long it took is no promise
    said = [line for line in capsys.readouterr().out.splitlines() if not line.endswith(" seconds")]
    promised = [line.strip() for line in (module.__doc__ or "").splitlines() if line.startswith("    ")]
    promised = [line for line in promised if not line.startswith("python ")]
    assert len(promised) == len(said) >= 3
    for ours, theirs in zip(promised, said, strict=True):
        # the same words, and numbers as near as other machines come
        words = re.sub(r"[\d.]+", "#", ours).split()
        assert words == re.sub(r"[\d.]+", "#", theirs).split()
        for a, b in zip(re.findall(r"[\d.]+", ours), re.findall(r"[\d.]+", theirs), strict=True):
            assert float(b) == pytest.approx(float(a), rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unrolled-last", "neumann", "cg", "sge"])
def test_other_estimators_learn_decays_too(name: str) -> None:
    check_decay(load("weight_decay").main(["--estimator", name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["second-order", "sge"])
def test_other_estimators_clean_too(name: str) -> None:
    check_cleaning(load("hyper_cleaning").main(["--estimator", name]))
