from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from stopping import stop_after

from sgenas.engine import DataSettings, EstimatorSettings, SearchConfig, SpaceSettings, run_search


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny search that was stopped after its first epoch: to copy, and to go on with."""
    config = SearchConfig(
        epochs=2,
        data=DataSettings(data="digits", train_images=80, batch_size=16),
        space=SpaceSettings(channels=2, layers=3, nodes=1),
        estimator=EstimatorSettings(estimator="first-order"),
    )
    path = tmp_path_factory.mktemp("runs") / "run"
    assert not run_search(config, path, stop=stop_after(3)).finished
    return path


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Path]:
    """place(name): where a file of that name is read; images lie in a class folder beside another class."""

    def make(name: str) -> Path:
        if not name.endswith(".png"):
            return tmp_path / name
        for label in ("a", "b"):
            (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(tmp_path / "photos" / label / "1.png")
        return tmp_path / "photos" / "a" / name

    return make
