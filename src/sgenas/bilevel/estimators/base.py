"""What all hypergradient estimators share: validation, unperturbed trajectory, outer gradients, costs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import complex_weights
from sgenas.bilevel.embeddings import require_true_gradients
from sgenas.bilevel.problem import BilevelProblem, Cost, Trajectory
from sgenas.errors import DivergenceError, InvalidValueError, require
from sgenas.functional import generator_states
from sgenas.optim import InnerState
from sgenas.registry import Registry
from sgenas.tree import Tree


@dataclass(frozen=True)
class HypergradientResult:
    """An estimate of d L_val(w*(alpha), alpha) / d alpha (Eq. 3, Eq. 6); detached from every graph.

    Attributes:
        grad: The hypergradient, ``direct + indirect``, with the structure of the alphas.
        direct: d L_val / d alpha at fixed weights Y^N.
        indirect: The second term of Eq. 3, J^T d L_val / d w.
        state: The inner state after the N unperturbed steps; ``state.weights`` is Y^N.
        inner_losses: L_train before each of the N steps, 0-d tensors.
        outer_loss: L_val at Y^N, a 0-d tensor.
        cost: Passes and steps that were really taken.
        diagnostics: What the estimator measured of its own noise, by name.
        alphas: The alphas that were passed.
        checked: The ``grad`` that the estimator found to be finite.
    """

    grad: Tree
    direct: Tree
    indirect: Tree
    state: InnerState
    inner_losses: tuple[Tensor, ...]
    outer_loss: Tensor
    cost: Cost
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    alphas: Tree = field(default=None, repr=False)
    checked: Tree = field(default=None, repr=False)

    def require_finite(self) -> None:
        """Raises DivergenceError if ``grad`` is not finite; waits for the device only if it was changed."""
        if self.grad is not self.checked:
            tree.require_finite({"hypergradient": self.grad})

    def backward(self) -> None:
        """Adds ``grad`` to the ``.grad`` of the alphas that were passed, as ``Tensor.backward`` does.

        Alphas that were computed from other tensors pass the gradient on to those.
        """
        pairs = list(zip(tree.tensors(self.alphas), tree.tensors(self.grad), strict=True))
        recorded = [pair for pair in pairs if pair[0].requires_grad]
        if recorded:
            torch.autograd.backward([alpha for alpha, _ in recorded], [grad for _, grad in recorded])
        for alpha, grad in pairs:
            if not alpha.requires_grad:
                alpha.grad = grad.clone() if alpha.grad is None else alpha.grad + grad


class Checks:
    """Checks that values are finite: at once on a CPU; on a GPU later and together, since each waits for it."""

    def __init__(self) -> None:
        self._due: list[tuple[Tensor, Callable[[], None]]] = []

    def add(self, values: Tensor, check: Callable[[], None]) -> None:
        """If an entry of ``values`` is NaN or infinite, ``check`` raises an error that says what it is."""
        if values.device.type == "cuda":
            self._due.append((values, check))
        elif not bool(torch.isfinite(values).all()):
            check()

    def settle(self, *others: Tensor) -> list[Tensor]:
        """Makes the checks that are due; returns ``others``, all on the device of the first, copied to the CPU.

        All of it in one copy, for which it waits. A CPU has nothing due, and nothing to copy.
        """
        due, self._due = self._due, []
        values = [value for value, _ in due] + [other for other in others if other.device.type == "cuda"]
        if not values:
            return list(others)
        together = torch.cat([value.reshape(-1) for value in values]).cpu()
        flat = iter(torch.split(together, [value.numel() for value in values]))
        if not all(bool(torch.isfinite(next(flat)).all()) for _ in due):
            for _, check in due:
                check()
        return [
            next(flat).to(other.dtype).view(other.shape) if other.device.type == "cuda" else other for other in others
        ]


@dataclass(frozen=True)
class Context:
    """What an estimator has at hand when it computes the indirect gradient.

    Attributes:
        problem: The problem; it counts the passes.
        state: The state Y^0 at which the inner steps start.
        alphas: The outer variables, detached.
        inner_batches: One batch per inner step.
        outer_batch: The batch of the outer loss.
        trajectory: The unperturbed trajectory with the steps that ``kept_steps`` asked for.
        outer_loss: L_val(Y^N, alphas), 0-d.
        v: d L_val / d weights at Y^N; None if the estimator does not use it.
        direct: d L_val / d alphas at Y^N.
        generator: For estimators that draw.
        diagnostics: To be filled by the estimator.
        checks: Checks of what the estimator computes.
    """

    problem: BilevelProblem
    state: InnerState
    alphas: Tree
    inner_batches: Sequence[Any]
    outer_batch: Any
    trajectory: Trajectory
    outer_loss: Tensor
    v: Tree
    direct: Tree
    generator: torch.Generator | None
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    checks: Checks = field(default_factory=Checks)


class Estimator(ABC):
    """A way to compute a hypergradient: a frozen dataclass whose fields are its settings.

    A subclass writes ``indirect_gradient``. The inner optimizer is ``context.problem.inner_optimizer``; its
    steps are differentiated and compared by the functions of ``sgenas.optim``. Estimators have no side
    effects: they change no weights, buffers or ``.grad``.
    """

    draws: ClassVar[bool] = False
    """Whether the estimator draws random numbers."""
    differentiates_gradients: ClassVar[bool] = False
    """Whether the estimator takes derivatives or differences of gradients, which must be those of a function."""
    uses_v: ClassVar[bool] = True
    """Whether the estimator uses d L_val / d weights."""

    @abstractmethod
    def indirect_gradient(self, context: Context) -> Tree:
        """The indirect gradient J^T d L_val / d w, with the structure of the alphas; there or on the CPU."""

    def indirect_cost(self, inner_steps: int) -> Cost:
        """An upper bound of what ``indirect_gradient`` spends."""
        return Cost()

    def kept_steps(self, inner_steps: int) -> int:
        """How many of the last inner steps ``indirect_gradient`` finds in ``context.trajectory.steps``."""
        return 0

    def trained_points(self, alphas: Tree, generator: torch.Generator) -> list[Tree] | None:
        """Other alphas at which a call needs the inner problem solved, as far as it is clear in advance.

        A ``BlackBoxProblem`` trains there in parallel. The generator is in the state that it has in the call.
        None: the estimator needs an inner loss, so that it cannot be used with a black box.
        """
        return None

    def cost(self, inner_steps: int) -> Cost:
        """An upper bound of what one call with that many inner batches costs."""
        return Cost(inner_steps + 1, inner_steps + 1, inner_steps) + self.indirect_cost(inner_steps)

    def run(self, problem: BilevelProblem, state: InnerState, alphas: Tree, inner_batches: Sequence[Any]) -> Trajectory:
        """The unperturbed trajectory."""
        return problem.run(state, alphas, inner_batches, keep=self.kept_steps(len(inner_batches)))

    def __call__(
        self,
        problem: BilevelProblem,
        state: InnerState,
        alphas: Tree,
        inner_batches: Sequence[Any],
        outer_batch: Any,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> HypergradientResult:
        """Estimates the hypergradient at ``alphas`` after one inner step per batch.

        Args:
            problem: The bilevel problem.
            state: Where the inner steps start.
            alphas: The outer variables, a tree of floating-point tensors.
            inner_batches: N batches, at least one. Both sides of every difference use the same ones.
            outer_batch: The batch of the outer loss (D_F of Algorithm 1).
            generator: Source of random numbers, on any device.
            seed: Seed of a new generator, instead of ``generator``.

        Raises:
            InvalidValueError: If an argument is unsuitable, or an estimator that draws gets neither
                ``generator`` nor ``seed``.
            DivergenceError: If a loss or the hypergradient is NaN or infinite.
        """
        if complex_weights.occur(state):
            real, passed = complex_weights.real_problem(problem, state.weights), complex_weights.real_state(state)
            found = self(real, passed, alphas, inner_batches, outer_batch, generator=generator, seed=seed)
            return replace(found, state=complex_weights.complex_state(found.state, state.weights))
        if seed is not None:
            if generator is not None:
                raise InvalidValueError("pass generator= or seed=, not both", field="seed")
            generator = torch.Generator().manual_seed(seed)
        if generator is None and self.draws:
            name = type(self).__name__
            raise InvalidValueError(f"{name} draws random directions: pass generator= or seed=", field="generator")
        if any(
            tensor.requires_grad for slot in (state.weights, *state.slots.values()) for tensor in tree.tensors(slot)
        ):
            state = replace(state, weights=tree.detach(state.weights), slots=tree.detach(state.slots))
        problem.check(state, alphas, inner_batches)
        short = [alpha.dtype for alpha in tree.tensors(alphas) if alpha.element_size() < 4] if self.draws else []
        if short:
            limit = f"float32 or float64 for {type(self).__name__}, whose small differences shorter types round away"
            require(False, "alphas", limit, short[0])
        given, alphas, problem = alphas, tree.detach(alphas), problem.counted()
        if self.differentiates_gradients:
            require_true_gradients(problem, state.weights, alphas, inner_batches[0])
        version, drawn = _version(state), generator_states()
        trajectory = self.run(problem, state, alphas, inner_batches)
        weights, v = trajectory.end.weights, None
        if self.uses_v:
            outer_loss, v, direct = problem.outer_gradients(weights, alphas, outer_batch)
        else:
            outer_loss, direct = problem.outer_alpha_gradient(weights, alphas, outer_batch)
        require(
            generator_states() == drawn,
            "losses",
            "free of random numbers (put them, or their seed, into the batch)",
            "a pass that draws from PyTorch's global generator",
        )
        rest = (inner_batches, outer_batch, trajectory, outer_loss, v, direct, generator)
        context = Context(problem, state, alphas, *rest)
        losses = torch.stack([*trajectory.losses, outer_loss])
        context.checks.add(losses, lambda: require_finite(trajectory.losses, outer_loss))

        def finite(part: Tree) -> None:
            context.checks.add(tree.flatten(part), lambda: tree.require_finite({"hypergradient": part}))

        finite(direct)
        indirect = self.indirect_gradient(context)
        finite(indirect)
        context.checks.settle()
        indirect = tree.to(indirect, tree.tensors(alphas)[0].device)
        # (an embedding with max_norm does)
        require(_version(state) == version, "inner_loss", "free of changes of the weights in place", "such a change")
        parts = (trajectory.end, trajectory.losses, outer_loss, problem.counter.total, context.diagnostics)
        grad = tree.add(direct, indirect)
        return HypergradientResult(grad, direct, indirect, *parts, alphas=given, checked=grad)


def _version(state: InnerState) -> int:
    """A number that changes with every change of the weights in place."""
    return sum(0 if weight.is_inference() else weight._version for weight in tree.tensors(state.weights))


ESTIMATORS: Registry[type[Estimator]] = Registry("estimator", "sgenas.estimators")
"""Estimator classes by name."""


def require_finite(inner_losses: Sequence[Tensor], outer_loss: Tensor, where: str = "") -> None:
    """Raises DivergenceError naming the first loss that is NaN or infinite; waits for each."""
    for index, loss in enumerate(inner_losses):
        if not bool(torch.isfinite(loss)):
            step = f"inner step {index + 1} of {len(inner_losses)}"
            raise DivergenceError(f"inner_loss is {loss.item()} in {step}{where}")
    if not bool(torch.isfinite(outer_loss)):
        after = f" after inner step {len(inner_losses)}" if inner_losses else ""
        raise DivergenceError(f"outer_loss is {outer_loss.item()}{after}{where}")


def require_finite_directions(context: Context, values: Tensor, points: Sequence[Tree]) -> None:
    """Adds a check that raises DivergenceError for the first direction whose value is NaN or infinite.

    Args:
        context: The call.
        values: What was measured along each direction, (Q,).
        points: The alphas there. A trajectory is computed again only to find the inner step.
    """

    def find() -> None:
        finite = torch.isfinite(values).tolist()
        if all(finite):
            return
        index = finite.index(False)
        where = f" along direction {index + 1} of {len(values)}"
        problem, alphas = context.problem, points[index]
        again = problem.run(context.state, alphas, context.inner_batches)
        require_finite(again.losses, problem.outer_value(again.end.weights, alphas, context.outer_batch), where)
        raise DivergenceError(f"the difference is {values[index].item()}{where}, though all losses are finite")

    context.checks.add(values, find)
