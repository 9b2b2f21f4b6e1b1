"""Errors of estimates, bias and variance apart, lengths from few directions: against what is known."""

import math

import pytest
import torch
from torch import Tensor

from sgenas.experiments.lab.statistics import errors, frame, inner_product, mean_and_error


def draws(count: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def test_squared_error_is_bias_and_variance() -> None:
    truth = draws(1, 5, 0)[0]
    found = errors(draws(7, 5, 1) + 2, truth)
    assert found["squared_error"] == pytest.approx(found["bias"] + found["variance"], rel=1e-12)


def test_bias_and_variance_are_unbiased() -> None:
    truth, shift, noise = draws(1, 6, 0)[0], draws(1, 6, 1)[0], 0.5
    samples = [errors(truth + shift + noise * draws(3, 6, 100 + seed), truth) for seed in range(4000)]
    unit = float(truth.square().sum())
    for name, exact in (("bias", float(shift.square().sum())), ("variance", 6 * noise**2)):
        mean, error = mean_and_error([sample[name] for sample in samples])
        assert mean is not None
        assert error is not None
        assert abs(mean - exact / unit) < 4 * error
        assert error < 0.03 * exact / unit


def test_a_single_estimate_has_a_bias_alone() -> None:
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    found = errors(torch.tensor([[3.0, 0.0]], dtype=torch.float64), truth)
    assert found == pytest.approx(
        {"cosine": 0.6, "relative_error": 0.8, "squared_error": 0.64, "bias": 0.64, "variance": 0.0}
    )


def test_what_has_no_answer_is_none() -> None:
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert set(errors(one[None], zero).values()) == {None}
    found = errors(zero[None], one)
    assert found["cosine"] is None
    assert found["squared_error"] == 1
    assert mean_and_error([None, math.nan]) == (None, None)
    assert mean_and_error([None, 2.0]) == (2.0, None)
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)


def test_a_frame_is_orthonormal_and_begins_along_what_is_fixed() -> None:
    fixed = draws(2, 9, 0)
    rows = frame(fixed, 4, torch.Generator().manual_seed(1))
    torch.testing.assert_close(rows @ rows.T, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(rows[0], fixed[0] / fixed[0].norm())
    # the second lies in the plane of both
    torch.testing.assert_close((rows[:2].T @ (rows[:2] @ fixed.T)).T, fixed)


def test_a_frame_of_all_dimensions_sees_everything() -> None:
    rows = frame(draws(2, 5, 0), 50, torch.Generator().manual_seed(1))
    assert rows.shape == (5, 5)
    a, b = draws(2, 5, 2)
    assert inner_product(rows @ a, rows @ b, 2, 5) == pytest.approx(float(a @ b), rel=1e-12)


@pytest.mark.parametrize("same", [False, True])
def test_few_directions_estimate_without_bias(same: bool) -> None:
    """Also where both fixed vectors point the same way, so that the second row is made of rounding."""
    size, count = 12, 3
    fixed = draws(2, size, 0)
    if same:
        fixed[1] = 2 * fixed[0]
    a, b = draws(2, size, 1)
    found = []
    for seed in range(3000):
        rows = frame(fixed, count, torch.Generator().manual_seed(seed))
        found.append(inner_product(rows @ a, rows @ b, 2, size))
    mean, error = mean_and_error(found)
    exact = float(a @ b)
    assert mean is not None
    assert error is not None
    assert abs(mean - exact) < 4 * error
    assert error < 0.05 * float(a.norm() * b.norm())


def test_no_random_directions_see_the_fixed_ones_alone() -> None:
    fixed = draws(2, 8, 0)
    rows = frame(fixed, 0, torch.Generator().manual_seed(1))
    seen = rows @ fixed[0]
    assert inner_product(seen, seen, 2, 8) == pytest.approx(float(fixed[0] @ fixed[0]), rel=1e-12)
