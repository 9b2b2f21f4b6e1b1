"""Choices outside a space: the mixture from its definition, the module of one option, and errors."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sgenas.errors import InvalidValueError
from sgenas.spaces.modules.choices import BaseChoice, Choice, InputChoice, WidthChoice


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_weights(choice: BaseChoice, weights: Tensor) -> Callable[..., Tensor]:
    return lambda *args: torch.func.functional_call(choice, {"mixing": weights}, args)


WEIGHTS = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


def test_choice_is_the_weighted_sum_of_its_candidates() -> None:
    first, second = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    choice = Choice({"half": first, "a.b": second, "both": nn.Sequential(second, nn.Tanh())}, name="c").double()
    x = draw(5, 4)
    a, b = x @ first.weight.T + first.bias, x @ second.weight.T + second.bias
    torch.testing.assert_close(with_weights(choice, WEIGHTS)(x), 0.2 * a + 0.5 * b + 0.9 * b.tanh())
    torch.testing.assert_close(choice(x), (a + b + b.tanh()) / 3)


def test_arguments_are_passed_to_the_candidates() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, y: Tensor, *, factor: float) -> Tensor:
            return x + factor * y

    choice = Choice({"scaled": Scaled(), "again": Scaled()}, name="c").double()
    torch.testing.assert_close(choice(draw(3), draw(3, seed=1), factor=2.0), draw(3) + 2 * draw(3, seed=1))


@pytest.mark.parametrize("inputs", [3, ["near", "far", "none"]])
def test_input_choice_is_the_weighted_sum_of_its_inputs(inputs: int | list[str]) -> None:
    choice = InputChoice(inputs, name="in").double()
    terms = [draw(2, 3, seed=seed) for seed in range(3)]
    expected = 0.2 * terms[0] + 0.5 * terms[1] + 0.9 * terms[2]
    torch.testing.assert_close(with_weights(choice, WEIGHTS)(terms), expected)
    for index, term in enumerate(terms):
        assert torch.equal(choice.chosen(index)(terms), term)


@pytest.mark.parametrize(("shape", "dim"), [((2, 6, 3, 3), 1), ((4, 6), -1), ((6, 2), 0)])
def test_width_choice_masks_channels(shape: tuple[int, ...], dim: int) -> None:
    choice = WidthChoice([1, 4, 6], name="w", dim=dim).double()
    x = draw(*shape)
    # channel 0 is in all three widths, 1 to 3 in the two larger ones, 4 and 5 in the largest
    factors = torch.tensor([1.6, 1.4, 1.4, 1.4, 0.9, 0.9], dtype=torch.float64)
    along = [1] * x.ndim
    along[dim] = 6
    torch.testing.assert_close(with_weights(choice, WEIGHTS)(x), x * factors.view(along))
    for index, width in enumerate([1, 4, 6]):
        kept = (torch.arange(6) < width).view(along)
        assert torch.equal(choice.chosen(index)(x), x * kept)
    assert isinstance(choice.chosen(2), nn.Identity)


@pytest.mark.parametrize(
    ("choice", "x"), [(InputChoice(2, name="i"), [draw(2, 3)] * 2), (WidthChoice([2, 3], name="w"), draw(2, 3))]
)
def test_chosen_modules_are_of_torch_and_can_be_saved(choice: BaseChoice, x: Tensor) -> None:
    plain = choice.chosen(0)
    assert all(type(module).__module__.startswith("torch.") for module in plain.modules())
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(plain)):
        assert torch.equal(other(x), plain(x))
    assert plain.state_dict() == {}


def test_mixing_weights_are_neither_parameters_nor_saved() -> None:
    choice = Choice({"a": nn.Linear(2, 2), "b": nn.Identity()}, name="c")
    names = ["candidates.0.weight", "candidates.0.bias"]
    assert [name for name, _ in choice.named_parameters()] == list(choice.state_dict()) == names
    assert list(WidthChoice([1, 2], name="w").state_dict()) == []


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Choice({"a": nn.ReLU()}, name="c"), "at least 2 options, got 1"),
        (lambda: Choice({"a": nn.ReLU(), "b": nn.ReLU()}, name=""), "name of Choice"),
        (lambda: Choice({"a": nn.ReLU(), "b": 3}, name="c"), "'b' must be a torch.nn.Module"),  # type: ignore[dict-item]
        (lambda: Choice({"a": nn.SiLU(), "b": nn.ReLU(True)}, name="c"), "'b' must be inplace=False"),
        (lambda: InputChoice(1, name="i"), "at least 2 options, got 1"),
        (lambda: InputChoice(["a", "a"], name="i"), "different options"),
        (lambda: InputChoice(2, name="i")([draw(2)]), "2 inputs, got 1"),
        (lambda: WidthChoice([4, 2], name="w"), "increasing widths"),
        (lambda: WidthChoice([0, 2], name="w"), "increasing widths of at least 1"),
        (lambda: WidthChoice([1, 2], name="w")(draw(2, 3)), "2 channels, got 3"),
        (
            lambda: Choice({"a": nn.Linear(2, 3), "b": nn.Identity()}, name="c")(torch.ones(1, 2)),
            r"'b' must return shape \(1, 3\)",
        ),
        (
            lambda: Choice({"a": nn.Identity(), "b": nn.GRU(2, 2)}, name="c")(torch.ones(1, 2)),
            "'b' must return a tensor, got tuple",
        ),
    ],
)
def test_invalid_choices_raise_one_line(make: Callable[[], object], word: str) -> None:
    with pytest.raises(InvalidValueError, match=word) as raised:
        make()
    assert "\n" not in str(raised.value)
