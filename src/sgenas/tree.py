"""Arithmetic on trees: a tensor, or nested dicts, lists and tuples of tensors.

Functions return new tensors and change nothing; they raise InvalidValueError for a leaf that is not a tensor,
and for trees of different structure. The arithmetic uses torch's foreach kernels, since a supernet has over a
thousand weight tensors. On a GPU these are one kernel for a whole list only if its tensors, and the scalars and
lists that it meets, have one type and one layout in memory; otherwise one per tensor.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sgenas.device import moved
from sgenas.errors import DivergenceError, InvalidValueError, require

Tree = Any
"""A tensor, or nested dicts, lists and tuples of tensors."""
TensorDict = dict[str, Tensor]
"""The tree of most uses: tensors by name."""


def _all_tensors(leaves: Iterable[Any]) -> bool:
    # one check per type that occurs, since this runs on a thousand tensors at each operation
    return all(issubclass(kind, Tensor) for kind in {type(leaf) for leaf in leaves})


def _flat(tree: Tree) -> tuple[list[Tensor], Any]:
    """The tensors of ``tree`` and its structure: a list of names for a flat dict, else a pytree's."""
    if type(tree) is dict and _all_tensors(tree.values()):
        return list(tree.values()), list(tree)
    leaves, structure = pytree.tree_flatten(tree)
    if not _all_tensors(leaves):
        wrong = next(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor))
        raise InvalidValueError(f"a tree must hold tensors only, got a {wrong}")
    return leaves, structure


def _built(structure: Any, leaves: Sequence[Any]) -> Tree:
    if type(structure) is list:
        return dict(zip(structure, leaves, strict=True))
    return pytree.tree_unflatten(list(leaves), structure)


def _aligned(first: Tree, *others: Tree) -> tuple[Any, list[list[Tensor]]]:
    """The structure that all trees share, and the tensors of each."""
    leaves, structure = _flat(first)
    lists = [leaves]
    for other in others:
        values, same = _flat(other)
        if same != structure:
            raise InvalidValueError(f"trees must have the same names, got {_difference(first, other)}")
        lists.append(values)
    return structure, lists


def _difference(first: Tree, other: Tree) -> str:
    ours, theirs = set(paths(first)), set(paths(other))
    missing, extra = sorted(ours - theirs), sorted(theirs - ours)
    if not missing and not extra:
        return "the same names in another order or container"
    return f"names only in the first: {missing[:3]}, only in the second: {extra[:3]}"


def tensors(tree: Tree) -> list[Tensor]:
    """The tensors of ``tree``, in a fixed order (dicts in their own order)."""
    return _flat(tree)[0]


def rebuild(like: Tree, leaves: Sequence[Any]) -> Tree:
    """A tree of the structure of ``like`` with ``leaves`` in place of its tensors."""
    return _built(_flat(like)[1], leaves)


def paths(tree: Tree) -> list[str]:
    """A name for each tensor of ``tree``: ``"layer.weight"`` for ``{"layer": {"weight": ...}}``."""
    named, _ = pytree.tree_flatten_with_path(tree)
    return [".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in named]


def same_structure(tree: Tree, like: Tree) -> bool:
    """Whether both have the same containers, names, order and shapes."""
    (ours, structure), (theirs, other) = _flat(tree), _flat(like)
    return bool(structure == other) and [t.shape for t in ours] == [t.shape for t in theirs]


def transformed() -> bool:
    """Whether a torch.func transform is active: its batching has no rules for the foreach kernels."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """A tree of ``function(tensor, ...)`` over the tensors of all trees."""
    structure, lists = _aligned(tree, *others)
    return _built(structure, [function(*each) for each in zip(*lists, strict=True)])


def elementwise(
    foreach: Callable[..., Sequence[Tensor]], single: Callable[..., Tensor], tree: Tree, *others: Tree
) -> Tree:
    """``foreach`` of the lists of tensors of all trees, or ``single`` tensor by tensor inside torch.func."""
    structure, lists = _aligned(tree, *others)
    if transformed():
        return _built(structure, [single(*each) for each in zip(*lists, strict=True)])
    return _built(structure, foreach(*lists))


def detach(tree: Tree) -> Tree:
    """The same values without a graph; storage is shared."""
    return map(Tensor.detach, tree)


def clone(tree: Tree) -> Tree:
    """A detached copy with its own storage."""
    return map(lambda tensor: tensor.detach().clone(), tree)


def zeros_like(tree: Tree) -> Tree:
    """Zeros of the same shapes, dtypes and devices."""
    return map(torch.zeros_like, tree)


def leaves(tree: Tree) -> Tree:
    """Detached tensors that require a gradient; storage is shared, but for tensors of torch.inference_mode."""
    return map(lambda value: (value.clone() if value.is_inference() else value.detach()).requires_grad_(), tree)


def to(tree: Tree, device: torch.device) -> Tree:
    """The detached tensors of ``tree`` on ``device``."""
    return map(lambda tensor: moved(tensor.detach(), device), tree)


def add(first: Tree, second: Tree, scale: float | Tensor = 1.0) -> Tree:
    """``first + scale * second``; a 0-d tensor ``scale`` is not read back to the host."""

    def foreach(left: list[Tensor], right: list[Tensor]) -> Sequence[Tensor]:
        if not isinstance(scale, Tensor):
            return torch._foreach_add(left, right, alpha=scale)
        factors = [_fitting(scale, value) for value in right]
        if _on_gpu(left) and not _recorded(scale, right):
            same = all(factor is scale for factor in factors)
            return torch._foreach_add(left, torch._foreach_mul(right, scale if same else factors))
        return torch._foreach_addcmul(left, right, factors)

    def single(left: Tensor, right: Tensor) -> Tensor:
        return left + (_fitting(scale, right) if isinstance(scale, Tensor) else scale) * right

    return elementwise(foreach, single, first, second)


def subtract(first: Tree, second: Tree) -> Tree:
    """``first - second``."""
    return elementwise(torch._foreach_sub, torch.sub, first, second)


def scale(tree: Tree, factor: float | Tensor) -> Tree:
    """``factor * tree`` for a number or a 0-d tensor."""
    if not isinstance(factor, Tensor):
        return elementwise(lambda values: torch._foreach_mul(values, factor), lambda value: factor * value, tree)

    def foreach(values: list[Tensor]) -> Sequence[Tensor]:
        # One 0-d tensor for the whole list is fast, but has a broken backward in torch 2.14; a list of it is right.
        every = [_fitting(factor, value) for value in values]
        same = not _recorded(factor, values) and all(each is factor for each in every)
        return torch._foreach_mul(values, factor if same else every)

    return elementwise(foreach, lambda value: _fitting(factor, value) * value, tree)


def _fitting(factor: Tensor, value: Tensor) -> Tensor:
    """``factor`` in the precision of ``value`` if that is 0-d, too: only then would it change the type of a product."""
    return factor if value.ndim else factor.to(value.real.dtype if value.is_complex() else value.dtype)


def _recorded(factor: Tensor, values: Sequence[Tensor]) -> bool:
    """Whether autograd records a product of the two."""
    return torch.is_grad_enabled() and any(value.requires_grad for value in (factor, *values))


def _on_gpu(values: Sequence[Tensor]) -> bool:
    return values[0].device.type == "cuda" if values else False


def dot(first: Tree, second: Tree) -> Tensor:
    """Inner product over all entries, a 0-d tensor; refuses empty trees."""
    _, (left, right) = _aligned(first, second)
    require(len(left) > 0, "tree.dot", "called with at least one tensor", first)
    if _on_gpu(left) and not transformed():
        # on a CPU the two copies cost more than the calls
        return torch.dot(torch.cat([a.reshape(-1) for a in left]), torch.cat([b.reshape(-1) for b in right]))
    return torch.stack([torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(left, right, strict=True)]).sum()


def norm(tree: Tree) -> Tensor:
    """Euclidean norm over all entries, a 0-d tensor; refuses an empty tree."""
    values = tensors(tree)
    require(len(values) > 0, "tree.norm", "called with at least one tensor", tree)
    norms = [torch.linalg.vector_norm(value) for value in values] if transformed() else torch._foreach_norm(values)
    return torch.linalg.vector_norm(torch.stack(list(norms)))


def require_finite(trees: dict[str, Tree]) -> None:
    """Raises DivergenceError naming the first tensor with NaN or infinite entries; waits for the device once.

    Args:
        trees: {what to call it: a tree}.
    """
    named = [
        (f"{what} {path}".rstrip(), tensor)
        for what, values in trees.items()
        for path, tensor in zip(paths(values), tensors(values), strict=True)
        if tensor.numel()
    ]
    # the largest entry of each, which is not finite if any entry is not
    largest = torch._foreach_norm([tensor for _, tensor in named], math.inf) if named else ()
    finite = [math.isfinite(value) for value in numbers(largest)]
    if not all(finite):
        name, tensor = named[finite.index(False)]
        wrong = int((~torch.isfinite(tensor)).sum())
        raise DivergenceError(f"{name} has {wrong} of {tensor.numel()} entries that are NaN or infinite")


def numbers(values: Sequence[Tensor]) -> list[float]:
    """The numbers in 0-d tensors; waits for the device once."""
    return torch.stack([value.detach() for value in values]).tolist() if values else []


def size(tree: Tree) -> int:
    """Number of entries of all tensors."""
    return sum(tensor.numel() for tensor in tensors(tree))


def flatten(tree: Tree) -> Tensor:
    """All entries as one vector of ``size(tree)``."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors(tree)])


def unflatten(vector: Tensor, like: Tree) -> Tree:
    """Inverse of ``flatten``: cuts ``vector`` into the shapes of ``like``, in its dtypes, where ``vector`` is.

    Raises:
        InvalidValueError: If the vector does not have ``size(like)`` entries.
    """
    require(vector.shape == (size(like),), "vector", f"of shape ({size(like)},)", tuple(vector.shape))
    values, structure = _flat(like)
    parts = zip(torch.split(vector, [tensor.numel() for tensor in values]), values, strict=True)
    return _built(structure, [part.reshape(t.shape).to(t.dtype) for part, t in parts])


def stack(members: Sequence[Tree]) -> Tree:
    """M trees as one; every tensor is (M, ...)."""
    structure, lists = _aligned(*members)
    return _built(structure, [torch.stack(each) for each in zip(*lists, strict=True)])


def flatten_rows(tree: Tree) -> Tensor:
    """A matrix (M, size of one) from a tree of stacked tensors (M, ...): ``flatten`` row by row."""
    # (reshape finds no -1 for tensors without entries)
    return torch.cat([tensor.reshape(len(tensor), math.prod(tensor.shape[1:])) for tensor in tensors(tree)], dim=1)


def unflatten_rows(matrix: Tensor, like: Tree) -> Tree:
    """Inverse of ``flatten_rows``, as views: cuts each row of ``matrix`` (M, size) like ``like``.

    Raises:
        InvalidValueError: If the rows do not have ``size(like)`` entries.
    """
    good = matrix.ndim == 2 and matrix.shape[1] == size(like)
    require(good, "matrix", f"of shape (M, {size(like)})", tuple(matrix.shape))
    values, structure = _flat(like)
    parts = torch.split(matrix, [tensor.numel() for tensor in values], dim=1)
    return _built(structure, [part.reshape(len(part), *t.shape) for part, t in zip(parts, values, strict=True)])
