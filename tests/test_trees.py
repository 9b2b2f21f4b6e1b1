import pytest
import torch

from sgenas import trees
from sgenas.errors import InvalidValueError


def make(seed: int) -> trees.Tree:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (2, 3), "scalar": (), "vector": (4,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }


def test_arithmetic_equals_arithmetic_on_the_joined_vector() -> None:
    a, b = make(0), make(1)
    va, vb = trees.flatten(a), trees.flatten(b)
    assert trees.size(a) == 11
    torch.testing.assert_close(trees.flatten(trees.add(a, b, 0.5)), va + 0.5 * vb)
    torch.testing.assert_close(
        trees.flatten(trees.add(a, b, torch.tensor(-2.0, dtype=torch.float64))), va - 2 * vb
    )
    torch.testing.assert_close(trees.flatten(trees.subtract(a, b)), va - vb)
    torch.testing.assert_close(trees.flatten(trees.scale(a, 3.0)), 3 * va)
    torch.testing.assert_close(trees.dot(a, b), va @ vb)
    torch.testing.assert_close(trees.norm(a), va.norm())


def test_unflatten_undoes_flatten_and_keeps_types() -> None:
    tree = make(0)
    tree["vector"] = tree["vector"].float()
    back = trees.unflatten(trees.flatten(tree), tree)
    assert list(back) == list(tree)
    for name, tensor in tree.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_trees_with_other_names_or_another_order_are_refused() -> None:
    a = make(0)
    with pytest.raises(InvalidValueError, match="same names.*first: \\['vector'\\]"):
        trees.add(a, {name: a[name] for name in ("matrix", "scalar")})
    with pytest.raises(InvalidValueError, match="another order"):
        trees.dot(a, dict(reversed(a.items())))
    with pytest.raises(InvalidValueError, match=r"must have shape \(11,\), got \(3,\)"):
        trees.unflatten(torch.zeros(3), a)
    with pytest.raises(InvalidValueError, match="empty tree"):
        trees.norm({})


def test_clone_has_its_own_storage_and_leaves_record_gradients() -> None:
    tree = make(0)
    copy = trees.clone(tree)
    copy["vector"].zero_()
    assert tree["vector"].abs().sum() > 0
    assert all(leaf.requires_grad and leaf.is_leaf for leaf in trees.leaves(tree).values())
    assert not any(tensor.requires_grad for tensor in tree.values())
