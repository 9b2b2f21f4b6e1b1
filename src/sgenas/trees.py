"""Maths on trees: dicts from names to tensors, the form in which weights, alphas and gradients travel.

Every function returns new tensors and changes nothing. Two trees given together must have the same names
in the same order and the same shapes. The arithmetic goes through torch's foreach kernels: a supernet has
over a thousand weight tensors, and one call per tensor from Python costs as much as the arithmetic.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sgenas.errors import InvalidValueError

Tree = dict[str, Tensor]


def _lists(*trees: Tree) -> list[list[Tensor]]:
    first = trees[0]
    for other in trees[1:]:
        if list(first) != list(other):
            raise InvalidValueError(f"trees must have the same names, got {_difference(first, other)}")
    return [list(tree.values()) for tree in trees]


def _difference(first: Tree, other: Tree) -> str:
    missing, extra = sorted(set(first) - set(other)), sorted(set(other) - set(first))
    if not missing and not extra:
        return "the same names in another order"
    return f"names only in the first: {missing[:3]}, only in the second: {extra[:3]}"


def _tree(names: Tree, values: Sequence[Tensor]) -> Tree:
    return dict(zip(names, values, strict=True))


def transformed() -> bool:
    """Whether a torch.func transform is at work: its batching has no rules for the foreach kernels."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def map_tree(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """{name: function(tensor)}."""
    return {name: function(tensor) for name, tensor in tree.items()}


def detach(tree: Tree) -> Tree:
    """The same values, cut off from the graph; storage is shared."""
    return map_tree(Tensor.detach, tree)


def clone(tree: Tree) -> Tree:
    """A detached copy with its own storage."""
    return map_tree(lambda tensor: tensor.detach().clone(), tree)


def zeros_like(tree: Tree) -> Tree:
    """Zeros in the shapes, types and places of `tree`."""
    return map_tree(torch.zeros_like, tree)


def leaves(tree: Tree) -> Tree:
    """Detached tensors that record gradients, to differentiate with respect to; storage is shared."""
    return map_tree(lambda tensor: tensor.detach().requires_grad_(), tree)


def add(first: Tree, second: Tree, scale: float | Tensor = 1.0) -> Tree:
    """first + scale * second; `scale` is a number or a 0-d tensor (which is not read back to the host)."""
    left, right = _lists(first, second)
    if transformed():
        return _tree(first, [a + scale * b for a, b in zip(left, right, strict=True)])
    if isinstance(scale, Tensor):
        return _tree(first, torch._foreach_addcmul(left, right, [scale] * len(right)))
    return _tree(first, torch._foreach_add(left, right, alpha=scale))


def subtract(first: Tree, second: Tree) -> Tree:
    """first - second."""
    left, right = _lists(first, second)
    if transformed():
        return _tree(first, [a - b for a, b in zip(left, right, strict=True)])
    return _tree(first, torch._foreach_sub(left, right))


def scale(tree: Tree, factor: float | Tensor) -> Tree:
    """factor * tree; `factor` is a number or a 0-d tensor."""
    (values,) = _lists(tree)
    if transformed():
        return _tree(tree, [factor * value for value in values])
    # One 0-d tensor for the whole list has a broken backward in torch 2.14; a list of it is right.
    factors = [factor] * len(values) if isinstance(factor, Tensor) else factor
    return _tree(tree, torch._foreach_mul(values, factors))


def dot(first: Tree, second: Tree) -> Tensor:
    """Inner product over all entries of all tensors, a 0-d tensor; an empty tree is an error."""
    left, right = _lists(first, second)
    if not left:
        raise InvalidValueError("trees.dot needs at least one tensor, got an empty tree")
    return torch.stack(
        [torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(left, right, strict=True)]
    ).sum()


def norm(tree: Tree) -> Tensor:
    """Euclidean norm over all entries of all tensors, a 0-d tensor."""
    (values,) = _lists(tree)
    if not values:
        raise InvalidValueError("trees.norm needs at least one tensor, got an empty tree")
    return torch.linalg.vector_norm(torch.stack(_norms(values)))


def _norms(values: list[Tensor]) -> list[Tensor]:
    if transformed():
        return [torch.linalg.vector_norm(value) for value in values]
    return list(torch._foreach_norm(values))


def size(tree: Tree) -> int:
    """Number of entries in all tensors together."""
    return sum(tensor.numel() for tensor in tree.values())


def flatten(tree: Tree) -> Tensor:
    """All entries in one vector of `size(tree)`, tensors in the order of the tree."""
    return torch.cat([tensor.reshape(-1) for tensor in tree.values()])


def unflatten(vector: Tensor, like: Tree) -> Tree:
    """Inverse of `flatten`: cuts `vector` into the shapes of `like`, in its types and places."""
    if vector.shape != (size(like),):
        raise InvalidValueError(f"vector must have shape ({size(like)},), got {tuple(vector.shape)}")
    parts = torch.split(vector, [tensor.numel() for tensor in like.values()])
    return {
        name: part.reshape(tensor.shape).to(tensor.device, tensor.dtype)
        for part, (name, tensor) in zip(parts, like.items(), strict=True)
    }


def stack(members: Sequence[Tree]) -> Tree:
    """M trees as one, every tensor (M, ...); there must be one."""
    _lists(*members)
    return {name: torch.stack([member[name] for member in members]) for name in members[0]}


def flatten_rows(tree: Tree) -> Tensor:
    """Of a tree of stacked tensors (M, ...): a matrix (M, size of one), `flatten` row by row."""
    return torch.cat([tensor.flatten(1) for tensor in tree.values()], dim=1)


def unflatten_rows(matrix: Tensor, like: Tree) -> Tree:
    """Inverse of `flatten_rows`, as views: cuts every row of `matrix` (M, size) into the shapes of `like`."""
    if matrix.ndim != 2 or matrix.shape[1] != size(like):
        raise InvalidValueError(f"matrix must have shape (M, {size(like)}), got {tuple(matrix.shape)}")
    parts = torch.split(matrix, [tensor.numel() for tensor in like.values()], dim=1)
    return {
        name: part.reshape(-1, *tensor.shape)
        for part, (name, tensor) in zip(parts, like.items(), strict=True)
    }
