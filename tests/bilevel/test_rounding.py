"""The noise floor of an estimator whose losses are rounded."""

from dataclasses import replace

import pytest
import torch

from sgenas import trees
from sgenas.bilevel import SGD, SGE, BilevelProblem, FiniteDifference, FirstOrder, rounding
from sgenas.bilevel.problem import Loss
from sgenas.bilevel.rounding import Rounding
from sgenas.bilevel.toy import Quadratic
from sgenas.trees import Tree


def rounded(loss: Loss) -> Loss:
    """`loss` of weights and alphas in bfloat16; their gradients come back in bfloat16 too."""

    def short(tree: Tree) -> Tree:
        return trees.map_tree(lambda tensor: tensor.bfloat16().double(), tree)

    return lambda weights, alphas, batch: loss(short(weights), short(alphas), batch)


def measured(estimator: object, *, low: bool = True) -> Rounding:
    draw = torch.Generator().manual_seed(0)
    toy = Quadratic.random(draw)
    high = toy.problem(SGD(0.1))
    other = high
    if low:
        other = replace(high, inner_loss=rounded(high.inner_loss), outer_loss=rounded(high.outer_loss))
    batches = [torch.randn(7, generator=draw, dtype=torch.float64) for _ in range(2)]
    start = high.init(toy.weights)
    return rounding.measure(estimator, other, high, start, toy.alphas, batches[:1], batches[1], seed=3)  # type: ignore[arg-type]


def test_noise_is_that_of_rounding_divided_by_the_step() -> None:
    """The toy's steps are linear in the alphas, so mu changes nothing but what it divides the rounding by."""
    coarse, fine = (measured(SGE(8, smoothing)) for smoothing in (1e-1, 1e-3))
    assert coarse.length == pytest.approx(fine.length, rel=1e-6)
    assert 10 < fine.noise_floor / coarse.noise_floor < 1000
    assert coarse.share == coarse.noise_floor / coarse.length < 0.3
    assert fine.share > 1


def test_it_knows_no_noise_where_nothing_is_rounded() -> None:
    same = measured(SGE(8, 1e-3), low=False)
    assert same.noise_floor == same.share == 0
    assert same.length > 0.1
    assert measured(FirstOrder()).share == 0


def test_differences_in_the_weights_drown_too() -> None:
    assert measured(FiniteDifference(radius=1e-4)).share > measured(FiniteDifference(radius=1.0)).share


def test_noise_over_nothing_is_without_bounds() -> None:
    assert Rounding(0.0, 0.0).share == 0.0
    assert Rounding(1e-9, 0.0).share == float("inf")


def test_the_indirect_part_alone_is_compared() -> None:
    """An outer loss that is rounded in its direct derivative alone moves nothing."""
    draw = torch.Generator().manual_seed(0)
    toy = Quadratic.random(draw)
    high = toy.problem(SGD(0.1))

    def outer(weights: Tree, alphas: Tree, batch: torch.Tensor) -> torch.Tensor:
        extra = 0.1 * trees.flatten(alphas).sum()
        return high.outer_loss(weights, alphas, batch) + extra

    low = BilevelProblem(high.inner_loss, outer, high.inner_optimizer)
    batches = [torch.randn(7, generator=draw, dtype=torch.float64) for _ in range(2)]
    start = high.init(toy.weights)
    found = rounding.measure(SGE(4), low, high, start, toy.alphas, batches[:1], batches[1], seed=3)
    assert found.noise_floor < 1e-12
