"""A space from any module: equal to its definition, pure, right hypergradients, a plain module at the end."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sgenas
from sgenas import trees
from sgenas.bilevel import (
    SGD,
    SGE,
    BilevelProblem,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    Neumann,
    Unrolled,
)
from sgenas.errors import InvalidValueError
from sgenas.spaces import regularisers
from sgenas.spaces.choices import BaseChoice
from sgenas.trees import Tree


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class Net(nn.Module):
    """Images (B, 2, 4, 4) to logits (B, 3): all kinds of choices, one in another, a name used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.first = self.activation()
        self.width = sgenas.WidthChoice([2, 4], name="width")
        inner = sgenas.Choice(
            {"one": nn.Conv2d(4, 4, 1), "three": nn.Conv2d(4, 4, 3, padding=1)}, name="kernel"
        )
        self.block = sgenas.Choice(
            {"block": nn.Sequential(inner, self.activation()), "skip": nn.Identity()}, name="depth"
        )
        self.pick = sgenas.InputChoice(["early", "late"], name="pick")
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def activation(self) -> nn.Module:
        return sgenas.Choice({"silu": nn.SiLU(), "tanh": nn.Tanh()}, name="activation")

    def forward(self, images: Tensor) -> Tensor:
        early = self.width(self.first(self.norm(self.stem(images))))
        late = self.block(early)
        return self.head(self.dropout(self.pick([early, late]).mean(dim=(2, 3))))


def plain_output(weights: Tree, mixing: Tree, images: Tensor) -> Tensor:
    """Net from the equations alone."""
    w, m = weights, mixing

    def activate(x: Tensor) -> Tensor:
        return m["activation"][0] * x * x.sigmoid() + m["activation"][1] * x.tanh()

    x = F.conv2d(images, w["stem.weight"], w["stem.bias"], padding=1)
    mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, correction=0)
    x = (x - mean) / (variance + 1e-5).sqrt()
    early = activate(x * w["norm.weight"].view(1, 4, 1, 1) + w["norm.bias"].view(1, 4, 1, 1))
    widths = m["width"][1] * torch.ones(4, dtype=x.dtype) + m["width"][0] * torch.tensor(
        [1, 1, 0, 0], dtype=x.dtype
    )
    early = early * widths.view(1, 4, 1, 1)
    inside = "block.candidates.0.0.candidates."
    one = F.conv2d(early, w[inside + "0.weight"], w[inside + "0.bias"])
    three = F.conv2d(early, w[inside + "1.weight"], w[inside + "1.bias"], padding=1)
    block = activate(m["kernel"][0] * one + m["kernel"][1] * three)
    late = m["depth"][0] * block + m["depth"][1] * early
    features = (m["pick"][0] * early + m["pick"][1] * late).mean(dim=(2, 3))
    return features @ w["head.weight"].T + w["head.bias"]


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net().double()


def alphas_of(space: sgenas.ModuleSpace, seed: int = 0) -> Tree:
    """Large enough to tell options apart."""
    return {
        name: draw(len(options), seed=seed + i) for i, (name, options) in enumerate(space.options.items())
    }


NAMES = ["activation", "width", "depth", "kernel", "pick"]


@pytest.mark.parametrize("relaxation", ["softmax", "sigmoid"])
def test_output_and_derivatives_equal_the_definition(model: Net, relaxation: str) -> None:
    space = sgenas.ModuleSpace(model, relaxation=relaxation)
    assert list(space.options) == NAMES
    images, cotangent = draw(5, 2, 4, 4, seed=9), draw(5, 3, seed=8)

    def relaxed(alphas: Tree) -> Tree:
        return {
            n: a.exp() / a.exp().sum() if relaxation == "softmax" else 1 / (1 + (-a).exp())
            for n, a in alphas.items()
        }

    found = []
    for output in (
        lambda w, a: space.output(w, a, images),
        lambda w, a: plain_output(w, relaxed(a), images),
    ):
        w, a = trees.leaves(space.initial_weights()), trees.leaves(alphas_of(space))
        value = output(w, a)
        gradients = torch.autograd.grad((value * cotangent).sum(), [*w.values(), *a.values()])
        found.append([value, *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_it_works_under_the_transforms_of_torch_func(model: Net) -> None:
    space = sgenas.ModuleSpace(model)
    weights, alphas, images = space.initial_weights(), alphas_of(space), draw(5, 2, 4, 4)
    tangents = alphas_of(space, seed=20)

    def value(alphas: Tree) -> Tensor:
        return space.output(weights, alphas, images).square().sum()

    gradient = torch.func.grad(value)(alphas)
    _, slope = torch.func.jvp(value, (alphas,), (tangents,))
    torch.testing.assert_close(slope, trees.dot(gradient, tangents))
    stacked = torch.func.vmap(value)(trees.stack([alphas, tangents]))
    torch.testing.assert_close(stacked, torch.stack([value(alphas), value(tangents)]))


def test_a_pass_changes_nothing_and_draws_nothing(model: Net) -> None:
    space = sgenas.ModuleSpace(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights, alphas = space.initial_weights(), alphas_of(space)
    kept = trees.clone(weights), trees.clone(alphas)
    state = torch.get_rng_state()
    outputs = [space.output(weights, alphas, draw(5, 2, 4, 4)) for _ in range(2)]
    assert torch.equal(*outputs)
    assert torch.equal(torch.get_rng_state(), state)
    for old, new in zip(kept, (weights, alphas), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    # weights are copies: a step in the search is none in the model
    weights["head.bias"].add_(1)
    assert torch.equal(model.head.bias, before["head.bias"])


@pytest.mark.parametrize("option", ["silu", "tanh"])
@pytest.mark.parametrize("kernel", ["one", "three"])
@pytest.mark.parametrize("depth", ["block", "skip"])
@pytest.mark.parametrize(("width", "pick"), [(2, "early"), (2, "late"), (4, "late")])
def test_what_is_derived_equals_the_supernet_with_one_option_each(
    model: Net, option: str, kernel: str, depth: str, width: int, pick: str
) -> None:
    space = sgenas.ModuleSpace(model)
    choices = {"activation": option, "kernel": kernel, "depth": depth, "width": width, "pick": pick}
    weights = trees.map_tree(
        lambda tensor: tensor + 0.1 * draw(*tensor.shape, seed=5), space.initial_weights()
    )
    plain = space.derive(choices, weights)
    assert not any(isinstance(module, BaseChoice) for module in plain.modules())
    # training mode has the batch's statistics, dropout is no matter of choices
    plain.train().dropout.eval()
    images = draw(5, 2, 4, 4)
    torch.testing.assert_close(plain(images), space.mixed_output(weights, space.one_hot(choices), images))
    assert ("block.0.weight" in plain.state_dict()) == (depth == "block")


def test_deriving_leaves_space_and_model_alone(model: Net) -> None:
    space = sgenas.ModuleSpace(model)
    choices = space.strongest(alphas_of(space))
    first = space.derive(choices)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    second = space.derive(choices)
    for name, parameter in second.named_parameters():
        given = dict(model.named_parameters()).get(name)
        assert given is None or torch.equal(parameter, given), "the model's own weights"
    assert second.training == model.training
    assert second.dropout.p == 0.5
    assert second.norm.track_running_stats
    assert sum(isinstance(module, BaseChoice) for module in model.modules()) == 6


def test_attention_drops_nothing_out() -> None:
    """Its dropout is a number of its own, beside those of the modules Dropout."""
    torch.manual_seed(0)
    activation = sgenas.Choice({"gelu": nn.GELU(), "tanh": nn.Tanh()}, name="activation")
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, activation=activation, batch_first=True)  # type: ignore[arg-type]
    space = sgenas.ModuleSpace(nn.Sequential(layer).double())
    weights, choices, x = space.initial_weights(), {"activation": "tanh"}, draw(3, 5, 4)
    found = space.mixed_output(weights, space.one_hot(choices), x)
    torch.testing.assert_close(found, space.derive(choices, weights).eval()(x))


def test_initial_alphas_are_small_and_drawn_in_order(model: Net) -> None:
    space, source = sgenas.ModuleSpace(model), generator(4)
    for name, alphas in space.initial_alphas(generator(4)).items():
        torch.testing.assert_close(alphas, 1e-3 * torch.randn(2, generator=source).to(alphas))
        assert alphas.shape == (len(space.options[name]),)


def test_the_strongest_options() -> None:
    net = nn.Sequential(nn.Linear(2, 4), sgenas.WidthChoice([1, 2, 4], name="w", dim=-1))
    space = sgenas.ModuleSpace(net)
    assert space.strongest({"w": torch.tensor([0.1, 0.3, 0.2])}) == {"w": 2}
    assert space.strongest({"w": torch.zeros(3)}) == {"w": 1}
    found = space.weights_of_options({"w": torch.tensor([0.0, 1.0, 2.0]).log()})
    assert found["w"] == pytest.approx({1: 0, 2: 1 / 3, 4: 2 / 3})


def unrolled(
    problem: BilevelProblem, weights: Tree, alphas: Tree, batches: list[Tensor], outer: Tensor
) -> Tree:
    """The hypergradient by automatic differentiation through plain steps."""
    alphas, lr = trees.leaves(alphas), problem.inner_optimizer.lr
    weights = trees.leaves(weights)
    for batch in batches:
        loss = problem.inner_loss(weights, alphas, batch)
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: w - lr * g for (name, w), g in zip(weights.items(), grads, strict=True)}
    loss = problem.outer_loss(weights, alphas, outer)
    return dict(zip(alphas, torch.autograd.grad(loss, list(alphas.values())), strict=True))


ESTIMATORS: list[Estimator] = [
    FirstOrder(),
    FiniteDifference(),
    SGE(num_directions=3),
    SGE(num_directions=3, computation="vectorised"),
    SGE(num_directions=3, computation="directional"),
    SGE(num_directions=5, blocks="table"),
    Unrolled(),
    Neumann(products=2),
    ConjugateGradient(products=2, damping=5.0),
    EvolutionStrategies(num_directions=3),
]


class Case:
    """The network on little data, after two steps of N."""

    def __init__(self, model: nn.Module) -> None:
        self.space = sgenas.ModuleSpace(model)

        def loss(weights: Tree, alphas: Tree, images: Tensor) -> Tensor:
            return (self.space.output(weights, alphas, images) - images.mean()).square().mean()

        self.problem = BilevelProblem(loss, loss, SGD(0.2))
        self.weights, self.alphas = self.space.initial_weights(), alphas_of(self.space)
        self.inner, self.outer = [draw(5, 2, 4, 4, seed=s) for s in (1, 2)], draw(5, 2, 4, 4, seed=3)

    def estimate(self, estimator: Estimator) -> Any:
        state = self.problem.init(self.weights)
        return estimator(self.problem, state, self.alphas, self.inner, self.outer, generator=generator())


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_every_estimator_gives_a_finite_hypergradient(model: Net, estimator: Estimator) -> None:
    result = Case(model).estimate(estimator)
    assert list(result.grad) == NAMES
    for gradient in result.grad.values():
        assert gradient.isfinite().all()
        assert gradient.any()


def test_first_order_and_unrolled_are_right(model: Net) -> None:
    case = Case(model)
    whole = unrolled(case.problem, case.weights, case.alphas, case.inner, case.outer)
    end = case.problem.run(case.problem.init(case.weights), case.alphas, case.inner).end.weights
    leaves = trees.leaves(case.alphas)
    loss = case.problem.outer_loss(end, leaves, case.outer)
    direct = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    for estimator, expected in ((FirstOrder(), direct), (Unrolled(), whole)):
        found = case.estimate(estimator).grad
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12)


def test_a_transformer_bears_second_derivatives() -> None:
    torch.manual_seed(0)
    activation = sgenas.Choice({"gelu": nn.GELU(), "tanh": nn.Tanh()}, name="activation")
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, activation=activation, batch_first=True)  # type: ignore[arg-type]
    space = sgenas.ModuleSpace(nn.Sequential(layer, nn.Linear(4, 1)).double())

    def loss(weights: Tree, alphas: Tree, x: Tensor) -> Tensor:
        return space.output(weights, alphas, x).square().mean()

    problem, weights = BilevelProblem(loss, loss, SGD(0.1)), space.initial_weights()
    alphas, batch, outer = alphas_of(space), draw(3, 5, 4), draw(3, 5, 4, seed=1)
    found = Unrolled()(problem, problem.init(weights), alphas, [batch], outer).grad

    # central differences: attention's fused kernel has no second derivative to compare with
    def objective(alpha: Tensor) -> Tensor:
        at = {"activation": alpha}
        end = problem.run(problem.init(weights), at, [batch]).end.weights
        return problem.outer_value(end, at, outer)

    for index in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[index] = 1e-5
        slope = (objective(alphas["activation"] + step) - objective(alphas["activation"] - step)) / 2e-5
        torch.testing.assert_close(found["activation"][index], slope, rtol=1e-5, atol=1e-10)


def test_regularisers_take_its_alphas() -> None:
    alphas = {"a": torch.tensor([0.0, 1.0]).double(), "b": torch.tensor([2.0, 0.0, -1.0]).double()}
    a, b = (
        (1 + torch.tensor(1.0).double().exp()).log(),
        torch.tensor([2.0, 0.0, -1.0]).double().exp().sum().log(),
    )
    torch.testing.assert_close(regularisers.beta_decay(alphas), (a + b) / 2)
    half = torch.tensor([0.0, 1.0, 2.0, 0.0, -1.0]).double().sigmoid() - 0.5
    torch.testing.assert_close(regularisers.zero_one_squared(alphas), -half.square().mean())


def test_frozen_parameters_stay_and_shared_modules_stay_shared() -> None:
    shared = nn.Linear(3, 3)
    choice = sgenas.Choice({"shared": shared, "skip": nn.Identity()}, name="c")
    model = nn.Sequential(
        nn.Linear(3, 3).requires_grad_(False),
        shared,
        choice,
        choice,
        sgenas.Choice({"shared": shared, "skip": nn.Identity()}, name="c"),
    )
    space = sgenas.ModuleSpace(model)
    assert list(space.initial_weights()) == ["1.weight", "1.bias"]
    plain = space.derive({"c": "shared"}, {"1.weight": torch.ones(3, 3), "1.bias": torch.zeros(3)})
    assert plain[1] is plain[2] is plain[3] is plain[4]
    x = torch.randn(2, 3, generator=generator())
    weights = {"1.weight": torch.ones(3, 3), "1.bias": torch.zeros(3)}
    torch.testing.assert_close(space.mixed_output(weights, space.one_hot({"c": "shared"}), x), plain(x))
    assert torch.equal(plain[0].weight, model[0].weight)


def test_a_choice_may_be_the_whole_model() -> None:
    model = sgenas.Choice({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)}, name="c").double()
    space, x = sgenas.ModuleSpace(model), draw(3, 2)
    mixing = {"c": torch.tensor([0.25, 0.5], dtype=torch.float64)}
    one, two = model.candidates
    found = space.mixed_output(space.initial_weights(), mixing, x)
    torch.testing.assert_close(found, 0.25 * one(x) + 0.5 * two(x))
    assert isinstance(space.derive({"c": "two"}), nn.Linear)


def test_what_works_in_place_is_made_not_to() -> None:
    def candidates() -> dict[str, nn.Module]:
        return {"a": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2)), "b": nn.Identity()}

    model = nn.Sequential(nn.Linear(2, 2), sgenas.Choice(candidates(), name="c")).double()
    space = sgenas.ModuleSpace(model)
    x = draw(3, 2)
    before = model[0](x)
    expected = 0.5 * model[1].candidates[0][1](before.relu()) + 0.5 * before
    alphas = {"c": torch.zeros(2, dtype=torch.float64)}
    torch.testing.assert_close(space.output(space.initial_weights(), alphas, x), expected)
    assert space.derive({"c": "a"})[1][0].inplace


# -- outside sgenas --------------------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["sgenas"] = None  # any import of it fails
import torch
model, x, expected = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(model(x), expected)
assert all(type(module).__module__.startswith("torch.") for module in model.modules())
"""


def test_what_is_derived_needs_no_sgenas(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        sgenas.WidthChoice([2, 4], name="width"),
        sgenas.Choice({"relu": nn.ReLU(), "silu": nn.SiLU()}, name="activation"),
    )
    x = torch.randn(2, 2, 5, 5, generator=generator())
    plain = sgenas.ModuleSpace(model).derive({"width": 2, "activation": "silu"})
    expected = plain(x).detach()
    assert not expected[:, 2:].any()
    torch.save((plain, x, expected), tmp_path / "plain.pt")
    subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path / "plain.pt")], check=True, timeout=250)
    exported = torch.export.export(plain.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), expected)


# -- errors ----------------------------------------------------------------------------------------------


def two(first: dict[str, nn.Module], second: dict[str, nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), sgenas.Choice(first, name="c"), sgenas.Choice(second, name="c"))


RELU, SILU = {"a": nn.ReLU(), "b": nn.Identity()}, {"a": nn.SiLU(), "c": nn.Identity()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sgenas.ModuleSpace(nn.Linear(2, 2)), "model must hold a Choice, InputChoice or WidthChoice"),
        (lambda: sgenas.ModuleSpace("net"), "model must be a torch.nn.Module, got str"),  # type: ignore[arg-type]
        (
            lambda: sgenas.ModuleSpace(two(RELU, SILU)),
            "choices named 'c' must offer the same options \\('a', 'b'\\), got \\('a', 'c'\\)",
        ),
        (
            lambda: sgenas.ModuleSpace(two(RELU, RELU)[1]),
            "must have a parameter that needs a gradient, got none",
        ),
        (
            lambda: sgenas.ModuleSpace(nn.Sequential(nn.LazyLinear(2), two(RELU, RELU))),
            "0.weight of the model must",
        ),
        (
            lambda: sgenas.ModuleSpace(two(RELU, RELU), relaxation="hard"),
            "relaxation must be one of softmax, sigmoid",
        ),
        (
            lambda: sgenas.ModuleSpace(two(RELU, RELU), relaxation="softmax").relaxed("sigmoid"),
            "relaxation must be sigmoid with this method, got softmax",
        ),
        (lambda: sgenas.ModuleSpace(two(RELU, RELU)).derive({}), "choices must be of c, got missing c"),
        (lambda: sgenas.ModuleSpace(two(RELU, RELU)).derive({"c": "a", "d": 1}), "got unknown d"),
        (
            lambda: sgenas.ModuleSpace(two(RELU, RELU)).derive({"c": "z"}),
            "choice 'c' must be one of a, b, got 'z'",
        ),
    ],
)
def test_what_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_a_model_with_choices_works_outside_a_space_and_can_be_copied(model: Net) -> None:
    images, space = draw(5, 2, 4, 4), sgenas.ModuleSpace(model)
    equal = {name: torch.zeros(len(options), dtype=torch.float64) for name, options in space.options.items()}
    model.dropout.eval()
    torch.testing.assert_close(model(images), space.output(space.initial_weights(), equal, images))
    torch.testing.assert_close(copy.deepcopy(model)(images), model(images))


class DoubledInTraining(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (1 + self.training)


def test_a_model_is_searched_as_it_is_trained() -> None:
    """Also one that comes from a test."""
    model = nn.Sequential(DoubledInTraining(3, 3), sgenas.Choice({"a": nn.ReLU(), "b": nn.SiLU()}, name="c"))
    images = torch.ones(2, 3)
    alphas = {"c": torch.tensor([1.0, 0.0])}
    trained = sgenas.ModuleSpace(model)
    tested = sgenas.ModuleSpace(copy.deepcopy(model).eval())
    weights = trained.initial_weights()
    assert torch.equal(tested.output(weights, alphas, images), trained.output(weights, alphas, images))
    assert model.training


def test_a_bound_module_takes_its_own_arguments_alone(model: Net) -> None:
    space = sgenas.ModuleSpace(model)
    weights, alphas, images = space.initial_weights(), alphas_of(space), draw(5, 2, 4, 4, seed=9)
    assert torch.equal(space.bind(weights, alphas)(images), space.output(weights, alphas, images))


def test_a_relaxation_is_taken_by_a_copy(model: Net) -> None:
    space = sgenas.ModuleSpace(model)
    sigmoids = space.relaxed("sigmoid")
    assert (sigmoids.relaxation, space.relaxation) == ("sigmoid", None)
    assert {type(module) for module in space.modules()} >= {sgenas.Choice, sgenas.WidthChoice}
