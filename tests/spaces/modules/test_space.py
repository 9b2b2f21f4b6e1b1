"""A space from any module: equal to its definition, pure, with a plain module at the end."""

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgenas import tree
from sgenas.errors import InvalidValueError
from sgenas.spaces.discretization import TopEdges
from sgenas.spaces.modules import Choice, InputChoice, ModuleSpace, WidthChoice, calibrate_batch_norm
from sgenas.spaces.modules.choices import BaseChoice
from sgenas.spaces.relaxations import Dirichlet, EdgeNormalizedSoftmax, GumbelSoftmax, Relaxation, Sigmoid, Softmax
from sgenas.tree import TensorDict


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class Net(nn.Module):
    """Images (B, 2, 4, 4) to logits (B, 3): all kinds of choices, a nested one, a name used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.first = self.activation()
        self.width = WidthChoice([2, 4], name="width")
        inner = Choice({"one": nn.Conv2d(4, 4, 1), "three": nn.Conv2d(4, 4, 3, padding=1)}, name="kernel")
        block = nn.Sequential(inner, self.activation())
        self.block = Choice({"block": block, "skip": nn.Identity()}, name="depth")
        self.pick = InputChoice(["early", "late"], name="pick")
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def activation(self) -> nn.Module:
        return Choice({"silu": nn.SiLU(), "tanh": nn.Tanh()}, name="activation")

    def forward(self, images: Tensor) -> Tensor:
        early = self.width(self.first(self.norm(self.stem(images))))
        late = self.block(early)
        return self.head(self.dropout(self.pick([early, late]).mean(dim=(2, 3))))


def plain_output(w: TensorDict, m: TensorDict, images: Tensor) -> Tensor:
    """Net from the equations alone."""

    def activate(x: Tensor) -> Tensor:
        return m["activation"][0] * x * x.sigmoid() + m["activation"][1] * x.tanh()

    x = F.conv2d(images, w["stem.weight"], w["stem.bias"], padding=1)
    mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, correction=0)
    x = (x - mean) / (variance + 1e-5).sqrt()
    early = activate(x * w["norm.weight"].view(1, 4, 1, 1) + w["norm.bias"].view(1, 4, 1, 1))
    narrow = torch.tensor([1, 1, 0, 0], dtype=x.dtype)
    early = early * (m["width"][1] + m["width"][0] * narrow).view(1, 4, 1, 1)
    inside = "block.candidates.0.0.candidates."
    one = F.conv2d(early, w[inside + "0.weight"], w[inside + "0.bias"])
    three = F.conv2d(early, w[inside + "1.weight"], w[inside + "1.bias"], padding=1)
    block = activate(m["kernel"][0] * one + m["kernel"][1] * three)
    late = m["depth"][0] * block + m["depth"][1] * early
    features = (m["pick"][0] * early + m["pick"][1] * late).mean(dim=(2, 3))
    return features @ w["head.weight"].T + w["head.bias"]


@pytest.fixture
def model() -> Net:
    return Net().double()


def alphas_of(space: ModuleSpace, seed: int = 0) -> TensorDict:
    """Large enough to tell options apart."""
    return {name: draw(len(options), seed=seed + i) for i, (name, options) in enumerate(space.columns.items())}


@pytest.mark.parametrize("relaxation", [Softmax(), Sigmoid()])
def test_output_and_derivatives_equal_the_definition(model: Net, relaxation: Relaxation) -> None:
    space = ModuleSpace(model, relaxation=relaxation)
    assert list(space.columns) == list(space.shapes) == ["activation", "width", "depth", "kernel", "pick"]
    images, cotangent = draw(5, 2, 4, 4, seed=9), draw(5, 3, seed=8)

    def relaxed(alphas: TensorDict) -> TensorDict:
        soft = isinstance(relaxation, Softmax)
        return {n: a.exp() / a.exp().sum() if soft else 1 / (1 + (-a).exp()) for n, a in alphas.items()}

    found = []
    for output in (lambda w, a: space.bind(w, a)(images), lambda w, a: plain_output(w, relaxed(a), images)):
        w, a = tree.leaves(space.initial_weights()), tree.leaves(alphas_of(space))
        value = output(w, a)
        gradients = torch.autograd.grad((value * cotangent).sum(), [*w.values(), *a.values()])
        found.append([value, *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("relaxation", [Softmax(), GumbelSoftmax(hard=False), Dirichlet()])
def test_space_works_under_torch_func_transforms_and_with_noise(model: Net, relaxation: Relaxation) -> None:
    space = ModuleSpace(model).with_parts(relaxation=relaxation)
    weights, alphas, images = space.initial_weights(), alphas_of(space), draw(5, 2, 4, 4)
    tangents, noise = alphas_of(space, seed=20), space.draw_noise(alphas, generator())

    def value(alphas: TensorDict) -> Tensor:
        return space.bind(weights, alphas, noise)(images).square().sum()

    gradient = torch.func.grad(value)(alphas)
    _, derivative = torch.func.jvp(value, (alphas,), (tangents,))
    torch.testing.assert_close(derivative, tree.dot(gradient, tangents))
    stacked = torch.func.vmap(value)(tree.stack([alphas, tangents]))
    torch.testing.assert_close(stacked, torch.stack([value(alphas), value(tangents)]))
    assert space.bind_members(weights, alphas) is None


def test_a_pass_changes_nothing_and_draws_nothing(model: Net) -> None:
    space = ModuleSpace(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights, alphas = space.initial_weights(), alphas_of(space)
    kept = tree.clone(weights), tree.clone(alphas)
    state = torch.get_rng_state()
    assert torch.equal(*(space.bind(weights, alphas)(draw(5, 2, 4, 4)) for _ in range(2)))
    assert torch.equal(torch.get_rng_state(), state)
    for old, new in zip(kept, (weights, alphas), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    # weights are copies: a step in the search does not change the model
    weights["head.bias"].add_(1)
    assert torch.equal(model.head.bias, before["head.bias"])


@pytest.mark.parametrize("option", ["silu", "tanh"])
@pytest.mark.parametrize("kernel", ["one", "three"])
@pytest.mark.parametrize("depth", ["block", "skip"])
@pytest.mark.parametrize(("width", "pick"), [(2, "early"), (2, "late"), (4, "late")])
def test_derived_module_equals_the_supernet_with_one_hot_mixing_weights(
    model: Net, option: str, kernel: str, depth: str, width: int, pick: str
) -> None:
    space = ModuleSpace(model)
    choices = {"activation": option, "kernel": kernel, "depth": depth, "width": width, "pick": pick}
    assert space.architecture_from_dict(space.architecture_to_dict(choices)) == choices
    weights = tree.map(lambda tensor: tensor + 0.1 * draw(*tensor.shape, seed=5), space.initial_weights())
    plain = space.build(choices, weights)
    assert not any(isinstance(module, BaseChoice) for module in plain.modules())
    # in training mode for batch statistics, without dropout
    plain.train().dropout.eval()
    images = draw(5, 2, 4, 4)
    torch.testing.assert_close(plain(images), space.bind_mixing(weights, space.one_hot(choices))(images))
    assert ("block.0.weight" in plain.state_dict()) == (depth == "block")


def test_build_leaves_space_and_model_unchanged(model: Net) -> None:
    space = ModuleSpace(model)
    choices = space.derive(alphas_of(space))
    with torch.no_grad():
        for parameter in space.build(choices).parameters():
            parameter.zero_()
    second = space.build(choices)
    own = dict(model.named_parameters())
    for name, parameter in second.named_parameters():
        assert name not in own or torch.equal(parameter, own[name])
    assert second.training == model.training
    assert second.dropout.p == 0.5
    assert second.norm.track_running_stats
    assert sum(isinstance(module, BaseChoice) for module in model.modules()) == 6


def test_dropout_of_attention_is_off() -> None:
    """It is a number of its own, in addition to the Dropout modules."""
    activation = Choice({"gelu": nn.GELU(), "tanh": nn.Tanh()}, name="activation")
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, activation=activation, batch_first=True)  # type: ignore[arg-type]
    space = ModuleSpace(nn.Sequential(layer).double())
    weights, choices, x = space.initial_weights(), {"activation": "tanh"}, draw(3, 5, 4)
    found = space.bind_mixing(weights, space.one_hot(choices))(x)
    torch.testing.assert_close(found, space.build(choices, weights).eval()(x))


@pytest.mark.parametrize("relaxation", [Softmax(), Sigmoid()])
def test_initial_alphas_are_small_and_drawn_in_order(model: Net, relaxation: Relaxation) -> None:
    space, source = ModuleSpace(model, relaxation=relaxation), generator(4)
    for name, alphas in space.initial_alphas(generator(4)).items():
        assert torch.equal(alphas, (1e-3 * torch.randn(2, generator=source)).double())
        assert alphas.shape == space.shapes[name]


def test_derive_takes_the_largest_mixing_weight() -> None:
    space = ModuleSpace(nn.Sequential(nn.Linear(2, 4), WidthChoice([1, 2, 4], name="w", dim=-1)))
    assert space.derive({"w": torch.tensor([0.1, 0.3, 0.2])}) == {"w": 2}
    assert space.derive({"w": torch.zeros(3)}) == {"w": 1}
    # sigmoids that are equal in float32
    fair = space.with_parts(relaxation=Sigmoid())
    assert fair.derive({"w": torch.tensor([20.0, 21.0, 19.0])}) == {"w": 2}


def test_frozen_parameters_stay_and_shared_modules_stay_shared() -> None:
    shared = nn.Linear(3, 3)
    choice = Choice({"shared": shared, "skip": nn.Identity()}, name="c")
    twin = Choice({"shared": shared, "skip": nn.Identity()}, name="c")
    model = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), shared, choice, choice, twin)
    space = ModuleSpace(model)
    assert list(space.initial_weights()) == ["1.weight", "1.bias"]
    weights = {"1.weight": torch.ones(3, 3), "1.bias": torch.zeros(3)}
    plain = space.build({"c": "shared"}, weights)
    assert plain[1] is plain[2] is plain[3] is plain[4]
    x = torch.randn(2, 3, generator=generator())
    found = space.bind_mixing(weights, space.one_hot({"c": "shared"}))(x)
    torch.testing.assert_close(found, plain(x))
    assert torch.equal(plain[0].weight, model[0].weight)


def test_parameters_tied_between_modules_are_one_weight() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Choice({"a": nn.ReLU(), "b": nn.Tanh()}, name="c"), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    space = ModuleSpace(model.double())
    weights = tree.leaves({name: draw(*t.shape, seed=3) for name, t in space.initial_weights().items()})
    assert list(weights) == ["0.weight", "0.bias", "2.bias"]
    x = draw(4, 3)
    found = space.bind_mixing(weights, space.one_hot({"c": "a"}))(x)
    hidden = (x @ weights["0.weight"].T + weights["0.bias"]).relu()
    expected = hidden @ weights["0.weight"].T + weights["2.bias"]
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), list(weights.values())),
        torch.autograd.grad(expected.sum(), list(weights.values())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_choice_in_two_places_is_one_choice_and_its_buffer_stays() -> None:
    choice = Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, name="c")
    model = nn.Sequential(nn.Linear(3, 3), choice, nn.Linear(3, 3), choice).double()
    space, x = ModuleSpace(model), draw(4, 3)
    before = {name: tensor.clone() for name, tensor in space.buffers()}
    mixing = {"c": torch.tensor([0.2, 0.7], dtype=torch.float64)}

    def mixed(x: Tensor) -> Tensor:
        return 0.2 * x.relu() + 0.7 * x.tanh()

    found = space.bind_mixing(space.initial_weights(), mixing)(x)
    torch.testing.assert_close(found, mixed(model[2](mixed(model[0](x)))))
    assert all(torch.equal(tensor, before[name]) for name, tensor in space.buffers())


def test_choice_may_be_the_whole_model() -> None:
    model = Choice({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)}, name="c").double()
    space, x = ModuleSpace(model), draw(3, 2)
    mixing = {"c": torch.tensor([0.25, 0.5], dtype=torch.float64)}
    one, two = model.candidates
    found = space.bind_mixing(space.initial_weights(), mixing)(x)
    torch.testing.assert_close(found, 0.25 * one(x) + 0.5 * two(x))
    assert isinstance(space.build({"c": "two"}), nn.Linear)


def test_nested_in_place_modules_work_out_of_place_in_the_space_only() -> None:
    candidates: dict[str, nn.Module] = {"a": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2)), "b": nn.Identity()}
    model = nn.Sequential(nn.Linear(2, 2), Choice(candidates, name="c")).double()
    space = ModuleSpace(model)
    x = draw(3, 2)
    before = model[0](x)
    expected = 0.5 * model[1].candidates[0][1](before.relu()) + 0.5 * before
    alphas = {"c": torch.zeros(2, dtype=torch.float64)}
    torch.testing.assert_close(space.bind(space.initial_weights(), alphas)(x), expected)
    assert space.build({"c": "a"})[1][0].inplace


class DoubledInTraining(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (1 + self.training)


def test_model_in_evaluation_mode_is_searched_in_training_mode() -> None:
    model = nn.Sequential(DoubledInTraining(3, 3), Choice({"a": nn.ReLU(), "b": nn.SiLU()}, name="c"))
    images, alphas = torch.ones(2, 3), {"c": torch.tensor([1.0, 0.0])}
    spaces = ModuleSpace(model), ModuleSpace(copy.deepcopy(model).eval())
    weights = spaces[0].initial_weights()
    assert torch.equal(*(space.bind(weights, alphas)(images) for space in spaces))
    assert model.training


def test_model_with_choices_works_outside_a_space_and_can_be_copied(model: Net) -> None:
    images, space = draw(5, 2, 4, 4), ModuleSpace(model)
    equal = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in space.shapes.items()}
    model.dropout.eval()
    torch.testing.assert_close(model(images), space.bind(space.initial_weights(), equal)(images))
    torch.testing.assert_close(copy.deepcopy(model)(images), model(images))


def test_to_moves_buffers_and_frozen_parameters_of_a_copy() -> None:
    model = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), WidthChoice([2, 4], name="w", dim=-1), nn.Linear(4, 1))
    space = ModuleSpace(model)
    moved = space.to("meta")
    assert {tensor.device.type for _, tensor in moved.buffers()} == {"meta"}
    assert {tensor.device.type for _, tensor in space.buffers()} == {"cpu"}
    weights, alphas = moved.initial_weights(), moved.initial_alphas(generator())
    assert {tensor.device.type for tensor in (*weights.values(), *alphas.values())} == {"meta"}
    assert moved.bind(weights, alphas)(torch.empty(5, 3, device="meta")).shape == (5, 1)


def test_calibrated_statistics_are_the_means_over_all_batches() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.BatchNorm1d(3)).double().eval()
    batches = [1 + 2 * draw(8, 2, seed=seed) for seed in range(3)]
    model[1].running_mean.fill_(99)
    calibrate_batch_norm(model, lambda model: [model(batch) for batch in batches] and None)
    mean = torch.stack([model[0](batch).mean(0) for batch in batches]).mean(0)
    variance = torch.stack([model[0](batch).var(0) for batch in batches]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    # without dropout the second norm sees normalized values
    torch.testing.assert_close(model[3].running_mean, torch.zeros(3, dtype=torch.float64))
    assert model[1].momentum == 0.1
    assert not any(module.training for module in model.modules())


WITHOUT = """
import sys
sys.modules["sgenas"] = None  # any import of it fails
import torch
model, x, expected = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(model(x), expected)
assert all(type(module).__module__.startswith("torch.") for module in model.modules())
"""


def test_derived_module_works_without_sgenas(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        WidthChoice([2, 4], name="width"),
        Choice({"relu": nn.ReLU(), "silu": nn.SiLU()}, name="activation"),
    )
    x = torch.randn(2, 2, 5, 5, generator=generator())
    plain = ModuleSpace(model).build({"width": 2, "activation": "silu"})
    expected = plain(x).detach()
    assert not expected[:, 2:].any()
    torch.save((plain, x, expected), tmp_path / "plain.pt")
    subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path / "plain.pt")], check=True, timeout=250)
    exported = torch.export.export(plain.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), expected)


def two(first: dict[str, nn.Module], second: dict[str, nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), Choice(first, name="c"), Choice(second, name="c"))


RELU, SILU = {"a": nn.ReLU(), "b": nn.Identity()}, {"a": nn.SiLU(), "c": nn.Identity()}


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ModuleSpace(nn.Linear(2, 2)), "model must contain a Choice"),
        (lambda: ModuleSpace("net"), "model must be a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: ModuleSpace(two(RELU, SILU)), "choices named 'c' must have the same options"),
        (lambda: ModuleSpace(two(RELU, RELU)[1]), "requires a gradient"),
        (lambda: ModuleSpace(nn.Sequential(nn.LazyLinear(2), two(RELU, RELU))), "0.weight has no shape"),
        (lambda: ModuleSpace(two(RELU, RELU), relaxation=EdgeNormalizedSoftmax()), "relaxation"),
        (lambda: ModuleSpace(two(RELU, RELU)).with_parts(discretization=TopEdges()), "discretization"),
        (lambda: ModuleSpace(two(RELU, RELU)).build({}), "missing c"),
        (lambda: ModuleSpace(two(RELU, RELU)).build({"c": "a", "d": 1}), "unknown d"),
        (lambda: ModuleSpace(two(RELU, RELU)).build({"c": "a"}, channels=3), "sizes"),
        (lambda: ModuleSpace(two(RELU, RELU)).one_hot({"c": "z"}), "'c' must be one of a, b, got 'z'"),
        (lambda: ModuleSpace(two(RELU, RELU)).architecture_from_dict([]), "choices"),
        (lambda: ModuleSpace(two(RELU, RELU)).architecture_from_dict({"c": ["a"]}), "choice 'c'"),
    ],
)
def test_invalid_arguments_raise_one_line(make: Callable[[], object], word: str) -> None:
    with pytest.raises(InvalidValueError, match=word) as raised:
        make()
    assert "\n" not in str(raised.value)


class Ordered(nn.Module):
    """Runs its parts in the order of a list, a dict and a tuple of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.act = Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, name="act")
        self.steps = [self.first, self.act]
        self.more = {"act": (self.act,)}

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.more["act"][0](x)


def test_choice_that_a_plain_list_also_holds_is_replaced_there() -> None:
    model, x = Ordered().double(), draw(4, 2)
    found = ModuleSpace(model).build({"act": "tanh"})
    assert torch.equal(found(x), model.first(x).tanh().tanh())
    assert isinstance(model.steps[1], Choice), "the user's own model stays"
    assert not any(isinstance(part, Choice) for part in [*found.steps, found.more["act"][0]])


def test_measured_space_has_no_dropout() -> None:
    act = Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, name="act")
    space = ModuleSpace(nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), act), dropout=True).double().seeded(0)
    alphas, weights, x = alphas_of(space), space.initial_weights(), draw(4, 2)
    mixing = space.mixing(alphas)["act"]
    hidden = x @ weights["0.weight"].T + weights["0.bias"]
    expected = mixing[0] * hidden.relu() + mixing[1] * hidden.tanh()
    torch.testing.assert_close(space.without_dropout().bind(weights, alphas)(x), expected)
    assert not torch.allclose(space.bind(weights, alphas)(x), expected)
    plain = ModuleSpace(nn.Sequential(nn.Linear(2, 8), act))
    assert plain.without_dropout() is plain


class ComplexFirst(nn.Module):
    """A spectral layer before the others."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.bend = Choice({"tanh": nn.Tanh(), "none": nn.Identity()}, name="bend")

    def forward(self, x: Tensor) -> Tensor:
        return self.bend((x * self.spectrum).abs())


def test_alphas_are_real_beside_complex_weights() -> None:
    space = ModuleSpace(ComplexFirst())
    alphas = space.initial_alphas(torch.Generator().manual_seed(0))
    assert alphas["bend"].dtype == space.one_hot({"bend": "tanh"})["bend"].dtype == torch.float32
    x = torch.randn(3, 4)
    one = space.bind_mixing(space.initial_weights(), space.one_hot({"bend": "none"}))(x)
    torch.testing.assert_close(one, (x * space.initial_weights()["spectrum"]).abs())


def test_half_precision_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Choice({"tanh": nn.Tanh(), "none": nn.Identity()}, name="bend"))
    with pytest.raises(InvalidValueError, match="float32 or float64.*got torch.bfloat16"):
        ModuleSpace(model.bfloat16())


# -- what a derived module would do otherwise -----------------------------------------------------------------


class Holder:
    """An object of the user that is no module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module


@pytest.mark.parametrize("hold", [lambda choice: choice.forward, partial, lambda choice: Holder(choice)])
@pytest.mark.parametrize("option", ["tanh", "linear"])
def test_choices_held_out_of_sight_are_resolved_too(hold: Callable[[nn.Module], Any], option: str) -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.choice = Choice({"tanh": nn.Tanh(), "linear": nn.Linear(4, 4)}, name="c")
            self.held = hold(self.choice)

        def forward(self, x: Tensor) -> Tensor:
            called = self.held.module if isinstance(self.held, Holder) else self.held
            found: Tensor = called(x)
            return found

    space, x = ModuleSpace(Held()), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    weights = space.initial_weights()
    wanted = space.bind_mixing(weights, space.one_hot({"c": option}))(x)
    assert torch.equal(space.build({"c": option}, weights)(x), wanted)


def test_width_choices_follow_the_type_of_the_model() -> None:
    double = {"dtype": torch.float64}
    space = ModuleSpace(
        nn.Sequential(nn.Linear(4, 4, **double), WidthChoice([2, 4], name="w"), nn.Linear(4, 1, **double))
    )
    weights, x = space.initial_weights(), torch.randn(3, 4, **double)
    wanted = space.bind_mixing(weights, space.one_hot({"w": 2}))(x)
    torch.testing.assert_close(space.build({"w": 2}, weights)(x), wanted)


class Residual(Choice):
    """A choice that does more than to mix."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return args[0] + super().forward(*args, **kwargs)


def named(*names: str) -> nn.Module:
    return nn.Sequential(*(Choice({"tanh": nn.Tanh(), "linear": nn.Linear(4, 4)}, name=name) for name in names))


def hooked() -> nn.Module:
    model = named("c")
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (hooked, "'c' must have no forward hooks"),
        (lambda: Residual({"tanh": nn.Tanh(), "linear": nn.Linear(4, 4)}, name="c"), "its own forward and chosen"),
        *((lambda name=name: named(name), f"got {name!r}") for name in ("file", "allow_pickle", "epoch", "edges")),
        (lambda: named("a", "a_mixing"), "got 'a_mixing'"),
        (lambda: named("a_options", "a"), "got 'a_options'"),
    ],
)
def test_choices_that_cannot_be_derived_or_written_are_refused(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        ModuleSpace(make())
