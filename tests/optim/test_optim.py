"""Inner optimizers against torch.optim, and their shortcuts against the general way."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from bilevel_cases import OnlySome, OverriddenNesterov, TwoSlots, draw, equal

from sgenas import tree
from sgenas.errors import InvalidValueError
from sgenas.optim import (
    INNER_OPTIMIZERS,
    SGD,
    Adam,
    AdamW,
    InnerOptimizer,
    InnerState,
    is_elementwise,
    l2_coefficient,
    offers,
    projection,
)
from sgenas.tree import TensorDict


def draws(seed: int, count: int) -> list[TensorDict]:
    return [{"a": draw(3, 2, seed=seed + i), "b": draw(4, seed=seed + 100 + i)} for i in range(count)]


CLIPS = (None, 0.5, 1e6)
PAIRS: list[tuple[InnerOptimizer, Any]] = [
    *(
        (
            SGD(0.1, momentum, nesterov, decay, clip),
            lambda p, m=momentum, n=nesterov, d=decay: torch.optim.SGD(p, 0.1, m, weight_decay=d, nesterov=n),
        )
        for (momentum, nesterov), decay, clip in itertools.product(
            [(0.0, False), (0.9, False), (0.9, True)], [0.0, 0.03], CLIPS
        )
    ),
    *(
        (
            ours(0.1, (0.8, 0.95), 1e-6, decay, clip),
            lambda p, t=theirs, d=decay: t(p, 0.1, (0.8, 0.95), 1e-6, d),
        )
        for (ours, theirs), decay, clip in itertools.product(
            [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)], [0.0, 0.03], CLIPS
        )
    ),
]


@pytest.mark.parametrize(("ours", "make"), PAIRS, ids=lambda each: str(each) if hasattr(each, "lr") else "")
def test_step_is_that_of_torch(ours: InnerOptimizer, make: Any) -> None:
    start, *gradients = draws(0, 6)
    state = ours.init(start)
    theirs = [torch.nn.Parameter(tensor.clone()) for tensor in start.values()]
    optimizer = make(theirs)
    for gradient in gradients:
        state = ours.step(state, gradient)
        for parameter, grad in zip(theirs, gradient.values(), strict=True):
            parameter.grad = grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs, ours.grad_clip or float("inf"))  # type: ignore[attr-defined]
        optimizer.step()
        torch.testing.assert_close(state.grad_norm, norm)
    assert state.step == 5
    for weight, parameter in zip(state.weights.values(), theirs, strict=True):
        torch.testing.assert_close(weight, parameter.data, rtol=1e-13, atol=1e-13)


ALL = [
    SGD(0.1),
    SGD(0.1, 0.9, True, 0.1, 0.1),
    Adam(0.1, weight_decay=0.1, grad_clip=0.1),
    AdamW(0.1),
    OverriddenNesterov(0.1, 0.9),
    TwoSlots(0.1),
    OnlySome(0.1, 0.9),
]
every = pytest.mark.parametrize("optimizer", ALL, ids=str)


@every
def test_init_copies_and_step_changes_nothing(optimizer: InnerOptimizer) -> None:
    start, gradient = draws(1, 2)
    before = tree.clone(start)
    state = optimizer.init(start)
    slots = tree.clone(state.slots)
    optimizer.step(state, gradient)
    assert equal(start, before)
    assert equal(state.weights, before)
    assert equal(state.slots, slots)
    assert state.weights["a"].data_ptr() != start["a"].data_ptr()


@every
def test_projections_are_those_of_the_steps(optimizer: InnerOptimizer) -> None:
    start, first, second, third, v = draws(2, 5)
    origin = optimizer.step(optimizer.init(start), first)
    end = optimizer.step(origin, second)
    compare = projection(optimizer, origin, second, end, v)
    other = optimizer.step(optimizer.init(start), third)
    for state, grad in ((origin, third), (other, first), (origin, second)):
        moved = tree.subtract(optimizer.step(state, grad).weights, end.weights)
        torch.testing.assert_close(compare(state, grad), tree.dot(moved, v), rtol=1e-10, atol=1e-12)


def test_a_projection_in_float32_is_not_lost_in_the_rounding_of_the_weights() -> None:
    """Weights of size 1000 round to 6e-5; the difference of two steps is a hundredth of that."""
    for optimizer in (SGD(0.1, 0.9), Adam(0.1)):
        start, first, second, v = (tree.map(torch.Tensor.float, each) for each in draws(3, 4))
        origin = optimizer.step(optimizer.init(tree.map(lambda w: 1000 + w, start)), first)
        other = tree.add(second, v, 1e-4)
        found = projection(optimizer, origin, second, optimizer.step(origin, second), v)(origin, other)
        exact = [tree.map(torch.Tensor.double, each) for each in (origin.weights, second, other, v)]
        state = InnerState(exact[0], tree.map(torch.Tensor.double, origin.slots), origin.step)
        ends = [optimizer.step(state, grad).weights for grad in exact[1:3]]
        wanted = tree.dot(tree.subtract(ends[1], ends[0]), exact[3])
        assert abs(found - wanted) < 0.02 * abs(wanted)


def test_a_subclass_that_overrides_step_loses_the_shortcuts() -> None:
    class Renamed(SGD):
        pass

    for name in ("projection", "elementwise", "l2_coefficient"):
        assert offers(SGD(0.1), name)
        assert offers(Renamed(0.1), name)
        assert offers(AdamW(0.1), name)
        assert not offers(OverriddenNesterov(0.1, 0.9), name)
        assert not offers(TwoSlots(0.1), name)
    assert is_elementwise(SGD(0.1))
    assert not is_elementwise(OnlySome(0.1))


class Measured(SGD):
    def step(self, state: InnerState, grad: TensorDict) -> InnerState:
        return super().step(state, grad)


class MeasuredAdam(Adam):
    def step(self, state: InnerState, grad: TensorDict) -> InnerState:
        return super().step(state, grad)


class MeasuredAdamW(AdamW):
    def step(self, state: InnerState, grad: TensorDict) -> InnerState:
        return super().step(state, grad)


def test_l2_coefficient_is_measured_without_a_shortcut() -> None:
    weights = draws(4, 1)[0]
    for decay in (0.0, 3e-4, 0.1):
        for optimizer in (
            Measured(0.02, 0.9, True, decay, 0.5),
            Measured(0.02, weight_decay=decay),
            MeasuredAdam(1e-3, weight_decay=decay),
        ):
            assert not offers(optimizer, "l2_coefficient")
            assert l2_coefficient(optimizer, weights) == pytest.approx(decay, rel=1e-6, abs=1e-9)
    with pytest.raises(InvalidValueError) as caught:
        l2_coefficient(MeasuredAdamW(0.1, weight_decay=0.1), weights)
    assert caught.value.field == "MeasuredAdamW"
    assert l2_coefficient(AdamW(0.1, weight_decay=0.0), weights) == 0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: SGD(0.0), "SGD.lr"),
        (lambda: SGD(float("nan")), "SGD.lr"),
        (lambda: SGD(float("inf")), "SGD.lr"),
        (lambda: SGD(0.1, momentum=1.0), "SGD.momentum"),
        (lambda: SGD(0.1, nesterov=True), "SGD.momentum"),
        (lambda: SGD(0.1, weight_decay=-1.0), "SGD.weight_decay"),
        (lambda: SGD(0.1, grad_clip=0.0), "SGD.grad_clip"),
        (lambda: Adam(-1.0), "Adam.lr"),
        (lambda: Adam(0.1, betas=(0.9, 1.0)), "Adam.betas"),
        (lambda: Adam(0.1, eps=0.0), "Adam.eps"),
        (lambda: AdamW(0.1, weight_decay=float("nan")), "AdamW.weight_decay"),
        (lambda: replace(Adam(0.1), grad_clip=-1.0), "Adam.grad_clip"),
    ],
)
def test_bad_settings_name_the_field(make: Any, field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        make()
    assert caught.value.field == field
    assert field in str(caught.value)


@pytest.mark.parametrize("make", [Adam, AdamW])
def test_weights_step_as_they_would_without_those_of_other_types(make: Any) -> None:
    weights = {kind: torch.zeros(2, dtype=kind) for kind in (torch.float16, torch.float32, torch.float64)}
    optimizer = make(0.1)

    def stepped(some: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
        # squares of these gradients are below the smallest normal float16
        gradient = {kind: torch.full_like(weight, 1e-3) for kind, weight in some.items()}
        return optimizer.step(optimizer.init(some), gradient).weights

    together = stepped(weights)
    for kind, weight in weights.items():
        assert torch.equal(together[kind], stepped({kind: weight})[kind])
    for kind in (torch.float32, torch.float64):
        torch.testing.assert_close(together[kind], torch.full_like(weights[kind], -0.1), rtol=1e-4, atol=0)
    # with s' = 2^-24 for a root that float16 rounds to 0: 0.1 (1e-3 / (2^-12 / sqrt(0.001)))
    expected = -0.1 * 1e-3 / (2**-12 / 0.001**0.5)
    assert together[torch.float16].tolist() == pytest.approx([expected] * 2, rel=1e-2)


@pytest.mark.parametrize("optimizer", [SGD(0.1, 0.9), Adam(0.1)], ids=str)
def test_a_state_without_fitting_slots_is_refused(optimizer: Any) -> None:
    weights = draws(5, 1)[0]
    slots = optimizer.init(weights).slots
    for bad in ({}, {name: {"a": slot["a"]} for name, slot in slots.items()}):
        with pytest.raises(InvalidValueError) as caught:
            optimizer.check(InnerState(weights, bad))
        assert caught.value.field == "state.slots"
    one_short = {name: tree.map(lambda t: t[:1], slot) for name, slot in slots.items()}
    with pytest.raises(InvalidValueError):
        optimizer.check(InnerState(weights, one_short))
    optimizer.check(InnerState(weights, slots))


def test_the_registry_has_all() -> None:
    assert INNER_OPTIMIZERS.names()[:3] == ("sgd", "adam", "adamw")
    assert INNER_OPTIMIZERS.get("adamw") is AdamW
