"""Hessian-vector products and the largest eigenvalue against matrices that are known."""

import pytest
import torch
from torch import Tensor

from sgenas.bilevel.curvature import hessian_operator, largest_eigenvalue
from sgenas.trees import Tree


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hessian_operator_equals_the_whole_hessian() -> None:
    point = {"a": draw(2, 3), "b": draw(4, seed=1)}

    def function(tree: Tree) -> Tensor:
        flat = torch.cat([tree["a"].flatten(), tree["b"]])
        return flat.sin().outer(flat).exp().sum() + flat.pow(4).sum()

    def of_flat(flat: Tensor) -> Tensor:
        return function({"a": flat[:6].reshape(2, 3), "b": flat[6:]})

    whole = torch.autograd.functional.hessian(of_flat, torch.cat([point["a"].flatten(), point["b"]]))
    product = hessian_operator(function, point)
    for seed in (2, 3):
        vector = draw(10, seed=seed)
        torch.testing.assert_close(product(vector), whole @ vector, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("function", [lambda tree: tree["a"].sum(), lambda tree: torch.tensor(3.0)])
def test_what_does_not_bend_has_no_curvature(function: object) -> None:
    product = hessian_operator(function, {"a": draw(3)})  # type: ignore[arg-type]
    assert (product(draw(3, seed=1)) == 0).all()
    assert largest_eigenvalue(product, draw(3, seed=1)) == 0


def test_what_does_not_bend_beside_what_does_has_zeros() -> None:
    """Automatic differentiation finds no way back to them."""
    point = {"bent": draw(2), "straight": draw(2, seed=1), "absent": draw(1, seed=2)}
    product = hessian_operator(lambda tree: tree["bent"].square().sum() + 3 * tree["straight"].sum(), point)
    vector = draw(5, seed=3)
    assert product(vector).tolist() == [*(2 * vector[:2]).tolist(), 0, 0, 0]


@pytest.mark.parametrize(
    "values", [[3.0, 1.0, -2.0], [0.3, 0.1, -0.2], [1.0, 0.5, -4.0], [-1.0, -2.0, -5.0], [2.0, 2.0, 0.0]]
)
def test_largest_eigenvalue(values: list[float]) -> None:
    """Also where the one of largest size is negative."""
    basis = torch.linalg.qr(draw(3, 3))[0]
    matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
    found = largest_eigenvalue(lambda v: matrix @ v, draw(3, seed=5), iterations=500, tolerance=1e-12)
    assert found == pytest.approx(max(values), rel=1e-6)
