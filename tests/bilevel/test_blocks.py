"""Blocks of alphas perturbed one at a time: each is an estimate of its own, of known variance."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import SGD, SGE, BilevelProblem
from sgenas.bilevel.averaging import average
from sgenas.bilevel.blocks import BLOCKS, columns, deal
from sgenas.bilevel.control_variates import Known
from sgenas.bilevel.directions import draw
from sgenas.bilevel.sge import COMPUTATIONS
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree

OPTIMIZER = SGD(0.2, momentum=0.9, weight_decay=0.1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Case:
    """Two tables of different sizes and a scalar, whose parts of the gradient differ in size by orders.

    L_train is linear in the alphas, so that projections have no smoothing error. gains: by how much each
    tensor moves the weights.
    """

    def __init__(self, gains: tuple[float, float, float] = (10.0, 1.0, 0.1)) -> None:
        self.alphas = {
            name: torch.randn(shape, generator=generator(seed), dtype=torch.float64)
            for seed, (name, shape) in enumerate([("large", (3, 4)), ("small", (2, 2)), ("scalar", ())])
        }
        p = trees.size(self.alphas)
        mixing = torch.randn(7, p, generator=generator(3), dtype=torch.float64)
        sizes = torch.tensor([12, 4, 1])
        mixing = mixing * torch.tensor(gains, dtype=torch.float64).repeat_interleave(sizes)
        self.batches = list(torch.randn(3, 7, generator=generator(4), dtype=torch.float64))

        def inner(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
            return (weights["w"] - mixing @ trees.flatten(alphas) - batch).square().sum() / 2

        self.problem = BilevelProblem(inner, lambda w, a, batch: w["w"].square().sum() / 2, OPTIMIZER)
        start = self.problem.init({"w": torch.ones(7, dtype=torch.float64)})
        self.state = self.problem.run(start, self.alphas, self.batches).end
        basis = self.estimate(SGE(p, directions="orthogonal"))
        self.shape, self.exact = basis.indirect, trees.flatten(basis.indirect)

    def estimate(self, estimator: SGE, seed: int = 0) -> Any:
        return estimator(self.problem, self.state, self.alphas, self.batches, None, generator=generator(seed))

    def many(self, kind: str, count: int, blocks: str, draws: int = 400) -> tuple[Tensor, Tensor]:
        """Estimates (draws, p) and their claimed variances, from the projections that SGE would measure."""
        draw_from = generator()
        found = []
        for _ in range(draws):
            drawn = draw(kind, count, self.alphas, draw_from, blocks)
            found.append(average(drawn, drawn.matrix @ self.exact))
        claimed = [each.variance for each in found if each.variance is not None]
        return torch.stack([each.gradient for each in found]), torch.stack(claimed or [torch.zeros(())])


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("kind", ["gaussian", "orthogonal", "sphere", "antithetic"])
def test_sge_is_the_average_of_what_it_measures(kind: str, blocks: str) -> None:
    case = Case()
    result = case.estimate(SGE(14, directions=kind, blocks=blocks))
    drawn = draw(kind, 14, case.alphas, generator(), blocks)
    expected = average(drawn, drawn.matrix @ case.exact)
    torch.testing.assert_close(trees.flatten(result.indirect), expected.gradient, rtol=1e-8, atol=1e-8)
    measured = result.diagnostics["projections"]
    torch.testing.assert_close(measured, drawn.matrix @ case.exact, rtol=1e-8, atol=1e-8)
    if expected.variance is not None:
        torch.testing.assert_close(
            result.diagnostics["standard_error"], expected.variance.sqrt(), rtol=1e-7, atol=1e-9
        )
    else:
        assert "standard_error" not in result.diagnostics


def test_columns_of_the_blocks() -> None:
    alphas = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(()), "d": torch.zeros(2, 2, 2)}
    sizes = {kind: [entries.stop - entries.start for entries in columns(kind, alphas)] for kind in BLOCKS}
    assert sizes == {"joint": [19], "table": [6, 4, 1, 8], "edge": [3, 3, 4, 1, 4, 4]}
    for kind in BLOCKS:
        found = columns(kind, alphas)
        assert found[0].start == 0
        assert found[-1].stop == 19
        assert all(first.stop == second.start for first, second in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("count", "number", "group", "shares"),
    [(7, 3, 1, [3, 2, 2]), (3, 3, 1, [1, 1, 1]), (8, 3, 2, [4, 2, 2]), (5, 1, 1, [5])],
)
def test_directions_are_dealt_in_turn(count: int, number: int, group: int, shares: list[int]) -> None:
    rows = deal(count, number, group)
    assert [each.stop - each.start for each in rows] == shares
    assert rows[-1].stop == count


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal", "sphere", "antithetic"])
def test_a_direction_is_zero_outside_its_block(kind: str) -> None:
    case = Case()
    drawn = draw(kind, 14, case.alphas, generator(), "edge")
    assert len(drawn.blocks) == 6
    for rows, entries in drawn.blocks:
        inside = drawn.matrix[rows, entries]
        assert (inside != 0).all()
        assert (drawn.matrix[rows] != 0).sum() == inside.numel()
        if kind in ("orthogonal", "sphere"):
            length = torch.full((len(inside),), inside.shape[1] ** 0.5, dtype=torch.float64)
            torch.testing.assert_close(inside.norm(dim=1), length)
        if kind == "antithetic":
            assert torch.equal(inside[::2], -inside[1::2])


@pytest.mark.parametrize("blocks", ["table", "edge"])
@pytest.mark.parametrize("kind", ["gaussian", "orthogonal", "sphere", "antithetic"])
def test_estimates_are_unbiased(kind: str, blocks: str) -> None:
    case = Case()
    draws, _ = case.many(kind, 14, blocks, 1000)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - case.exact).abs() < 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("blocks", ["table", "edge"])
def test_noise_of_a_block_is_its_own(blocks: str) -> None:
    """(p_b + 1) / q_b ||g_b||^2 in each block, against (p_b ||g||^2 + ||g_b||^2) / Q without blocks."""
    case = Case()
    (apart, _), (together, _) = (case.many("gaussian", 18, each, 2000) for each in (blocks, "joint"))
    found = columns(blocks, case.alphas)
    for entries, rows in zip(found, deal(18, len(found)), strict=True):
        exact = case.exact[entries]
        size, count = len(exact), rows.stop - rows.start
        own = (size + 1) / count * exact.square().sum()
        shared = (size * case.exact.square().sum() + exact.square().sum()) / 18
        for draws, expected in ((apart, own), (together, shared)):
            squared = (draws[:, entries] - exact).square().sum(1)
            assert abs(squared.mean() - expected) < 4.5 * squared.std() / len(squared) ** 0.5
            assert squared.std() / len(squared) ** 0.5 < 0.1 * expected
    scalar = case.exact[-1].square()
    assert ((apart[:, -1] - case.exact[-1]).square().mean() / scalar).item() < 2
    assert ((together[:, -1] - case.exact[-1]).square().mean() / scalar).item() > 100


def test_as_many_orthogonal_directions_as_each_block_needs_are_exact() -> None:
    case = Case()
    # 24 directions, 4 for each of 6 blocks: rows of 4, rows of 2, a scalar
    found = case.estimate(SGE(24, directions="orthogonal", blocks="edge"))
    torch.testing.assert_close(trees.flatten(found.indirect), case.exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("computation", [name for name in COMPUTATIONS if name not in ("difference", "loop")])
def test_all_computations_agree(computation: str) -> None:
    case = Case()
    ours = case.estimate(SGE(7, computation=computation, blocks="edge"))
    loop = case.estimate(SGE(7, computation="loop", blocks="edge"))
    for name, tensor in loop.grad.items():
        torch.testing.assert_close(ours.grad[name], tensor, rtol=1e-9, atol=1e-9)


def test_variates_are_fitted_block_by_block() -> None:
    """A guess that is off by another factor in every block: one coefficient could not mend it."""
    case = Case()
    factors = {"large": 2.0, "small": -0.5, "scalar": 4.0}

    def guess(known: Known) -> Tree:
        return {name: factors[name] * tensor for name, tensor in case.shape.items()}

    apart = case.estimate(SGE(9, control_variate=(guess,), blocks="table"))
    torch.testing.assert_close(trees.flatten(apart.indirect), case.exact, rtol=1e-8, atol=1e-8)
    expected = torch.tensor([[1 / factor] for factor in factors.values()], dtype=torch.float64)
    torch.testing.assert_close(apart.diagnostics["coefficients"], expected)
    together = trees.flatten(case.estimate(SGE(9, control_variate=(guess,))).indirect)
    assert (together - case.exact).norm() > 0.01 * case.exact.norm()


@pytest.mark.parametrize(("kind", "count"), [("gaussian", 12), ("sphere", 12), ("antithetic", 24)])
def test_claimed_variance_is_that_of_the_estimate(kind: str, count: int) -> None:
    case = Case((1.0, 1.0, 1.0))
    draws, claimed = case.many(kind, count, "table", 2000)
    assert claimed.mean() == pytest.approx(draws.var(0).sum().item(), rel=0.1)
    # a block with one direction cannot know its own noise
    assert "standard_error" not in case.estimate(SGE(5, blocks="table")).diagnostics


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGE(blocks="row"), "SGE.blocks must be one of joint, table, edge, got 'row'"),
        (
            lambda: Case().estimate(SGE(5, blocks="edge")),
            "num_directions must be at least 6, 1 for each of 6 blocks, got 5",
        ),
        (
            lambda: Case().estimate(SGE(10, blocks="edge", directions="antithetic")),
            "num_directions must be at least 12, 2 for each of 6 blocks, got 10",
        ),
    ],
)
def test_bad_input(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        make()
