"""A search that runs out of memory: fewer directions side by side, or one line and a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import stop_after
from torch import Tensor

from sgenas.bilevel import vectorised
from sgenas.cli import main
from sgenas.engine import Search, SearchConfig, resume_search, run_search
from sgenas.errors import MemoryWarning, OutOfMemoryError

Make = Callable[..., SearchConfig]
SAID = "memory ran out with 2 directions of SGE side by side: goes on with 1 at a time"


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trajectories side by side are too many."""
    plain = vectorised._together

    def together(task: Any, directions: Any) -> Tensor:
        if len(directions) > 1:
            raise torch.OutOfMemoryError("no")
        return plain(task, directions)

    monkeypatch.setattr(vectorised, "_together", together)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("small_machine")
def test_the_smaller_chunk_is_said_logged_and_kept(
    small: Make, tmp_path: Path, assert_same_runs: Any
) -> None:
    with pytest.warns(MemoryWarning, match=SAID) as warned:
        run_search(small(epochs=2), tmp_path / "whole")
    assert len(warned) == 1, "not again at every step"
    found = rows(tmp_path / "whole")
    assert [row["step"] for row in found if "chunk" in row] == [1]
    assert found[0]["chunk"] == 1
    assert torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)["chunk"] == 1
    with pytest.warns(MemoryWarning, match=SAID):
        run_search(small(epochs=2), tmp_path / "cut", stop=stop_after(2))
    # no warning: it goes on with what it has come down to
    resume_search(tmp_path / "cut")
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.usefixtures("small_machine")
def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--channels", "2", "--layers", "3", "--nodes", "1", "--batch-size", "16", "--epochs", "1")
    data = ("--data", "digits", "--train-images", "40", "--directions", "2", "--device", "cpu")
    assert main(("search", *data, *size, "--out", str(tmp_path / "run"))) == 0
    assert capsys.readouterr().err.splitlines() == [f"sgenas: warning: {SAID}"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nstack"),
            "DefaultCPUAllocator: can't allocate memory: you tried",
        ),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_cannot_be_made_smaller_ends_the_run_in_one_line(
    error: Exception, said: str, small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Search._loss

    def loss(self: Search, *given: Any) -> Tensor:
        if self.step == 4:
            raise error
        return plain(self, *given)

    monkeypatch.setattr(Search, "_loss", loss)
    config = small(estimator={"estimator": "first-order", "directions": 10})
    with pytest.raises(OutOfMemoryError) as caught:
        run_search(config, tmp_path / "run")
    assert str(caught.value).startswith(
        f"memory ran out at step 5 (epoch 2): {said}; try a lower --batch-size"
    )
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert resume_search(tmp_path / "run").finished
