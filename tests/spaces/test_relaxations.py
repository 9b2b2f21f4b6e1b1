"""Relaxations against slow definitions from the equations of their sources."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Beta
from torch.distributions import Dirichlet as TorchDirichlet

from sgenas import tree
from sgenas.errors import InvalidValueError
from sgenas.spaces import (
    Dirichlet,
    EdgeNormalizedSoftmax,
    GumbelSoftmax,
    Relaxation,
    Sigmoid,
    Softmax,
    darts,
    nasbench201,
)
from sgenas.tree import TensorDict

STOCHASTIC: list[Relaxation] = [GumbelSoftmax(), GumbelSoftmax(hard=False), Dirichlet()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tables(seed: int = 0, scale: float = 1.0) -> TensorDict:
    draw = generator(seed)
    shapes = {"normal": (14, 7), "reduce": (14, 7)}
    return {n: scale * torch.randn(shape, generator=draw, dtype=torch.float64) for n, shape in shapes.items()}


def test_softmax_and_sigmoid() -> None:
    alphas = tables()
    table = alphas["normal"]
    torch.testing.assert_close(Softmax()(alphas)["normal"], table.exp() / table.exp().sum(1, keepdim=True))
    torch.testing.assert_close(Sigmoid()(alphas)["reduce"], 1 / (1 + (-alphas["reduce"]).exp()))
    assert Softmax().draw_noise(alphas, generator()) is None
    assert all((t == 0).all() for t in Sigmoid().initial_alphas({"a": (3, 2)}, generator()).values())


@pytest.mark.parametrize("relaxation", [Softmax(), EdgeNormalizedSoftmax(), GumbelSoftmax(), Dirichlet()])
def test_alphas_start_at_a_thousandth_of_normal_numbers_drawn_table_by_table(relaxation: Relaxation) -> None:
    stream = generator(5)
    alphas = darts(channels=4, layers=3, relaxation=relaxation).initial_alphas(generator(5))
    assert list(alphas)[:2] == ["normal", "reduce"]
    for name, table in alphas.items():
        assert torch.equal(table, 1e-3 * torch.randn(table.shape, generator=stream)), name


def test_edge_normalized_softmax() -> None:
    space = darts(channels=8, layers=3, relaxation=EdgeNormalizedSoftmax())
    alphas = space.initial_alphas(generator())
    shapes = {name: tuple(table.shape) for name, table in alphas.items()}
    assert shapes == {"normal": (14, 8), "reduce": (14, 8), "normal_edges": (14,), "reduce_edges": (14,)}
    assert {name: len(labels) for name, labels in space.columns.items()} == {n: s[-1] for n, s in shapes.items()}
    assert space.columns["normal_edges"][13] == "4->5"
    draw = generator(1)
    alphas = tree.map(lambda t: torch.randn(t.shape, generator=draw, dtype=torch.float64), alphas)
    mixing = space.mixing(alphas)
    assert set(mixing) == {"normal", "reduce"}
    for node in range(2, 6):
        rows = [row for row, (_, target) in enumerate(space.edges) if target == node]
        edges = alphas["normal_edges"][rows].exp()
        expected = (edges / edges.sum()).unsqueeze(1) * alphas["normal"][rows].softmax(1)
        torch.testing.assert_close(mixing["normal"][rows], expected)
    stacked = space.mixing(tree.stack([alphas, alphas]))
    torch.testing.assert_close(stacked["reduce"][1], mixing["reduce"])


@pytest.mark.parametrize("relaxation", STOCHASTIC)
def test_noise_makes_the_sample_reproducible_and_shared(relaxation: Relaxation) -> None:
    space = darts(channels=4, layers=3, operations="paper", relaxation=relaxation)
    alphas = tables()
    noise = space.draw_noise(alphas, generator(3))
    again = space.draw_noise(alphas, generator(3))
    assert noise is not None
    assert again is not None
    first, second, other = (
        space.mixing(alphas, drawn)["normal"] for drawn in (noise, again, space.draw_noise(alphas, generator(4)))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    # members share the noise, and each gets what it gets alone
    moved = tree.map(lambda t: t + 0.01, alphas)
    together = space.mixing(tree.stack([alphas, moved]), noise)["normal"]
    torch.testing.assert_close(together[0], first, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together[1], space.mixing(moved, noise)["normal"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first.sum(1), torch.ones(14, dtype=torch.float64))


@pytest.mark.parametrize("relaxation", STOCHASTIC)
def test_evaluation_and_derivation_use_no_noise(relaxation: Relaxation) -> None:
    space = nasbench201(channels=2, layers=1, relaxation=relaxation)
    alphas = {"cell": torch.randn(6, 5, generator=generator(), dtype=torch.float64)}
    chosen = [space.operations[column] for column in alphas["cell"].argmax(1).tolist()]
    kept = {(edge.source, edge.target): edge.operation for edge in space.derive(alphas)["cell"].edges}
    assert [kept.get(ends, "none") for ends in space.edges] == chosen
    torch.testing.assert_close(space.mixing(alphas)["cell"].sum(1), torch.ones(6, dtype=torch.float64))


def test_gumbel_softmax_is_that_of_the_source() -> None:
    """Equations of AutoDL-Projects: logits = (log softmax(alpha) + g) / tau, hard in value, soft in gradient."""
    relaxation = GumbelSoftmax(tau_max=4.0, tau_min=0.5).at_epoch(3, 8)
    assert relaxation.tau == 4.0 - (4.0 - 0.5) * 3 / 7
    alphas = tree.leaves(tables())
    noise = relaxation.draw_noise(alphas, generator(1))
    drawn = torch.empty(14, 7, dtype=torch.float64).exponential_(generator=generator(1))
    torch.testing.assert_close(noise["normal"], -drawn.log())
    logits = (alphas["normal"].log_softmax(1) + noise["normal"]) / relaxation.tau
    soft = logits.exp() / logits.exp().sum(1, keepdim=True)
    hard = F.one_hot(soft.argmax(1), 7).double()
    found = relaxation(alphas, noise)["normal"]
    assert torch.equal(found, hard)
    cotangent = torch.randn(14, 7, generator=generator(2), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(x, alphas["normal"], cotangent, retain_graph=True)[0] for x in (found, soft))
    torch.testing.assert_close(ours, theirs)


def test_gumbel_samples_have_the_probabilities_of_the_softmax() -> None:
    draws = 4000
    alphas = {"a": torch.randn(5, generator=generator(), dtype=torch.float64).expand(draws, 5)}
    relaxation = GumbelSoftmax()
    sampled = relaxation(alphas, relaxation.draw_noise(alphas, generator(1)))["a"]
    expected = relaxation(alphas)["a"][0]
    error = (expected * (1 - expected) / draws).sqrt()
    assert (error < 0.2 * expected).all()
    assert ((sampled.mean(0) - expected).abs() < 4 * error).all()


def test_temperature_falls_linearly_over_the_epochs() -> None:
    relaxation = GumbelSoftmax()
    taus = [relaxation.at_epoch(epoch, 10).tau for epoch in range(10)]
    assert taus[0] == 10.0
    assert math.isclose(taus[9], 0.1)
    steps = [b - a for a, b in pairwise(taus)]
    assert all(math.isclose(step, -1.1) for step in steps)
    assert relaxation.at_epoch(3, 10).at_epoch(3, 10).tau == taus[3]
    assert relaxation.at_epoch(0, 1).tau == 10.0
    assert relaxation.at_epoch(3, 10) == relaxation


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperatures_raise(value: float) -> None:
    for field in ("tau_max", "tau_min"):
        with pytest.raises(InvalidValueError) as error:
            GumbelSoftmax(**{field: value})
        assert error.value.field == f"GumbelSoftmax.{field}"


def test_dirichlet_has_the_pathwise_gradient_of_torch_distributions() -> None:
    alphas = tree.leaves(tables())
    relaxation = Dirichlet()
    noise = relaxation.draw_noise(alphas, generator(1))
    concentration = F.elu(alphas["normal"]) + 1
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator(1).get_state())
        sample = TorchDirichlet(concentration).rsample()
    found = relaxation(alphas, noise)["normal"]
    torch.testing.assert_close(found, sample, rtol=1e-12, atol=1e-14)
    for cotangent in (torch.randn(14, 7, generator=generator(seed), dtype=torch.float64) for seed in range(3)):
        ours, theirs = (
            torch.autograd.grad(x, alphas["normal"], cotangent, retain_graph=True)[0] for x in (found, sample)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_dirichlet_slope_is_that_of_the_beta_distribution() -> None:
    """D_j of the docstring, with the distribution function of x_j by numerical integration of its density."""
    concentration = torch.tensor([1.3, 0.8, 2.1], dtype=torch.float64)
    x = torch.tensor([0.2, 0.35, 0.45], dtype=torch.float64)
    total = concentration.sum()
    ours = torch._dirichlet_grad(x, concentration, total.expand(3))

    def distribution_function(value: float, a: float, b: float) -> float:
        # substitution t = value s^3, which removes the singularity at 0 for a < 1
        s = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        density = Beta(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
        return (density.log_prob(value * s**3).exp() * 3 * value * s**2).mean().item()

    for j in range(3):
        a, b, step = concentration[j].item(), (total - concentration[j]).item(), 1e-4
        raised, lowered = (distribution_function(x[j].item(), a + sign * step, b) for sign in (1, -1))
        density = Beta(concentration[j], total - concentration[j]).log_prob(x[j]).exp().item()
        expected = -(raised - lowered) / (2 * step) / (density * (1 - x[j].item()))
        assert ours[j].item() == pytest.approx(expected, rel=1e-4)


def test_dirichlet_samples_have_its_mean_and_variance() -> None:
    draws = 4000
    alphas = {"a": torch.tensor([0.7, -0.6, 0.1, -2.0], dtype=torch.float64).expand(draws, 4)}
    relaxation = Dirichlet()
    sampled = relaxation(alphas, relaxation.draw_noise(alphas, generator(1)))["a"]
    concentration = (F.elu(alphas["a"]) + 1)[0]
    mean = concentration / concentration.sum()
    torch.testing.assert_close(relaxation(alphas)["a"][0], mean)
    variance = mean * (1 - mean) / (concentration.sum() + 1)
    error = (variance / draws).sqrt()
    assert (error < 0.2 * mean).all()
    assert ((sampled.mean(0) - mean).abs() < 4 * error).all()
    assert ((sampled.var(0) / variance - 1).abs() < 0.2).all()


def test_dirichlet_gradient_of_the_mean_is_right_in_the_mean() -> None:
    """d E[x_0] / d alpha from samples against the derivative of c_0 / C, within four standard errors."""
    draws = 4000
    table = torch.tensor([0.7, -0.6, 0.1], dtype=torch.float64)
    alphas = {"a": table.expand(draws, 3).clone().requires_grad_()}
    relaxation = Dirichlet()
    sampled = relaxation(alphas, relaxation.draw_noise(alphas, generator(1)))["a"]
    (found,) = torch.autograd.grad(sampled[:, 0].sum(), alphas["a"])
    leaf = table.clone().requires_grad_()
    (expected,) = torch.autograd.grad(relaxation({"a": leaf})["a"][0], leaf)
    error = found.std(0) / draws**0.5
    assert (error < 0.2 * expected.abs()).all()
    assert ((found.mean(0) - expected).abs() < 4 * error).all()


def test_perturbed_dirichlet_samples_move_along_the_gradient() -> None:
    """The noise is shared: (x(alpha + h u) - x(alpha - h u)) / 2h is the derivative, to second order in h."""
    alphas, direction = tables(), tables(1)
    relaxation = Dirichlet()
    noise = relaxation.draw_noise(alphas, generator(1))
    _, exact = torch.func.jvp(lambda a: relaxation(a, noise)["normal"], (alphas,), (direction,))
    errors = []
    for step in (1e-2, 1e-3):
        ahead, behind = (relaxation(tree.add(alphas, direction, s), noise)["normal"] for s in (step, -step))
        errors.append(((ahead - behind) / (2 * step) - exact).norm() / exact.norm())
    assert errors[1] < 1e-3
    assert errors[1] < 0.05 * errors[0]


@pytest.mark.parametrize("relaxation", STOCHASTIC)
def test_extreme_alphas_give_finite_samples_and_gradients_in_their_dtype(relaxation: Relaxation) -> None:
    alphas = tree.leaves({"a": torch.tensor([[-5.0, 0.0, 30.0], [-4.0, -4.0, -4.0]])})
    noise = relaxation.draw_noise(alphas, generator())
    assert noise is not None
    assert noise["a"].dtype == torch.float32
    assert not noise["a"].requires_grad
    mixing = relaxation(alphas, noise)["a"]
    assert torch.isfinite(mixing).all()
    assert torch.isfinite(torch.autograd.grad(mixing[:, 0].sum(), alphas["a"])[0]).all()


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"operations": "darts"}, "operations"), ({"operations": "paper", "partial_channels": 2}, "partial_channels")],
)
def test_sigmoid_refuses_none_and_partial_channels(settings: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidValueError) as error:
        darts(channels=4, layers=3, relaxation=Sigmoid(), **settings)
    assert error.value.field == field
    with pytest.raises(InvalidValueError):
        darts(channels=4, layers=3, **settings).with_parts(relaxation=Sigmoid())
