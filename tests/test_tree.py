"""Arithmetic on trees against arithmetic on the joined vector."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sgenas import tree
from sgenas.errors import InvalidValueError
from sgenas.tree import Tree


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(seed: int) -> Tree:
    return {
        "matrix": numbers(2, 3, seed=seed),
        "scalar": numbers(seed=seed + 10),
        "vector": numbers(4, seed=seed + 20),
    }


def nested(seed: int) -> Tree:
    return {"layers": [flat(seed), (numbers(2, seed=seed + 30),)], "bias": numbers(1, seed=seed + 40)}


def bare(seed: int) -> Tree:
    return numbers(3, 2, seed=seed)


forms = pytest.mark.parametrize("make", [flat, nested, bare])


@forms
def test_arithmetic_equals_that_of_the_joined_vector(make: Callable[[int], Tree]) -> None:
    a, b = make(0), make(1)
    va, vb = tree.flatten(a), tree.flatten(b)
    assert tree.size(a) == len(va)
    for factor in (0.5, torch.tensor(-2.0, dtype=torch.float64)):
        torch.testing.assert_close(tree.flatten(tree.add(a, b, factor)), va + factor * vb)
        torch.testing.assert_close(tree.flatten(tree.scale(a, factor)), factor * va)
    torch.testing.assert_close(tree.flatten(tree.subtract(a, b)), va - vb)
    torch.testing.assert_close(tree.dot(a, b), va @ vb)
    torch.testing.assert_close(tree.norm(a), va.norm())
    torch.testing.assert_close(tree.flatten(tree.map(torch.maximum, a, b)), torch.maximum(va, vb))
    assert (tree.flatten(tree.zeros_like(a)) == 0).all()


@forms
def test_unflatten_and_rebuild_keep_structure_and_types(make: Callable[[int], Tree]) -> None:
    given = tree.map(lambda tensor: tensor.float() if tensor.ndim == 1 else tensor, make(0))
    back = tree.unflatten(tree.flatten(given), given)
    assert tree.same_structure(back, given)
    assert [t.dtype for t in tree.tensors(back)] == [t.dtype for t in tree.tensors(given)]
    assert all(torch.equal(a, b) for a, b in zip(tree.tensors(back), tree.tensors(given), strict=True))


@forms
def test_stacked_trees_and_rows(make: Callable[[int], Tree]) -> None:
    members = [make(seed) for seed in range(3)]
    stacked = tree.stack(members)
    rows = tree.flatten_rows(stacked)
    torch.testing.assert_close(rows, torch.stack([tree.flatten(member) for member in members]))
    torch.testing.assert_close(tree.flatten_rows(tree.unflatten_rows(rows, members[0])), rows)


@forms
@pytest.mark.parametrize(
    "function",
    [
        tree.dot,
        tree.subtract,
        lambda a, b: tree.add(a, b, tree.norm(b)),
        lambda a, b: tree.scale(a, tree.norm(b)),
    ],
)
def test_works_under_vmap(make: Callable[[int], Tree], function: Any) -> None:
    pairs = [(make(seed), make(seed + 5)) for seed in range(3)]
    many = torch.func.vmap(function)(*(tree.stack(list(each)) for each in zip(*pairs, strict=True)))
    for index, pair in enumerate(pairs):
        one = tree.map(lambda tensor, index=index: tensor[index], many)
        torch.testing.assert_close(tree.flatten(one), tree.flatten(function(*pair)))


def test_derivatives_pass_through_the_foreach_kernels() -> None:
    a, b = (tree.leaves(flat(seed)) for seed in (0, 1))

    def value(a: Tree, b: Tree) -> torch.Tensor:
        # the norm as a factor: a 0-d tensor for a whole list has a wrong backward in some versions of torch
        moved = tree.add(tree.scale(a, tree.norm(b)), tree.subtract(b, a), tree.norm(a))
        return tree.dot(moved, b) + tree.norm(moved)

    found = torch.autograd.grad(value(a, b), [*tree.tensors(a), *tree.tensors(b)])

    def of_vectors(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        moved = y.norm() * x + x.norm() * (y - x)
        return moved @ y + moved.norm()

    vectors = [tree.flatten(each).detach().requires_grad_() for each in (a, b)]
    wanted = torch.autograd.grad(of_vectors(*vectors), vectors)
    torch.testing.assert_close(tree.flatten(list(found)), torch.cat(wanted))


def test_paths_name_every_tensor() -> None:
    assert tree.paths(nested(0)) == [
        "layers.0.matrix",
        "layers.0.scalar",
        "layers.0.vector",
        "layers.1.0",
        "bias",
    ]
    assert tree.paths(flat(0)) == ["matrix", "scalar", "vector"]


@pytest.mark.parametrize(
    "other",
    [
        {"matrix": numbers(2, 3, seed=0), "scalar": numbers(seed=1)},
        dict(reversed(flat(0).items())),
        list(flat(0).values()),
        nested(0),
    ],
)
def test_trees_of_another_structure_are_refused(other: Tree) -> None:
    for call in (tree.add, tree.dot, tree.subtract):
        with pytest.raises(InvalidValueError, match="same names"):
            call(flat(0), other)
    assert not tree.same_structure(other, flat(0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: tree.unflatten(torch.zeros(3), flat(0)),
        lambda: tree.unflatten_rows(torch.zeros(2, 3), flat(0)),
        lambda: tree.norm({}),
        lambda: tree.dot({}, {}),
        lambda: tree.tensors({"a": torch.zeros(1), "b": 3}),
        lambda: tree.tensors([torch.zeros(1), None]),
    ],
)
def test_unsuitable_input_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(InvalidValueError):
        call()


def test_clone_has_its_own_storage_and_leaves_record_gradients() -> None:
    given = nested(0)
    copy = tree.clone(given)
    copy["bias"].zero_()
    assert given["bias"].abs().sum() > 0
    assert all(leaf.requires_grad and leaf.is_leaf for leaf in tree.tensors(tree.leaves(given)))
    assert not any(tensor.requires_grad for tensor in tree.tensors(given))
