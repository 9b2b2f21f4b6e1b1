"""Hessian-vector products (HVPs) and the largest eigenvalue of a Hessian.

H = d^2 L / d w^2 and M = d^2 L / (d alpha d w) of the inner loss L, by one of these routes:

- ``reverse``: backpropagate through the gradient, whose graph is built once per point. No fixed cost, but the
  graph takes several times the memory of a pass.
- ``forward``: forward-mode AD over the gradient. Stores nothing between two products; each costs about 10 ms
  on a CPU beyond its arithmetic.
- ``finite-difference``: the difference of two gradients, for smooth losses without a second derivative in
  PyTorch. On a perceptron of 4,800 weights with tanh its relative error was 3e-11 in float64 and 2e-5 in float32; that
  of the indirect gradient by 20 unrolled steps or 10 conjugate gradients 1e-9, and 2e-4 to 7e-4.

``auto`` takes ``reverse`` if a pass saves at most ``SMALL_GRAPH`` bytes and batches are not cut into shards, else
``forward``, and the other of the two where PyTorch has no rule, then either with ``plain_kernels``. The gradient
of a forward-mode derivative is used nowhere: it is silently wrong through the built-in batch normalization.
"""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel.gradients import GradientGraph, lacks_rule
from sgenas.bilevel.plain_kernels import plain_kernels
from sgenas.bilevel.problem import BilevelProblem
from sgenas.bilevel.saved_memory import SavedMemory
from sgenas.errors import InvalidValueError, one_line
from sgenas.functional import graph_nodes
from sgenas.optim import SGD
from sgenas.tree import Tree

Matvec = Callable[[Tensor], Tensor]
"""v -> H v, both (p,)."""
ROUTES = ("auto", "reverse", "forward", "finite-difference")
BOTH = (0, 1)
"""Numbers of the products: 0 for H v, 1 for M v."""

SMALL_GRAPH = 8 * 2**20
"""Bytes that a pass may save for its backward pass if ``auto`` is to take ``reverse``. On a CPU, the graph and one
product took 0.4 to 0.65 of the time of ``forward`` up to 1.3 MB, as long at 8 and 14 MB and 1.5 times as long at
97 MB; the graph and five products 0.25 to 0.56, then 0.7, 1.1 and 0.7."""
KEPT_GRAPHS = 64 * 2**20
"""Bytes that the passes of all backpropagated steps may save if ``Unrolled`` is to keep their graphs."""
TRUSTED = 0.05
"""Largest relative distance to a finite difference at which a second derivative of a custom function counts as
right."""


def measured_bytes(problem: BilevelProblem, weights: Tree, alphas: Tree, batch: Any) -> float:
    """Bytes that a pass of the inner loss saves for its backward pass, measured by one forward pass per problem.

    Infinite if they cannot be measured: torch.func inside the loss does not allow the hooks. With shards, of the
    pass of one shard.
    """
    findings = problem.findings
    if findings.saved_bytes is None:
        findings.saved_bytes = float("inf")
        part = batch if problem.shards is None else problem.shards.one(batch, 0)
        with contextlib.suppress(RuntimeError), SavedMemory() as saved, torch.enable_grad():
            loss = problem.inner_loss(tree.leaves(weights), tree.leaves(alphas), part)
            findings.saved_bytes = saved.peak
            del loss
    return findings.saved_bytes


def keeps_graph(problem: BilevelProblem, route: str, weights: Tree, alphas: Tree, batch: Any) -> bool:
    """Whether second derivatives by ``route`` come from one graph of the gradient, unless PyTorch lacks a rule."""
    if problem.shards is not None or route not in ("auto", "reverse"):
        return False
    return route == "reverse" or measured_bytes(problem, weights, alphas, batch) <= SMALL_GRAPH


class HVP:
    """Hessian-vector products of a problem's inner loss at one point.

    A route without a rule for the loss is left for the next one, which the problem remembers. A product counts
    as two forward and two backward passes: forward mode computes every operation for the value and for the
    derivative, and backpropagating through a pass takes twice its arithmetic. ``reverse`` counts one pass more
    for the graph, with shards for that of every product. Kinks (ReLU, maximum) have no curvature but for finite
    differences.

    Args:
        problem: The problem; it counts the passes.
        weights: The inner variables.
        alphas: The outer variables.
        batch: The batch of the inner loss.
        route: See the module.
        graph: The gradient there with its graph, if there is one.

    Example:
        >>> curved, mixed = HVP(problem, weights, alphas, batch).both(v)
    """

    def __init__(
        self,
        problem: BilevelProblem,
        weights: Tree,
        alphas: Tree,
        batch: Any,
        route: str = "auto",
        graph: GradientGraph | None = None,
    ) -> None:
        self._problem, self._batch, self._route, self._graph = problem, batch, route, graph
        # whether the graph was made with plain kernels
        self._plain = False
        self._weights, self._alphas = tree.detach(weights), tree.detach(alphas)
        self._point = (self._weights, self._alphas, batch)

    def both(self, v: Tree) -> tuple[Tree, Tree]:
        """(H v, M v), detached, like the weights and the alphas."""
        curved, mixed = self._product(v, BOTH)
        return curved, mixed

    def weights(self, v: Tree) -> Tree:
        """H v alone."""
        return self._product(v, (0,))[0]

    def alphas(self, v: Tree) -> Tree:
        """M v alone."""
        return self._product(v, (1,))[0]

    def _product(self, v: Tree, of: tuple[int, ...]) -> list[Tree]:
        """The products ``of`` (0: H v, 1: M v), like the weights and the alphas."""
        problem, v, errors = self._problem, tree.detach(v), list[Exception]()
        before = problem.counter.total
        for kind, plain in self._routes():
            try:
                with plain_kernels() if plain else contextlib.nullcontext():
                    found = _BY_ROUTE[kind](self, v, of, plain)
            except Exception as error:
                if kind == "finite-difference" or not lacks_rule(error):
                    raise
                errors.append(error)
                # passes that led to nothing are not counted, as a resumed run does not take them
                self._graph, problem.counter.total = None, before
                continue
            problem.counter.add(2, 2)
            if errors:
                problem.findings.routes[self._route] = [kind, plain]
            return self._trees(found, of)
        raise InvalidValueError(
            f"inner_loss has no second derivative that PyTorch can compute ({one_line(errors[0])}); use first-order,"
            " sge, finite-difference or evolution-strategies, or hvp='finite-difference'",
            field="inner_loss",
        ) from errors[0]

    def _trees(self, found: list[Tensor], of: tuple[int, ...]) -> list[Tree]:
        return list(tree.rebuild([self._point[index] for index in of], found))

    def _routes(self) -> list[tuple[str, bool]]:
        """(route, whether with plain kernels) in the order in which they are tried."""
        if self._route == "finite-difference":
            return [("finite-difference", False)]
        kinds = [self._route]
        if self._route == "auto":
            kept = self._graph is not None or keeps_graph(self._problem, "auto", *self._point)
            kinds = ["reverse", "forward"] if kept else ["forward", "reverse"]
        found = [(kind, plain) for plain in (False, True) for kind in kinds]
        known = self._problem.findings.routes.get(self._route)
        return found if known is None else sorted(found, key=lambda route: [*route] != known)

    def _reverse(self, v: Tree, of: tuple[int, ...], plain: bool) -> list[Tensor]:
        problem = self._problem
        if problem.shards is not None:
            # no graph of a whole batch: one per shard and product
            def product(part: Any) -> list[Tensor]:
                graph = GradientGraph(problem.inner_loss, self._weights, self._alphas, part)
                if plain not in problem.findings.trusted:
                    self._require_right(graph, part)
                return graph.product(v, of)

            problem.counter.add(1, 1)
            found = problem.over_shards(product, self._batch)
            problem.findings.trusted.add(plain)
            return found
        if self._graph is None or (plain and not self._plain):
            # (one that was made before may hold the operations that plain kernels are for)
            self._graph, self._plain = GradientGraph(problem.inner_loss, *self._point), plain
            problem.counter.add(1, 1)
        if plain not in problem.findings.trusted:
            self._require_right(self._graph, self._batch)
            problem.findings.trusted.add(plain)
        return self._graph.product(v, of)

    def _require_right(self, graph: GradientGraph, batch: Any) -> None:
        """Raises RuntimeError if there are operations known to be wrong, or if there are custom functions, and H v or
        M v of a random v differs from finite differences.

        What a custom function saves of its own intermediate results counts as a constant in a second derivative,
        silently. The passes of this comparison, once per problem, are not counted.
        """
        functions, operations = graph.untrusted()
        if operations:
            raise RuntimeError(f"PyTorch's second derivative of {', '.join(sorted(operations))} is wrong")
        if not functions:
            return
        draw = torch.Generator().manual_seed(0)
        v = tree.map(lambda w: torch.randn(w.shape, generator=draw, dtype=torch.float64).to(w), self._weights)
        v = tree.scale(v, 1 / tree.norm(v))
        found = self._trees(graph.product(v, BOTH), BOTH)
        problem = replace(self._problem.counted(), shards=None)
        other = HVP(problem, self._weights, self._alphas, batch, "finite-difference")
        # differences of gradients are rounded like these
        rounding = torch.finfo(tree.tensors(v)[0].dtype).eps ** 0.5 * tree.norm(graph.grad)
        wrong = [index for index, part in enumerate(found) if tree.tensors(part)]
        for factor in (1.0, 0.1, 10.0):
            truth = self._trees(other._difference(v, BOTH, factor=factor), BOTH)
            apart = {index: tree.norm(tree.subtract(found[index], truth[index])) for index in wrong}
            wrong = [index for index in wrong if not apart[index] <= TRUSTED * tree.norm(truth[index]) + rounding]
            if not wrong:
                return
        raise RuntimeError(f"wrong second derivative of the custom function {', '.join(sorted(functions))}")

    def _refuse_scripts(self, batch: Any) -> None:
        """Raises RuntimeError if the loss has functions of TorchScript, whose derivatives forward mode takes for zero.

        They show in the graph of a second pass. Not counted, once per problem.
        """
        findings = self._problem.findings
        if findings.scripted is None:
            with torch.enable_grad():
                w, a = tree.leaves(self._weights), tree.leaves(self._alphas)
                loss = [self._problem.inner_loss(w, a, batch) for _ in range(2)][1]
            findings.scripted = any("DifferentiableGraphBackward" in node.name() for node in graph_nodes(loss))
        if findings.scripted:
            raise RuntimeError("forward mode drops the derivatives of TorchScript functions")

    def _forward(self, v: Tree, of: tuple[int, ...], plain: bool) -> list[Tensor]:
        def jvps(part: Any) -> list[Tensor]:
            self._refuse_scripts(part)

            def gradients(w: Tree) -> tuple[Tree, ...]:
                return torch.func.grad(self._problem.inner_loss, argnums=of)(w, self._alphas, part)

            found = torch.func.jvp(gradients, (self._weights,), (v,))[1]
            return [leaf for values in found for leaf in tree.tensors(values)]

        with torch.no_grad(), warnings.catch_warnings():
            # torch scripts some of its forward-mode rules at first use, and warns that it should not
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
            return self._problem.over_shards(jvps, self._batch)

    def _difference(self, v: Tree, of: tuple[int, ...], plain: bool = False, factor: float = 1.0) -> list[Tensor]:
        """Central difference of the gradients at w + r v / ||v|| and w - r v / ||v||.

        r = factor eps^(1/3) max(1, ||w||), which balances the error of rounding with that of the second order.
        """
        norm = tree.norm(v)
        limits = torch.finfo(norm.dtype)
        radius = factor * limits.eps ** (1 / 3) * tree.norm(self._weights).clamp_min(1.0)
        step = torch.where(norm > limits.tiny, radius / norm.clamp_min(limits.tiny), 0.0)
        inner = self._problem.counted()
        sides = [inner.inner_gradients(tree.add(self._weights, v, sign * step), *self._point[1:]) for sign in (1, -1)]
        plus, minus = ([side[1 + index] for index in of] for side in sides)
        return tree.tensors(tree.scale(tree.subtract(plus, minus), norm / (2 * radius)))


_BY_ROUTE = {"reverse": HVP._reverse, "forward": HVP._forward, "finite-difference": HVP._difference}


def hessian_operator(function: Callable[[Tree], Tensor], point: Tree) -> Matvec:
    """v -> H v, H (p, p) the Hessian of a scalar function at ``point``, which has p entries.

    The graph of the gradient is made once and kept as long as the operator lives: the first call costs a
    forward and a backward pass, each product a backward pass through both. Kinks (ReLU, maximum) have no
    curvature for automatic differentiation.
    """

    def loss(weights: Tree, *_: Any) -> Tensor:
        return function(weights)

    # as of any loss, so that wrong second derivatives are noticed
    hvp = HVP(BilevelProblem(loss, loss, SGD(lr=1.0)), point, {}, None, "reverse")
    return lambda v: tree.flatten(hvp.weights(tree.unflatten(v, point)))


def largest_eigenvalue(matvec: Matvec, start: Tensor, *, tolerance: float = 1e-3) -> float:
    """The largest eigenvalue (not the largest in magnitude) of a symmetric matrix, by the Lanczos method of ARPACK.

    Args:
        matvec: v -> A v.
        start: (p,), not 0 and not orthogonal to the eigenvector, so best drawn at random.
        tolerance: Relative error.

    Returns:
        The eigenvalue; NaN if a product is not finite.
    """
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    def product(v: np.ndarray) -> np.ndarray:
        found: np.ndarray = matvec(torch.from_numpy(v.ravel()).to(start)).double().cpu().numpy()
        if not np.isfinite(found).all():
            raise FloatingPointError
        return found

    size, first = start.numel(), start.double().cpu().numpy()
    try:
        if size == 1:
            return float(product(first)[0] / first[0])
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        values = eigsh(operator, k=1, which="LA", v0=first, tol=tolerance, return_eigenvectors=False)
    except FloatingPointError:
        return float("nan")
    except ArpackError:
        # it cannot start where the matrix is zero
        if product(first).any():
            raise
        return 0.0
    return float(values[0])
