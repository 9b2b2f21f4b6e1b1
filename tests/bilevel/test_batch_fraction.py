"""SGE with its perturbed steps on a part of the batch."""

import pytest
import torch

from sgenas import trees
from sgenas.bilevel import SGD, SGE, BilevelProblem, HypergradientResult
from sgenas.bilevel.directions import gaussian
from sgenas.bilevel.sge import COMPUTATIONS
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree


def loss(weights: Tree, alphas: Tree, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return ((x @ (weights["w"] * alphas["a"].exp())).tanh() - y).square().mean()


def estimate(fraction: float, computation: str = "loop", optimizer: SGD | None = None) -> HypergradientResult:
    draw = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(8, 4, generator=draw, dtype=torch.float64), torch.randn(8, generator=draw).double())
        for _ in range(3)
    ]
    weights = {"w": torch.randn(4, generator=draw, dtype=torch.float64)}
    alphas = {"a": torch.randn(4, generator=draw, dtype=torch.float64)}
    problem = BilevelProblem(loss, loss, optimizer or SGD(0.1, momentum=0.9))
    sge = SGE(4, 0.1, computation=computation, batch_fraction=fraction)
    return sge(
        problem,
        problem.init(weights),
        alphas,
        batches[:2],
        batches[2],
        generator=torch.Generator().manual_seed(1),
    )


def test_projections_are_those_of_the_part_with_the_whole_batch_outside() -> None:
    whole, part = estimate(1.0), estimate(0.3)  # 0.3 of 8 images: 3
    assert all(torch.equal(part.state.weights[n], whole.state.weights[n]) for n in whole.state.weights)
    assert all(torch.equal(part.direct[n], whole.direct[n]) for n in whole.direct)
    assert torch.equal(part.outer_loss, whole.outer_loss)
    assert len(part.inner_losses) == 2
    assert torch.equal(torch.stack(part.inner_losses), torch.stack(whole.inner_losses))

    # by hand: two trajectories on the first 3 of each batch, from the same start, against the whole one's v
    draw = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(8, 4, generator=draw, dtype=torch.float64), torch.randn(8, generator=draw).double())
        for _ in range(3)
    ]
    weights = {"w": torch.randn(4, generator=draw, dtype=torch.float64)}
    alphas = {"a": torch.randn(4, generator=draw, dtype=torch.float64)}
    problem = BilevelProblem(loss, loss, SGD(0.1, momentum=0.9))
    _, v, _ = problem.outer_gradients(whole.state.weights, alphas, batches[2])
    cut = [(x[:3], y[:3]) for x, y in batches[:2]]
    base = problem.run(problem.init(weights), alphas, cut).end.weights
    directions = gaussian(4, alphas, torch.Generator().manual_seed(1))
    for projection, u in zip(part.diagnostics["projections"], directions, strict=True):
        moved = problem.run(problem.init(weights), trees.add(alphas, u, 0.1), cut).end.weights
        by_hand = trees.dot(trees.subtract(moved, base), v) / 0.1
        torch.testing.assert_close(projection, by_hand, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(part.diagnostics["projections"], whole.diagnostics["projections"])


@pytest.mark.parametrize("computation", [name for name in COMPUTATIONS if name != "difference"])
def test_all_computations_agree(computation: str) -> None:
    ours, loop = estimate(0.5, computation), estimate(0.5)
    torch.testing.assert_close(
        ours.diagnostics["projections"], loop.diagnostics["projections"], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [(None, r"\[\]"), ((torch.zeros(4, 2), torch.zeros(3)), r"\[3, 4\]"), (torch.tensor(1.0), r"\[0\]")],
)
def test_batches_that_cannot_be_cut(batch: object, sizes: str) -> None:
    problem = BilevelProblem(lambda w, a, b: (w["w"] * a["a"]).sum(), lambda w, a, b: w["w"].sum(), SGD(0.1))
    tree = {"w": torch.ones(1)}
    with pytest.raises(InvalidValueError, match=f"SGE.batch_fraction needs batches .* got sizes {sizes}"):
        SGE(2, batch_fraction=0.5)(
            problem,
            problem.init(tree),
            {"a": torch.ones(1)},
            [batch],
            None,
            generator=torch.Generator().manual_seed(0),
        )
