"""Gradients of a loss, and the graph of a gradient, which second derivatives are taken from."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgenas import tree
from sgenas.device import ran_out
from sgenas.errors import InvalidValueError, SgenasError
from sgenas.functional import graph_nodes
from sgenas.tree import Tree

WRONG_TWICE = {"WeightNormInterfaceBackward0": "torch._weight_norm"}
"""Operations whose backward pass PyTorch differentiates wrongly, without an error: node -> name."""


def scalar(loss: Tensor, name: str) -> Tensor:
    """``loss``; refuses, naming ``name``, what is not a real 0-d tensor."""
    good = isinstance(loss, Tensor) and loss.ndim == 0 and not loss.is_complex()
    if not good:
        got: Any = type(loss).__name__
        if isinstance(loss, Tensor):
            got = loss.dtype if loss.is_complex() else tuple(loss.shape)
        raise InvalidValueError(f"{name} must return a real 0-d tensor, got {got}", field=name)
    return loss


def gradient(loss: Tensor, leaves: list[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """d loss / d leaves as dense tensors, zeros where there is no dependence; detached unless ``create_graph``."""
    # a loss that uses none of the leaves has no graph at all, which autograd.grad refuses
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(loss, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True)
    # torch 2.9 gives zeros for an unused leaf that require a gradient themselves
    if create_graph:
        return [_dense(part) for part in found]
    return [laid_out_as(_dense(part).detach(), leaf) for part, leaf in zip(found, leaves, strict=True)]


def laid_out_as(part: Tensor, leaf: Tensor) -> Tensor:
    """A gradient in the memory layout of its leaf, without which `tree` takes them tensor by tensor on a GPU.

    A view if they differ only in the strides of dimensions of size 1, as for pointwise and depthwise convolutions.
    """
    if part.device.type != "cuda" or part.stride() == leaf.stride() or not leaf.is_contiguous():
        return part
    return part.contiguous().as_strided(leaf.shape, leaf.stride())


def _dense(part: Tensor) -> Tensor:
    # embeddings with sparse=True have sparse gradients
    return part if part.layout == torch.strided else part.to_dense()


def lacks_rule(error: Exception) -> bool:
    """Whether an exception in transformed code may mean that PyTorch has no derivative or batching rule there.

    The same code ran untransformed before, so everything counts but sgenas' own errors and a lack of memory.
    """
    return not isinstance(error, SgenasError) and not ran_out(error)


class GradientGraph:
    """The gradient of a loss with respect to the weights at one point, with its graph.

    Attributes:
        loss: The loss, detached.
        grad: d loss / d weights, detached.
    """

    def __init__(self, function: Callable[..., Tensor], weights: Tree, alphas: Tree, batch: Any) -> None:
        weights, alphas = tree.leaves(weights), tree.leaves(alphas)
        self._weights, self._alphas = tree.tensors(weights), tree.tensors(alphas)
        with torch.enable_grad():
            loss = scalar(function(weights, alphas, batch), "inner_loss")
            self._gradient = gradient(loss, self._weights, create_graph=True)
        self._loss, self.loss = loss, loss.detach()
        self.grad = tree.rebuild(weights, [part.detach() for part in self._gradient])

    def product(self, v: Tree, of: tuple[int, ...]) -> list[Tensor]:
        """The products ``of`` (0: H v, 1: M v) as one list of tensors; keeps the graph."""
        inputs = [leaf for index in of for leaf in (self._weights, self._alphas)[index]]
        pairs = zip(self._gradient, tree.tensors(v), strict=True)
        used = [(part, cotangent) for part, cotangent in pairs if part.requires_grad]
        if not used:
            return [torch.zeros_like(leaf) for leaf in inputs]
        parts, cotangents = zip(*used, strict=True)
        found = torch.autograd.grad(
            parts, inputs, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return [laid_out_as(_dense(part).detach(), leaf) for part, leaf in zip(found, inputs, strict=True)]

    def untrusted(self) -> tuple[set[str], set[str]]:
        """What the loss uses: names of ``torch.autograd.Function`` classes in Python, and of ``WRONG_TWICE``."""
        functions: set[str] = set()
        operations: set[str] = set()
        for node in graph_nodes(self._loss):
            kind = type(node)
            if hasattr(kind, "_forward_cls"):
                # not sgenas' own, which are right: a kink elsewhere would look like their fault
                if not kind._forward_cls.__module__.startswith("sgenas."):
                    functions.add(kind._forward_cls.__name__)
            elif kind.__name__ in WRONG_TWICE:
                operations.add(WRONG_TWICE[kind.__name__])
        return functions, operations
