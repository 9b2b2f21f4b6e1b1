"""Compares every estimator on every module of the zoo with plain training by PyTorch's own means.

The reference is independent of sgenas: it makes the module again, writes softmax(alpha) into the buffers of its
choices, trains it by ``loss.backward()`` and ``torch.optim.SGD``, and takes central differences of what comes out.
"""

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrizations import _SpectralNorm
from zoo_modules import Batch, Entry

from sgenas.bilevel import (
    SGE,
    BilevelProblem,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    HypergradientResult,
    Neumann,
    Unrolled,
)
from sgenas.errors import SgenasError
from sgenas.optim import SGD
from sgenas.searching.second_derivatives import require_second_derivatives
from sgenas.spaces.modules import ModuleSpace
from sgenas.spaces.modules.choices import BaseChoice

LR, STEPS, TERMS = 0.1, 2, 3
OUTCOMES = ("works", "refused", "wrong", "raw error")


@dataclass(frozen=True)
class Outcome:
    """What an estimator makes of a module: one of OUTCOMES, and the message or the error."""

    kind: str
    detail: str = ""


class Plain:
    """Plain training of one module, and derivatives by differences."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.model = entry, entry.build().train()
        for module in self.model.modules():
            if isinstance(module, _SpectralNorm):
                module.eval()  # in a space it keeps its vectors
        self.choices = [module for module in self.model.modules() if isinstance(module, BaseChoice)]
        self.named = {name: w for name, w in self.model.named_parameters() if w.requires_grad}
        self.weights = list(self.named.values())
        self.buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.attributes = {
            module: {key: value for key, value in vars(module).items() if value is None or isinstance(value, int)}
            for module in self.model.modules()
        }
        self.start = self.flat(self.weights)
        draw = torch.Generator().manual_seed(2)
        shapes = {choice.name: len(choice.options) for choice in self.choices}
        self.alphas = {name: torch.randn(size, generator=draw, dtype=torch.float64) for name, size in shapes.items()}
        self.point = torch.cat(list(self.alphas.values()))
        *self.inner, self.outer = entry.batches(STEPS + 1)

    @staticmethod
    def flat(tensors: list[Tensor]) -> Tensor:
        parts = [torch.view_as_real(t.detach()) if t.is_complex() else t.detach() for t in tensors]
        return torch.cat([part.flatten().double() for part in parts])

    def seed_of(self, batch: Batch) -> int:
        return 10 + next(k for k, other in enumerate([*self.inner, self.outer]) if other is batch)

    def set(self, flat: Tensor, alphas: Tensor) -> None:
        mixing = dict(zip(self.alphas, alphas.split([len(a) for a in self.alphas.values()]), strict=True))
        with torch.no_grad():
            first = 0
            for weight in self.weights:
                view = torch.view_as_real(weight) if weight.is_complex() else weight
                view.copy_(flat[first : first + view.numel()].view(view.shape))
                first += view.numel()
            for choice in self.choices:
                choice.mixing = mixing[choice.name].softmax(0).to(choice.mixing.dtype)

    def reset(self) -> None:
        """Buffers and counters as at the start."""
        for module, found in self.attributes.items():
            module.__dict__.update(found)
        for name, buffer in self.model.named_buffers():
            if not name.endswith("mixing"):
                buffer.copy_(self.buffers[name])

    def loss(self, batch: Batch) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(self.seed_of(batch))
            return self.entry.loss(self.model, batch)

    def value(self, flat: Tensor, alphas: Tensor, batch: Batch) -> Tensor:
        self.set(flat, alphas)
        # a forward pass that differentiates needs grad mode, as in training
        return self.loss(batch).detach().double()

    def backward(self, batch: Batch) -> Tensor:
        self.model.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.loss(batch).backward()
        grads = [torch.zeros_like(w) if w.grad is None else w.grad.to_dense() for w in self.weights]
        return self.flat(grads)

    def gradient(self, flat: Tensor, alphas: Tensor, batch: Batch) -> Tensor:
        self.set(flat, alphas)
        return self.backward(batch)

    def trained(self, alphas: Tensor, start: Tensor | None = None, batches: list[Batch] | None = None) -> Tensor:
        """The weights after SGD from the start."""
        self.set(self.start if start is None else start, alphas)
        self.reset()
        optimizer = torch.optim.SGD(self.weights, lr=LR)
        for batch in self.inner if batches is None else batches:
            self.backward(batch)
            optimizer.step()
        return self.flat(self.weights)

    def along(self, function: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor) -> Tensor:
        """Derivative along a direction, by a central difference."""
        h = self.entry.h / max(1.0, direction.norm().item())
        return (function(point + h * direction) - function(point - h * direction)) / (2 * h)

    def slopes(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows: derivatives of a function of the alphas."""
        return torch.stack([self.along(function, self.point, u) for u in torch.eye(len(self.point)).double()])

    # -- references -------------------------------------------------------------------------------------------

    @functools.cached_property
    def end(self) -> Tensor:
        return self.trained(self.point)

    @functools.cached_property
    def before_end(self) -> Tensor:
        return self.trained(self.point, batches=self.inner[:-1])

    @functools.cached_property
    def v(self) -> Tensor:
        return self.gradient(self.trained(self.point), self.point, self.outer)

    @functools.cached_property
    def direct(self) -> Tensor:
        return self.slopes(lambda alphas: self.value(self.end, alphas, self.outer))

    @functools.cached_property
    def indirect(self) -> Tensor:
        """J^T v, J the derivative of trained weights."""
        return self.slopes(self.trained) @ self.v

    @functools.cached_property
    def truncated(self) -> Tensor:
        return self.mixed(self.before_end, self.inner[-1], -LR * self.v)

    @functools.cached_property
    def total(self) -> Tensor:
        return self.slopes(lambda alphas: self.value(self.trained(alphas), alphas, self.outer))

    def finite_difference(self, radius: float) -> Tensor:
        p = -LR * self.v
        epsilon = radius / p.norm()
        plus, minus = (
            self.slopes(lambda alphas, w=w: self.value(w, alphas, self.inner[-1]))
            for w in (self.before_end + epsilon * p, self.before_end - epsilon * p)
        )
        return (plus - minus) / (2 * epsilon)

    def curved(self, flat: Tensor, batch: Batch, v: Tensor) -> Tensor:
        """H v."""
        return self.along(lambda w: self.gradient(w, self.point, batch), flat, v)

    def mixed(self, flat: Tensor, batch: Batch, x: Tensor) -> Tensor:
        """M x."""
        return self.slopes(lambda alphas: self.gradient(flat, alphas, batch)) @ x

    @functools.cached_property
    def neumann(self) -> Tensor:
        term = x = self.v
        for _ in range(TERMS):
            term = term - LR * self.curved(self.end, self.inner[-1], term)
            x = x + term
        return -self.mixed(self.end, self.inner[-1], LR * x)

    @functools.cached_property
    def hessian(self) -> Tensor:
        eye = torch.eye(len(self.end)).double()
        columns = torch.stack([self.curved(self.end, self.inner[-1], u) for u in eye])
        return columns

    @functools.cached_property
    def damping(self) -> float:
        """Enough for a condition of less than 10, so that conjugate gradients converge."""
        hessian = (self.hessian + self.hessian.mT) / 2
        values = torch.linalg.eigvalsh(hessian)
        return 1.0 + math.ceil(max(0.0, -values[0].item(), values[-1].item() / 8))

    @functools.cached_property
    def conjugate_gradient(self) -> Tensor:
        shifted = self.hessian + self.damping * torch.eye(len(self.end)).double()
        return -self.mixed(self.end, self.inner[-1], torch.linalg.solve(shifted, self.v))


@dataclass(frozen=True)
class Case:
    """An estimator, made for a module, and the reference of its direct and indirect gradient."""

    estimator: Callable[[Plain], Estimator]
    reference: Callable[[Plain], Tensor]
    total: bool = False


def sge(computation: str) -> Callable[[Plain], Estimator]:
    # least squares in pairs from two pairs per alpha: all of the gradient, up to O(mu^2)
    return lambda plain: SGE(
        num_directions=4 * len(plain.point), smoothing=plain.entry.mu, directions="antithetic",
        aggregate="least-squares", computation=computation,
    )  # fmt: skip


def evolution(plain: Plain) -> Estimator:
    return EvolutionStrategies(num_directions=4, smoothing=plain.entry.mu, directions="antithetic")


def evolution_reference(plain: Plain) -> Tensor:
    """The same directions, with exact derivatives along them."""
    draws = torch.randn(2, len(plain.point), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (draws @ plain.total) @ draws / 2


def unrolled(route: str) -> Case:
    """With second derivatives by one route; Unrolled() chooses it."""
    return Case(lambda plain: Unrolled(hvp=route), lambda plain: plain.indirect)


CASES = {
    "first-order": Case(lambda plain: FirstOrder(), lambda plain: torch.zeros_like(plain.point)),
    "finite-difference": Case(lambda plain: FiniteDifference(), lambda plain: plain.finite_difference(0.01)),
    "sge sequential": Case(sge("sequential"), lambda plain: plain.indirect),
    "sge batched": Case(sge("batched"), lambda plain: plain.indirect),
    "unrolled": Case(lambda plain: Unrolled(), lambda plain: plain.indirect),
    "unrolled truncated": Case(lambda plain: Unrolled(truncate=1), lambda plain: plain.truncated),
    "neumann": Case(lambda plain: Neumann(max_hvps=TERMS, scale=LR), lambda plain: plain.neumann),
    "conjugate-gradient": Case(
        lambda plain: ConjugateGradient(max_hvps=60, tolerance=1e-9, damping=plain.damping),
        lambda plain: plain.conjugate_gradient,
    ),
    **{f"unrolled by {route}": unrolled(route) for route in ("reverse", "forward", "finite-difference")},
    "evolution-strategies": Case(evolution, evolution_reference, total=True),
}


class Searched:
    """The module as a bilevel problem, by ``ModuleSpace.bind``."""

    def __init__(self, entry: Entry, plain: Plain) -> None:
        self.entry, self.space = entry, ModuleSpace(entry.build(), dropout=True)
        self.weights = self.space.initial_weights()
        self.alphas = {name: plain.alphas[name].clone() for name in self.space.columns}

        def loss(weights: Any, alphas: Any, numbered: tuple[Batch, int]) -> Tensor:
            batch, seed = numbered
            return entry.loss(self.space.seeded(seed).bind(weights, alphas), batch)

        self.problem = BilevelProblem(loss, loss, SGD(lr=LR))
        self.inner = [(batch, plain.seed_of(batch)) for batch in plain.inner]
        self.outer = (plain.outer, plain.seed_of(plain.outer))

    def verify(self, estimator: Estimator) -> None:
        """What a search does at its start."""
        arguments = (self.inner[0][0], self.entry.loss, self.weights, self.alphas)
        self.space.verify(*arguments)
        require_second_derivatives(self.space, *arguments, estimator)

    def estimate(self, estimator: Estimator) -> HypergradientResult:
        state = self.problem.init(self.weights)
        return estimator(self.problem, state, self.alphas, self.inner, self.outer, seed=0)


def relative_error(found: Tensor, expected: Tensor, floor: float) -> float:
    return ((found - expected).norm() / expected.norm().clamp_min(floor)).item()


@functools.lru_cache(maxsize=2)
def plain_of(entry: Entry) -> Plain:
    return Plain(entry)


def outcome(entry: Entry, name: str, *, verify: bool = True) -> Outcome:
    """What the estimator makes of the module.

    Args:
        entry: The module.
        name: Of the estimator, a key of CASES.
        verify: Run the check first that a search runs at its start.
    """
    plain, case = plain_of(entry), CASES[name]
    estimator = case.estimator(plain)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            searched = Searched(entry, plain)
            if verify:
                searched.verify(estimator)
            before = {key: value.clone() for key, value in searched.weights.items()}
            torch.manual_seed(5)
            result = searched.estimate(estimator)
    except SgenasError as error:
        message = str(error)
        return Outcome("refused" if "\n" not in message else "raw error", message)
    except Exception as error:
        return Outcome("raw error", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    if not entry.reference:
        return Outcome("wrong", "a number, though there is no right one")
    for key, value in searched.weights.items():
        if not torch.equal(value, before[key]):
            return Outcome("wrong", f"the start weight {key} was changed")
    order = list(plain.alphas)
    direct, indirect = (torch.cat([part[name] for name in order]) for part in (result.direct, result.indirect))
    end = plain.flat([result.state.weights[name] for name in plain.named if name in result.state.weights])
    scale = 1e-3 * plain.direct.norm().item() + 1e-9
    checks = {"direct": (direct, plain.direct), "weights": (end, plain.end)}
    if case.total:
        checks["gradient"] = (direct + indirect, case.reference(plain))
    else:
        checks["indirect"] = (indirect, case.reference(plain))
    if end.shape != plain.end.shape:
        return Outcome("wrong", f"{len(end)} weights instead of {len(plain.end)}")
    for what, (found, expected) in checks.items():
        error = relative_error(found, expected, scale)
        if not error <= entry.rtol:
            return Outcome("wrong", f"{what}: relative error {error:.1e}")
    return Outcome("works")


def counts(table: dict[tuple[str, str], Outcome]) -> dict[str, int]:
    """{outcome: how often}."""
    return {kind: sum(found.kind == kind for found in table.values()) for kind in OUTCOMES}
