"""Every route of Hessian-vector products: values, fallbacks where PyTorch has no rule, refusals."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bilevel_cases import by_autograd, close, draw, nonlinear, optimizers
from torch import Tensor, nn

from sgenas import tree
from sgenas.bilevel import (
    SGE,
    BilevelProblem,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    Neumann,
    Shards,
    Unrolled,
    hvp,
)
from sgenas.bilevel.estimators.sge import batched
from sgenas.bilevel.hvp import HVP, ROUTES, hessian_operator
from sgenas.bilevel.solvers import SOBA
from sgenas.errors import InvalidValueError
from sgenas.optim import SGD, Adam
from sgenas.spaces import nasbench201
from sgenas.tree import Tree

OPTIMIZERS = optimizers()


class Exp(torch.autograd.Function):
    """Saves its input: its backward pass has the right derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x / 2).exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * (ctx.saved_tensors[0] / 2).exp() / 2


class Wrong(torch.autograd.Function):
    """Saves an intermediate result, a constant for double backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = (2 * x).exp() / 2
        return ctx.slope / 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * ctx.slope


class WithJvp(Wrong):
    """The same with a rule for forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * ctx.saved_tensors[0]


class Call(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.function = nn.ModuleList(parts), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def checkpointed(x: Tensor, part: nn.Module) -> Tensor:
    found: Tensor = torch.utils.checkpoint.checkpoint(lambda y: part(y).tanh(), x, use_reentrant=False)
    return found


def attention(x: Tensor, part: nn.Module) -> Tensor:
    query, key, value = part(x).reshape(2, 1, 2, 12).split(4, -1)
    return F.scaled_dot_product_attention(query, key, value).reshape(4, 4)


def module_problem(
    model: nn.Module, optimizer: Any = None, x: Tensor | None = None
) -> tuple[BilevelProblem, Tree, Any, Any]:
    """(problem, alphas, inner batch, outer batch) of a float64 module; the alpha scales its output."""
    model = model.double()

    def loss(model: Callable[..., Any], alphas: Tree, batch: Tensor) -> Tensor:
        output = model(batch)
        output = output[0] if isinstance(output, tuple) else output
        return (output * alphas.exp().sum()).sin().square().mean()

    problem = BilevelProblem.from_modules(model, loss, loss, optimizer or SGD(0.3))
    inner, outer = (draw(4, 4, seed=1), draw(4, 4, seed=2)) if x is None else (x, x.flip(0))
    return problem, draw(2, seed=3) / 4, inner, outer


def assert_differences(problem: BilevelProblem, weights: Tree, alphas: Tree, batch: Any, route: str) -> None:
    """(H v, M v) is the central difference of the gradients."""
    v, h = tree.unflatten(draw(tree.size(weights), seed=5), weights), 1e-5
    plus, minus = (problem.inner_gradients(tree.add(weights, v, sign * h), alphas, batch)[1:] for sign in (1, -1))
    for found, p, m in zip(HVP(problem, weights, alphas, batch, route).both(v), plus, minus, strict=True):
        truth = tree.scale(tree.subtract(p, m), 1 / (2 * h))
        assert tree.norm(truth) > 1e-6, "else it shows nothing"
        assert tree.norm(tree.subtract(found, truth)) < 1e-6 * tree.norm(truth)


@pytest.mark.parametrize("route", ROUTES)
def test_routes_agree_with_each_other_and_with_differences(route: str) -> None:
    case = nonlinear(SGD(0.1), 1)
    weights, batch = case.state.weights, case.inner[0]
    tolerance = 1e-7 if route == "finite-difference" else 1e-12
    v = tree.unflatten(draw(tree.size(weights), seed=5), weights)
    wanted = HVP(case.problem, weights, case.alphas, batch, "forward").both(v)
    product = HVP(case.problem, weights, case.alphas, batch, route)
    for _ in range(2):
        close(product.both(v), wanted, tolerance)
    close(HVP(case.problem, weights, case.alphas, batch, route).weights(v), wanted[0], tolerance)
    close(HVP(case.problem, weights, case.alphas, batch, route).alphas(v), wanted[1], tolerance)
    assert_differences(case.problem, weights, {**case.alphas}, batch, route)
    zero = tree.zeros_like(weights)
    assert all(not part.any() for part in tree.tensors(product.both(zero)))


@pytest.mark.parametrize("route", ["reverse", "forward", "finite-difference"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unrolled_by_every_route_is_autograd_through_the_steps(name: str, route: str) -> None:
    optimizer, written, _ = OPTIMIZERS[name]
    case = nonlinear(optimizer, 3)
    for last in (None, 2):
        whole, direct = by_autograd(case, written, last)
        found = tree.flatten(case.estimate(Unrolled(last, hvp=route)).indirect)
        assert (found - (whole - direct)).norm() < 1e-6 * (whole - direct).norm()


@pytest.mark.parametrize("limit", ["SMALL_GRAPH", "KEPT_GRAPHS"])
def test_large_passes_keep_no_graphs(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sgenas.bilevel.estimators import unrolled

    case, kept = nonlinear(SGD(0.1), 3), nonlinear(SGD(0.1), 3)
    wanted = kept.estimate(Unrolled())
    monkeypatch.setattr(hvp if limit == "SMALL_GRAPH" else unrolled, limit, 1)
    trajectory = Unrolled().run(case.problem, case.state, case.alphas, case.inner)
    assert all(step.graph is None for step in trajectory.steps)
    found = case.estimate(Unrolled())
    close(found.grad, wanted.grad, 1e-12)
    # a graph per step that is not kept, or two passes by forward mode
    assert found.cost.forward - wanted.cost.forward == (0 if limit == "SMALL_GRAPH" else 3)


def test_linear_losses_have_no_curvature_by_any_route() -> None:
    problem = BilevelProblem(lambda w, a, b: (w * b).sum(), lambda w, a, b: w.sum(), SGD(0.1))
    for route in ROUTES:
        curved, mixed = HVP(problem, draw(3), draw(2), draw(3, seed=1), route).both(draw(3, seed=2))
        assert torch.allclose(curved, torch.zeros_like(curved), atol=1e-9)
        assert mixed.tolist() == [0, 0]


PARTS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh()),
    "weight norm of all": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4), dim=None), nn.Tanh()
    ),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)).eval(),
    "custom function": lambda: nn.Sequential(nn.Linear(4, 4), Call(Exp.apply)),
    "custom function with jvp": lambda: nn.Sequential(nn.Linear(4, 4), Call(WithJvp.apply)),
    "checkpoint": lambda: Call(checkpointed, nn.Linear(4, 4)),
    "lstm": lambda: nn.LSTM(4, 3),
    "gru": lambda: nn.GRU(4, 3),
    "attention": lambda: Call(attention, nn.Linear(4, 12)),
}


@pytest.mark.parametrize("route", ["auto", "auto, large"])
@pytest.mark.parametrize("name", PARTS)
def test_what_one_route_lacks_another_one_has(name: str, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if route == "auto, large":
        monkeypatch.setattr(hvp, "SMALL_GRAPH", -1)
    torch.manual_seed(0)
    problem, alphas, inner, _ = module_problem(PARTS[name]())
    assert_differences(problem, problem.init().weights, alphas, inner, "auto")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("optimizer", [SGD(0.3, 0.9, grad_clip=0.05), Adam(0.05)], ids=lambda each: type(each).__name__)
def test_estimators_work_on_what_a_route_lacks(name: str, optimizer: Any) -> None:
    """Unrolled against central differences of the outer objective; the others give numbers."""
    torch.manual_seed(0)
    problem, alphas, inner, outer = module_problem(PARTS[name](), optimizer)
    state, batches, h = problem.init(), [inner, inner + 0.1], 1e-5

    def objective(moved: Tensor) -> Tensor:
        return problem.outer_value(problem.run(state, moved, batches).end.weights, moved, outer)

    units = torch.eye(2, dtype=torch.float64)
    truth = torch.stack([(objective(alphas + h * u) - objective(alphas - h * u)) / (2 * h) for u in units])
    result = Unrolled()(problem, state, alphas, batches, outer)
    assert (result.grad - truth).norm() < 1e-5 * truth.norm()
    others: list[Estimator] = [FirstOrder(), FiniteDifference(), SGE(2), EvolutionStrategies(2)]
    for estimator in (*others, Neumann(2, 0.1), ConjugateGradient(2, damping=1.0)):
        assert torch.isfinite(estimator(problem, state, alphas, batches, outer, seed=0).grad).all()


def test_a_fallback_is_remembered() -> None:
    problem, alphas, inner, _ = module_problem(PARTS["checkpoint"]())
    weights, v = problem.init().weights, problem.init().weights
    with pytest.raises(InvalidValueError):
        HVP(problem, weights, alphas, inner, "forward").both(v)
    attended, alphas, inner, _ = module_problem(PARTS["attention"]())
    weights = attended.init().weights
    HVP(attended, weights, alphas, inner).both(weights)
    assert attended.findings.routes == {"auto": ["reverse", True]}
    assert replace(attended).counted().findings.routes == {"auto": ["reverse", True]}
    assert torch.backends.mkldnn.enabled


class Normed(nn.Module):
    """PyTorch's fused weight norm has a wrong second derivative, without an error."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 8))
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh().mean(1))


def normed() -> tuple[BilevelProblem, Tensor]:
    torch.manual_seed(0)
    model, x, y = Normed().double(), draw(6, 5, 4, seed=1), draw(6, 2, seed=2)
    problem = BilevelProblem.from_modules(
        model,
        lambda model, a, batch: (a.exp() * (model(x) - y).square()).mean(),
        lambda model, a, batch: (model(x[:3]) - 1).square().mean(),
        SGD(0.3),
    )
    return problem, torch.zeros(2, dtype=torch.float64)


def test_a_graph_that_was_made_before_is_not_taken_for_one_with_plain_kernels() -> None:
    """In every call: what an earlier one found out about the loss must not lead around the check."""
    problem, alphas = normed()
    state = problem.init()
    wanted = Unrolled(hvp="forward")(normed()[0], state, alphas, [0, 0, 0], 0).indirect
    for _ in range(3):
        close(Unrolled()(problem, state, alphas, [0, 0, 0], 0).indirect, wanted, 1e-12)
    problem, solver = normed()[0], SOBA()
    start = replace(solver.init(problem, None, alphas), v=state.weights)
    curved = replace(solver, hvp="forward").products(normed()[0], start, 0)[1]
    for _ in range(3):
        close(solver.products(problem, start, 0)[1], curved, 1e-12)


def test_attention_has_second_derivatives_by_reverse_in_every_call() -> None:
    problem, alphas, inner, outer = module_problem(PARTS["attention"]())
    arguments = (problem, problem.init(), alphas, [inner, inner], outer)
    wanted = Unrolled(hvp="finite-difference")(*arguments).indirect
    for _ in range(2):
        close(Unrolled(hvp="reverse")(*arguments).indirect, wanted, 1e-6)


def test_passes_of_routes_that_failed_are_not_counted() -> None:
    problem, alphas = normed()
    first, second = (Neumann(2, 0.1)(problem, problem.init(), alphas, [0], 0).cost for _ in range(2))
    assert first == second


def test_eigenvalues_know_what_second_derivatives_are_wrong() -> None:
    start = draw(3)
    good = hessian_operator(lambda w: Exp.apply(w).sum(), start)
    torch.testing.assert_close(good(torch.ones(3).double()), (start / 2).exp() / 4)
    with pytest.raises(InvalidValueError, match="Wrong"):
        hessian_operator(lambda w: Wrong.apply(w).sum(), start)(torch.ones(3).double())


def test_wrong_second_derivatives_of_a_custom_function_are_refused() -> None:
    problem, alphas, inner, outer = module_problem(nn.Sequential(nn.Linear(4, 4), Call(Wrong.apply)))
    for estimator in (Unrolled(), Unrolled(hvp="reverse"), Neumann(2), ConjugateGradient(2)):
        with pytest.raises(InvalidValueError, match=r"Wrong.*first-order") as caught:
            estimator(problem, problem.init(), alphas, [inner], outer)
        assert caught.value.field == "inner_loss"
        assert "\n" not in str(caught.value)
    by_difference = Unrolled(hvp="finite-difference")(problem, problem.init(), alphas, [inner], outer)
    right = module_problem(nn.Sequential(nn.Linear(4, 4), Call(lambda x: (2 * x).exp() / 4)))[0]
    wanted = Unrolled()(right, problem.init(), alphas, [inner], outer)
    torch.testing.assert_close(by_difference.grad, wanted.grad, rtol=1e-6, atol=1e-9)


def test_a_loss_without_a_second_derivative_is_refused_and_differences_work() -> None:
    """CTC's backward pass has no derivative."""
    targets, lengths = torch.tensor([[1, 2], [2, 1]]), torch.tensor([2, 2])

    def loss(w: Tree, a: Tree, batch: Tensor) -> Tensor:
        scores = (batch @ w * a.exp()).log_softmax(-1)
        return F.ctc_loss(scores, targets, torch.tensor([5, 5]), lengths)

    problem = BilevelProblem(loss, loss, SGD(0.1))
    arguments = (problem, problem.init(draw(4, 3)), draw(3, seed=1), [draw(5, 2, 4, seed=2)], draw(5, 2, 4, seed=3))
    for estimator in (Unrolled(), Neumann(2), ConjugateGradient(2)):
        with pytest.raises(InvalidValueError, match="ctc_loss") as caught:
            estimator(*arguments)
        assert caught.value.field == "inner_loss"
    for other in (FirstOrder(), FiniteDifference(), SGE(2), EvolutionStrategies(2)):
        assert torch.isfinite(other(*arguments, seed=0).grad).all()
    assert torch.isfinite(Unrolled(hvp="finite-difference")(*arguments).grad).all()


def test_shards_fall_back_too() -> None:
    plain, alphas, inner, outer = module_problem(PARTS["weight norm"]())
    halves = [inner[:2], inner[2:]]

    def by_hand(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        return (plain.inner_loss(weights, alphas, halves[0]) + plain.inner_loss(weights, alphas, halves[1])) / 2

    state = plain.init()
    wanted = Unrolled()(replace(plain, inner_loss=by_hand), state, alphas, [inner], outer)
    for estimator in (Unrolled(), Unrolled(hvp="reverse")):
        found = estimator(replace(plain, shards=Shards(2)), state, alphas, [inner], outer)
        close(found.indirect, wanted.indirect, 1e-9)


@pytest.mark.parametrize(
    "make", [lambda: Unrolled(hvp="backward"), lambda: Neumann(hvp="x"), lambda: ConjugateGradient(hvp="")]
)
def test_unknown_routes_are_refused(make: Callable[[], Estimator]) -> None:
    with pytest.raises(InvalidValueError) as caught:
        make()
    assert caught.value.field is not None
    assert caught.value.field.endswith(".hvp")


# -- batched SGE ---------------------------------------------------------------------------------------------------


def branching(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
    value = (weights * alphas.exp() * batch).sum()
    return value.square() if value.item() > -1e9 else value


def test_batching_falls_back_where_vmap_cannot_run_the_loss() -> None:
    problem = BilevelProblem(branching, branching, SGD(0.01))
    arguments = (problem, problem.init(draw(3)), draw(3, seed=1), [draw(3, seed=2)] * 2, draw(3, seed=3))
    found = SGE(3)(*arguments, seed=0)
    assert not problem.findings.batches
    wanted = SGE(3, computation="sequential")(*arguments, seed=0)
    assert torch.equal(found.grad, wanted.grad)
    assert found.cost == wanted.cost
    with pytest.raises(InvalidValueError, match=r"item\(\)") as caught:
        SGE(3, computation="batched")(*arguments, seed=0)
    assert caught.value.field == "SGE.computation"
    assert "\n" not in str(caught.value)


def test_auto_batches_tiny_passes_of_any_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    case, sizes, real = nonlinear(SGD(0.1), 2), list[int](), batched._together

    def together(task: Any, members: Any) -> Tensor:
        sizes.append(len(members))
        return real(task, members)

    monkeypatch.setattr(batched, "_together", together)
    case.estimate(SGE(5))
    assert sizes == [5]
    monkeypatch.setattr(batched, "TINY_PASS", 1)
    case.estimate(SGE(5))
    assert sizes == [5]


@pytest.mark.filterwarnings("ignore:Initializing zero")
@pytest.mark.parametrize("computation", ["auto", "batched", "sequential"])
def test_weights_without_entries_change_nothing(computation: str) -> None:
    model = nn.Sequential(nn.Linear(4, 0), nn.Tanh(), nn.Linear(0, 3), nn.Linear(3, 2))
    problem, alphas, inner, outer = module_problem(model, Adam(0.05))
    whole = Unrolled()(problem, problem.init(), alphas, [inner] * 2, outer)
    sge = SGE(2, 1e-5, "antithetic", computation=computation)
    found = sge(problem, problem.init(), alphas, [inner] * 2, outer, seed=0)
    pair = found.diagnostics["projections"]
    u = found.indirect / ((pair[0] - pair[1]) / 2)
    torch.testing.assert_close((pair[0] - pair[1]) / 2, u @ whole.indirect, rtol=1e-4, atol=1e-12)


def test_reverse_works_in_supernets_with_kinks() -> None:
    """Their custom functions are sgenas' own, and a finite difference across a kink is no judge of them."""
    space, numbers = nasbench201(channels=4, layers=1), torch.Generator().manual_seed(0)
    weights, alphas = space.initial_weights(numbers), space.initial_alphas(numbers)
    batch = torch.randn(8, 3, 8, 8, generator=numbers), torch.arange(8)

    def loss(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        return F.cross_entropy(space.bind(weights, alphas)(batch[0]), batch[1])

    problem = BilevelProblem(loss, loss, SGD(0.1))
    v = tree.map(lambda w: torch.randn(w.shape, generator=numbers), weights)
    found = [HVP(problem, weights, alphas, batch, route).both(v) for route in ("reverse", "forward")]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
