"""Embeddings with sparse gradients against the same ones with dense gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bilevel_cases import close, draw, optimizers
from torch import Tensor, nn

from sgenas.bilevel import (
    SGE,
    BilevelProblem,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    Neumann,
    Unrolled,
    hvp,
)
from sgenas.bilevel.plain_kernels import plain_kernels
from sgenas.errors import InvalidValueError
from sgenas.optim import SGD
from sgenas.tree import Tree

OPTIMIZERS = optimizers()
ESTIMATORS: list[Estimator] = [
    FirstOrder(),
    FiniteDifference(1e-3),
    Unrolled(),
    Unrolled(hvp="forward"),
    Neumann(3, 0.05, damping=10.0),
    ConjugateGradient(4, damping=10.0),
    SGE(4, 0.1),
    EvolutionStrategies(4, 0.1),
]
INNER, OUTER = torch.tensor([[0, 2, 2], [5, 1, 0]]), torch.tensor([[1, 1, 3], [0, 5, 4]])


def problem(kind: type[nn.Module], optimizer: Any, **settings: Any) -> BilevelProblem:
    torch.manual_seed(0)
    model = nn.Sequential(kind(6, 3, **settings), nn.Tanh(), nn.Linear(3, 2)).double()

    def loss(model: Callable[..., Any], alphas: Tree, batch: Tensor) -> Tensor:
        return (model(batch) * alphas.exp()).sin().square().mean()

    return BilevelProblem.from_modules(model, loss, loss, optimizer)


@pytest.mark.parametrize("name", ["nesterov", "adam"])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("large", [False, True])
def test_sparse_gradients_change_nothing(
    estimator: Estimator, kind: type[nn.Module], name: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hvp, "SMALL_GRAPH", -1 if large else 2**20)
    alphas, results = draw(2) / 4, []
    for sparse in (True, False):
        made = problem(kind, OPTIMIZERS[name][0], sparse=sparse)
        results.append(estimator(made, made.init(), alphas, [INNER, OUTER], INNER.flip(0), seed=0))
    found, wanted = results
    close((found.grad, found.indirect), (wanted.grad, wanted.indirect), 1e-9)
    close(found.state.weights, wanted.state.weights, 1e-12)
    close(found.state.slots, wanted.state.slots, 1e-12)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_unrolled_is_the_derivative_of_the_outer_objective(kind: type[nn.Module]) -> None:
    made, alphas, h = problem(kind, SGD(0.3, 0.9), sparse=True), draw(2) / 4, 1e-5

    def objective(moved: Tensor) -> Tensor:
        return made.outer_value(made.run(made.init(), moved, [INNER] * 3).end.weights, moved, OUTER)

    units = torch.eye(2, dtype=torch.float64)
    truth = torch.stack([(objective(alphas + h * u) - objective(alphas - h * u)) / (2 * h) for u in units])
    close(Unrolled()(made, made.init(), alphas, [INNER] * 3, OUTER).grad, truth, 1e-8)


def test_batched_sge_names_what_it_cannot_batch() -> None:
    made = problem(nn.Embedding, SGD(0.3), sparse=True)
    with pytest.raises(InvalidValueError, match="Sparse") as caught:
        SGE(2, computation="batched")(made, made.init(), draw(2), [INNER], OUTER, seed=0)
    assert caught.value.field == "SGE.computation"


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 2, -6])
@pytest.mark.parametrize("last", [False, True])
def test_plain_embedding_bags_have_the_same_values(mode: str, padding_idx: int | None, last: bool) -> None:
    weight, indices = draw(6, 3), torch.tensor([0, 2, 2, 5, 1])
    offsets = torch.tensor([0, 2, 2, *([5] if last else [])])
    sample = {"per_sample_weights": draw(5, seed=1)} if mode == "sum" else {}
    settings: dict[str, Any] = {"mode": mode, "padding_idx": padding_idx, "include_last_offset": last, **sample}
    wanted = F.embedding_bag(indices, weight, offsets, **settings)
    rows = F.embedding_bag(INNER, weight, mode=mode, padding_idx=padding_idx)
    with plain_kernels():
        close(F.embedding_bag(indices, weight, offsets, **settings), wanted, 1e-14)
        close(F.embedding_bag(INNER, weight, mode=mode, padding_idx=padding_idx), rows, 1e-14)


def test_a_loss_that_changes_weights_in_place_is_refused() -> None:
    def loss(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        return (F.embedding(batch, weights, max_norm=0.1) * alphas.exp()).square().sum()

    made = BilevelProblem(loss, loss, SGD(0.3))
    with pytest.raises(InvalidValueError, match="in place") as caught:
        FirstOrder()(made, made.init(draw(6, 2)), draw(2), [INNER], OUTER)
    assert caught.value.field == "inner_loss"
