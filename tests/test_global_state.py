"""No part draws from a global generator or seeds one; searches are in tests/searching/test_determinism.py."""

from pathlib import Path

import pytest
import torch
from global_state import twice
from stopping import stop_after
from tiny_searches import cells

from sgenas import SGE, tree
from sgenas.bilevel import Estimator
from sgenas.bilevel.estimators import ESTIMATORS
from sgenas.bilevel.test_problems import Quadratic
from sgenas.optim import SGD
from sgenas.random import seeded
from sgenas.report import save_all


@pytest.fixture(autouse=True)
def _imported() -> None:
    """The import of rich.style alone draws a number."""
    import rich.style  # noqa: F401


KINDS = ("gaussian", "orthogonal", "antithetic")


@pytest.mark.parametrize(
    "estimator",
    [
        *(ESTIMATORS.get(name)() for name in ESTIMATORS.names()),
        *(SGE(num_directions=4, directions=kind) for kind in KINDS),
        SGE(num_directions=4, smoothing="auto", control_variate="finite-difference", computation="batched"),
    ],
    ids=repr,
)
def test_estimators_depend_on_their_generator_alone(estimator: Estimator) -> None:
    def run() -> tree.Tree:
        draw = torch.Generator().manual_seed(0)
        toy = Quadratic.random(draw)
        problem = toy.problem(SGD(0.1))
        batches = [torch.randn(7, generator=draw, dtype=torch.float64) for _ in range(3)]
        start = problem.init(toy.weights)
        return estimator(problem, start, toy.alphas, batches[:2], batches[2], generator=draw).grad

    first, second = twice(run)
    assert all(map(torch.equal, tree.tensors(first), tree.tensors(second)))


def test_reports_draw_nothing(tmp_path: Path) -> None:
    cells(epochs=2).run(tmp_path, stop=stop_after(3), progress=False)
    save_all(tmp_path)  # what is drawn first imports a lot

    def run() -> bytes:
        save_all(tmp_path)
        return (tmp_path / "cell.png").read_bytes()

    first, second = twice(run)
    assert first == second


def test_a_seed_for_a_while_is_not_left_for_gpus_that_are_used_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch keeps the seed of a GPU that it has not used yet for the time when it does."""
    kept: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", kept.append)
    torch.manual_seed(5)
    with seeded(7):
        assert kept == [5, 7]
    assert kept == [5, 7, 5]
