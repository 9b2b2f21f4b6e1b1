"""Every way to compute SGE's projections against the definition."""

from typing import Any

import pytest
import torch

from sgenas import trees
from sgenas.bilevel import SGD, SGE, BilevelProblem, HypergradientResult
from sgenas.bilevel.sge import COMPUTATIONS
from sgenas.bilevel.toy import Quadratic, WeightDecay
from sgenas.errors import InvalidValueError

OPTIMIZERS = {
    "plain": SGD(0.2),
    "momentum": SGD(0.2, momentum=0.9, weight_decay=0.1),
    "clipped": SGD(0.2, momentum=0.9, weight_decay=0.1, grad_clip=0.5),
}
EXACT = ("streamed", "vectorised", "directional", "auto")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(computation: str, optimizer: SGD, steps: int, **settings: Any) -> HypergradientResult:
    toy = Quadratic.random(generator())
    problem = toy.problem(optimizer)
    warm, *batches, outer = torch.randn(steps + 2, 7, generator=generator(1), dtype=torch.float64)
    state = problem.run(problem.init(toy.weights), toy.alphas, [warm]).end
    sge = SGE(5, 0.1, computation=computation, **settings)
    return sge(problem, state, toy.alphas, batches, outer, generator=generator(2))


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("computation", EXACT)
def test_exact_ways_equal_the_definition(computation: str, optimizer: str, steps: int) -> None:
    definition = run("loop", OPTIMIZERS[optimizer], steps)
    if computation == "directional" and optimizer == "clipped":
        with pytest.raises(InvalidValueError, match="'directional' needs SGD.grad_clip None .* got 0.5"):
            run(computation, OPTIMIZERS[optimizer], steps)
        return
    result = run(computation, OPTIMIZERS[optimizer], steps)
    torch.testing.assert_close(
        result.diagnostics["projections"], definition.diagnostics["projections"], rtol=1e-10, atol=1e-10
    )
    for name, tensor in definition.grad.items():
        torch.testing.assert_close(result.grad[name], tensor, rtol=1e-10, atol=1e-10)
    for name, tensor in definition.state.weights.items():
        assert torch.equal(result.state.weights[name], tensor)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("computation", EXACT)
def test_exact_ways_equal_the_definition_where_alphas_act_nonlinearly(computation: str, steps: int) -> None:
    toy = WeightDecay.random(generator())
    problem = toy.problem(SGD(0.2, momentum=0.9))
    *batches, outer = torch.randn(steps + 1, 4, generator=generator(1), dtype=torch.float64)
    projections = [
        SGE(5, 0.5, computation=name)(
            problem, problem.init(toy.weights), toy.alphas, batches, outer, generator=generator(2)
        ).diagnostics["projections"]
        for name in ("loop", computation)
    ]
    torch.testing.assert_close(projections[1], projections[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
def test_chunks_change_nothing(chunk: int) -> None:
    whole, parts = (
        run("vectorised", OPTIMIZERS["momentum"], 2),
        run("vectorised", OPTIMIZERS["momentum"], 2, chunk=chunk),
    )
    torch.testing.assert_close(
        parts.diagnostics["projections"], whole.diagnostics["projections"], rtol=1e-12, atol=1e-12
    )


def test_difference_is_exact_for_a_quadratic_and_close_otherwise() -> None:
    definition = run("loop", OPTIMIZERS["plain"], 2).diagnostics["projections"]
    close = run("difference", OPTIMIZERS["plain"], 2).diagnostics["projections"]
    torch.testing.assert_close(close, definition, rtol=1e-6, atol=1e-6)

    weights = {"w": torch.randn(6, generator=generator(), dtype=torch.float64)}
    alphas = {"a": torch.randn(6, generator=generator(1), dtype=torch.float64)}
    problem = BilevelProblem(
        lambda w, a, batch: ((3 * w["w"]).sin() * a["a"].exp()).sum(),
        lambda w, a, batch: w["w"].square().sum(),
        SGD(0.1),
    )
    results = [
        SGE(3, 0.01, computation=name)(
            problem, problem.init(weights), alphas, [None], None, generator=generator()
        ).diagnostics["projections"]
        for name in ("loop", "difference")
    ]
    error = (results[1] - results[0]).abs().max()
    assert 0 < error < 1e-3 * results[0].abs().max()


# vmap calls a loss once for many passes, so calls do not count them
@pytest.mark.parametrize("computation", [name for name in COMPUTATIONS if name != "vectorised"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("fraction", [1.0, 0.25])
@pytest.mark.parametrize("smoothing", [0.01, "auto"])
def test_cost_is_what_was_really_run(
    computation: str, steps: int, fraction: float, smoothing: float | str, counter: Any
) -> None:
    def loss(w: Any, a: Any, batch: torch.Tensor) -> torch.Tensor:
        return (batch.mean() * w["w"] * a["a"].exp()).sin().sum()

    problem = counter.problem(BilevelProblem(loss, loss, SGD(0.1)), lambda batch: len(batch) / 8)
    weights = {"w": torch.randn(6, generator=generator(), dtype=torch.float64)}
    alphas = {"a": torch.randn(6, generator=generator(1), dtype=torch.float64)}
    batch = torch.randn(8, generator=generator(), dtype=torch.float64)
    for kind in ("gaussian", "antithetic"):
        counter.forward = counter.backward = 0
        sge = SGE(4, smoothing, computation, batch_fraction=fraction, directions=kind)
        result = sge(problem, problem.init(weights), alphas, [batch] * steps, batch, generator=generator())
        assert (result.cost.forward, result.cost.backward) == (counter.forward, counter.backward)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"computation": "magic"}, "SGE.computation must be one of auto, loop, .* got 'magic'"),
        ({"computation": "vectorised", "chunk": 0}, "SGE.chunk must be >= 1"),
        ({"chunk": 2, "computation": "loop"}, "only applies with computation 'auto' or 'vectorised', got 2"),
        ({"memory_limit": 0.0}, "SGE.memory_limit must be > 0 .* got 0.0"),
        (
            {"memory_limit": 1.0, "computation": "loop"},
            "only applies with computation 'auto' or 'vectorised'",
        ),
        ({"batch_fraction": 0.0}, r"SGE.batch_fraction must be in \(0, 1\], got 0.0"),
        ({"batch_fraction": 1.5}, r"SGE.batch_fraction must be in \(0, 1\], got 1.5"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        SGE(**settings)


def test_trees_work_under_vmap() -> None:
    a, b = ({"x": torch.randn(3, 2), "y": torch.randn(3)} for _ in range(2))
    for function in (
        trees.dot,
        trees.subtract,
        lambda a, b: trees.add(a, b, trees.norm(b)),
        lambda a, b: trees.scale(a, trees.norm(b)),
    ):
        many = torch.func.vmap(function)(a, b)
        one = function(*({name: tensor[1] for name, tensor in tree.items()} for tree in (a, b)))
        picked = many[1] if isinstance(many, torch.Tensor) else {name: t[1] for name, t in many.items()}
        torch.testing.assert_close(picked, one)
