"""Bilevel problems, inner optimizers and reference computations for tests of estimators."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from sgenas import tree
from sgenas.bilevel import BilevelProblem, Estimator, HypergradientResult, InnerState
from sgenas.bilevel.estimators.sge.projections import Perturbation
from sgenas.bilevel.test_problems import Quadratic
from sgenas.optim import SGD, Adam, AdamW, InnerOptimizer
from sgenas.tree import Tree


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def close(first: Tree, second: Tree, tolerance: float = 1e-10) -> None:
    assert tree.paths(first) == tree.paths(second)
    for a, b in zip(tree.tensors(first), tree.tensors(second), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def equal(first: Tree, second: Tree) -> bool:
    pairs = zip(tree.tensors(first), tree.tensors(second), strict=True)
    return tree.paths(first) == tree.paths(second) and all(torch.equal(a, b) for a, b in pairs)


@dataclass
class Case:
    """A problem in the middle of its optimization (slots are not zero), and the batches of one call."""

    problem: BilevelProblem
    alphas: Tree
    state: InnerState
    inner: list[Any]
    outer: Any

    def estimate(self, estimator: Estimator, seed: int = 0, **changes: Any) -> HypergradientResult:
        case = replace(self, **changes)
        return estimator(case.problem, case.state, case.alphas, case.inner, case.outer, generator=generator(seed))

    def many(self, estimator: Estimator, count: int) -> Tensor:
        """Indirect gradients of ``count`` seeds, (count, p)."""
        return torch.stack([tree.flatten(self.estimate(estimator, seed).indirect) for seed in range(count)])


class QuadraticCase(Case):
    """``Quadratic`` with what its closed form says: ``direct``, ``indirect``, and ``exact`` (p,) of it."""

    def __init__(self, optimizer: SGD, steps: int) -> None:
        self.toy = Quadratic.random(generator())
        problem = self.toy.problem(optimizer)
        state = problem.run(problem.init(self.toy.weights), self.toy.alphas, list(draw(3, 7, seed=3))).end
        super().__init__(problem, self.toy.alphas, state, list(draw(steps, 7, seed=7)), draw(7, seed=8))
        self.direct, self.indirect = self.toy.exact(optimizer, state, self.inner, self.outer)
        self.exact, self.size = tree.flatten(self.indirect), 6

    def estimate(self, estimator: Estimator, seed: int = 0, **changes: Any) -> HypergradientResult:
        fields = ("problem", "alphas", "state", "inner", "outer")
        plain = Case(**{name: getattr(self, name) for name in fields})
        return plain.estimate(estimator, seed, **changes)


WEIGHTS = {"w": draw(3, 2), "layer": [draw(2, seed=1), (draw(1, 2, seed=2),)]}
ALPHAS = {"scale": draw(seed=3), "tables": [draw(2, 3, seed=4), {"outer": draw(2, seed=5)}], "no": draw(1)}


def logits(weights: Tree, alphas: Tree, x: Tensor) -> Tensor:
    bias, (shift,) = weights["layer"]
    mixed = x @ weights["w"] + bias
    bent = torch.tanh(alphas["tables"][0].softmax(0)[0] * x) @ weights["w"]
    return bent + mixed * alphas["scale"].exp() + shift.sin()


def inner_loss(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
    return logits(weights, alphas, batch).sin().square().mean()


def outer_loss(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
    return (logits(weights, alphas, batch).cos() * alphas["tables"][1]["outer"]).mean()


def stacked_inner_loss(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
    return torch.func.vmap(inner_loss, in_dims=(0, 0, None))(weights, alphas, batch)


def nonlinear(optimizer: InnerOptimizer, steps: int, *, stacked: bool = False) -> Case:
    """A smooth problem in float64 with nested weights and alphas; the losses ignore the alpha ``no``."""
    problem = BilevelProblem(inner_loss, outer_loss, optimizer, stacked_inner_loss if stacked else None)
    batches = list(draw(steps + 3, 4, 3, seed=9))
    state = problem.run(problem.init(WEIGHTS), ALPHAS, batches[:2]).end
    return Case(problem, ALPHAS, state, batches[2:-1], batches[-1])


def loop(task: Perturbation) -> Tensor:
    """SGE's projections by definition: follow every trajectory to its end, subtract the weights, take <., v>."""
    context = task.context
    found = []
    for point in task.points:
        other = context.problem.run(context.state, point, context.inner_batches).end
        delta = tree.subtract(other.weights, context.trajectory.end.weights)
        found.append(tree.dot(tree.scale(delta, 1 / task.smoothing), context.v))
    return torch.stack(found)


# -- optimizers, and their steps written out on vectors --------------------------------------------------------


@dataclass(frozen=True)
class OverriddenNesterov(SGD):
    """A subclass of SGD that overrides ``step`` and nothing else."""

    def step(self, state: InnerState, grad: Tree) -> InnerState:
        after = super().step(state, grad)
        momentum = after.slots["momentum"]
        moved = tree.add(tree.add(state.weights, grad, -self.lr), momentum, -self.lr * self.momentum)
        return replace(after, weights=moved)


@dataclass(frozen=True)
class TwoSlots:
    """Averages two momenta (as AggMo, arXiv:1804.00325); not a subclass of anything."""

    lr: float

    def init(self, weights: Tree) -> InnerState:
        copy = tree.clone(weights)
        return InnerState(copy, {"slow": tree.zeros_like(copy), "fast": tree.zeros_like(copy)})

    def step(self, state: InnerState, grad: Tree) -> InnerState:
        slots = {
            "slow": tree.add(grad, state.slots["slow"], 0.9),
            "fast": tree.add(grad, state.slots["fast"], 0.3),
        }
        both = tree.add(slots["slow"], slots["fast"])
        return InnerState(tree.add(state.weights, both, -self.lr / 2), slots, state.step + 1)


@dataclass(frozen=True)
class OnlySome(SGD):
    """Overrides ``step`` so that tensors differ: the first one moves half as far."""

    def step(self, state: InnerState, grad: Tree) -> InnerState:
        first, *others = tree.tensors(grad)
        return super().step(state, tree.rebuild(grad, [first / 2, *others]))


Written = Callable[[Tensor, dict[str, Tensor], Tensor, int], tuple[Tensor, dict[str, Tensor]]]
"""(weights, slots, gradient, number of the step from 1) -> (weights, slots), all vectors."""


def clip(grad: Tensor, limit: float | None) -> Tensor:
    return grad if limit is None else grad * torch.clamp(limit / (grad.norm() + 1e-6), max=1.0)


def written_sgd(optimizer: SGD, *, nesterov: bool = False, decay: float = 0.0) -> Written:
    def step(w: Tensor, slots: dict[str, Tensor], g: Tensor, t: int) -> tuple[Tensor, dict[str, Tensor]]:
        g = clip(g, optimizer.grad_clip) + decay * w
        b = optimizer.momentum * slots["momentum"] + g if slots else g
        direction = g + optimizer.momentum * b if nesterov else b
        return w - optimizer.lr * direction, {"momentum": b} if slots else {}

    return step


def written_adam(optimizer: Adam, *, l2: float = 0.0, decoupled: float = 0.0) -> Written:
    def step(w: Tensor, slots: dict[str, Tensor], g: Tensor, t: int) -> tuple[Tensor, dict[str, Tensor]]:
        g = clip(g, optimizer.grad_clip) + l2 * w
        m = 0.9 * slots["mean"] + 0.1 * g
        s = 0.999 * slots["square"] + 0.001 * g * g
        direction = (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + 1e-8)
        return w * (1 - optimizer.lr * decoupled) - optimizer.lr * direction, {"mean": m, "square": s}

    return step


def _two_slots(w: Tensor, slots: dict[str, Tensor], g: Tensor, t: int) -> tuple[Tensor, dict[str, Tensor]]:
    slow, fast = 0.9 * slots["slow"] + g, 0.3 * slots["fast"] + g
    return w - 0.1 * (slow + fast), {"slow": slow, "fast": fast}


def _only_some(w: Tensor, slots: dict[str, Tensor], g: Tensor, t: int) -> tuple[Tensor, dict[str, Tensor]]:
    halved = torch.cat([g[:6] / 2, g[6:]])
    b = 0.9 * slots["momentum"] + halved
    return w - 0.2 * b, {"momentum": b}


def optimizers() -> dict[str, tuple[InnerOptimizer, Written, float | None]]:
    """{name: (optimizer, its written-out step, its coefficient of L2 regularization or None)}."""
    plain, heavy = SGD(0.3), SGD(0.3, 0.9, weight_decay=0.05)
    clipped, loose = replace(heavy, grad_clip=0.05), replace(heavy, grad_clip=1e6)
    nesterov = replace(clipped, nesterov=True)
    overridden = OverriddenNesterov(0.1, 0.9)
    adam, adamw = Adam(0.05, weight_decay=0.03, grad_clip=0.05), AdamW(0.05, weight_decay=0.03)
    return {
        "sgd": (plain, written_sgd(plain), 0.0),
        "momentum": (heavy, written_sgd(heavy, decay=0.05), 0.05),
        "clipped": (clipped, written_sgd(clipped, decay=0.05), 0.05),
        "not-clipped": (loose, written_sgd(loose, decay=0.05), 0.05),
        "nesterov": (nesterov, written_sgd(nesterov, nesterov=True, decay=0.05), 0.05),
        "overridden-nesterov": (overridden, written_sgd(overridden, nesterov=True), 0.0),
        "adam": (adam, written_adam(adam, l2=0.03), 0.03),
        "adamw": (adamw, written_adam(adamw, decoupled=0.03), None),
        "two-slots": (TwoSlots(0.2), _two_slots, 0.0),
        "only-some": (OnlySome(0.2, 0.9), _only_some, 0.0),
    }


def by_autograd(case: Case, written: Written, last: int | None = None) -> tuple[Tensor, Tensor]:
    """(hypergradient, direct gradient) (p,) by autograd through the written-out steps; only the last if given."""
    alphas = tree.leaves(case.alphas)
    like = case.state.weights
    w = tree.flatten(like)
    slots = {name: tree.flatten(slot) for name, slot in case.state.slots.items()}
    for index, batch in enumerate(case.inner):
        if last is not None and len(case.inner) - index == last:
            w, slots = w.detach(), {name: slot.detach() for name, slot in slots.items()}
        live = w if w.requires_grad else w.detach().requires_grad_()
        loss = case.problem.inner_loss(tree.unflatten(live, like), alphas, batch)
        (grad,) = torch.autograd.grad(loss, live, create_graph=True)
        w, slots = written(live, slots, grad, case.state.step + index + 1)
    whole, direct = (
        torch.autograd.grad(
            case.problem.outer_loss(tree.unflatten(end, like), alphas, case.outer),
            tree.tensors(alphas),
            allow_unused=True,
            materialize_grads=True,
            retain_graph=True,
        )
        for end in (w, w.detach())
    )
    return tree.flatten(list(whole)), tree.flatten(list(direct))


# -- counting ----------------------------------------------------------------------------------------------------


class PassCounter:
    """Counts the passes through the losses of a problem, independently of the library."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    def problem(self, problem: BilevelProblem) -> BilevelProblem:
        """The same problem, counted."""
        counter = self

        class Counted(torch.autograd.Function):
            @staticmethod
            def forward(loss: Tensor) -> Tensor:
                return loss.clone()

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Tensor:
                counter.backward += passes()
                return grad

            @staticmethod
            def jvp(ctx: Any, tangent: Tensor) -> Tensor:
                return tangent.clone()

        def counted(loss: Any) -> Any:
            def call(weights: Any, alphas: Any, batch: Any) -> Tensor:
                counter.forward += passes()
                return Counted.apply(loss(weights, alphas, batch))

            return call

        return replace(problem, inner_loss=counted(problem.inner_loss), outer_loss=counted(problem.outer_loss))


def passes() -> int:
    """What a pass at this point counts: two in forward mode."""
    return 1 + any(level.key() == TransformType.Jvp for level in retrieve_all_functorch_interpreters())
