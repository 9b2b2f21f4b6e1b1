"""Bilevel problems whose hypergradient is known in closed form, to test estimators and to learn with.

Both give `exact(...)`, the two parts of Eq. 3 after N steps from a state, and `converged(...)`, the same at
w*(alpha). They hold several tensors of different shapes, so that nothing can rest on there being only one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel.problem import BilevelProblem
from sgenas.errors import require
from sgenas.optim import SGD, InnerOptimizer, InnerState
from sgenas.tree import TensorDict


def _require_linear(optimizer: SGD) -> None:
    require(optimizer.grad_clip is None, "SGD.grad_clip", "None for closed forms", optimizer.grad_clip)
    require(not optimizer.nesterov, "SGD.nesterov", "False for closed forms", optimizer.nesterov)


@dataclass(frozen=True)
class Quadratic:
    r"""A quadratic inner and outer loss, the inner one coupled linearly to the alphas.

        L_train(w, a; s) = w^T A w / 2 - w^T (B a + c + s)
        L_val(w, a; t)   = ||w - t||^2 / 2 + a^T C w + rho ||a||^2 / 2

    with w of n and a of p entries (all tensors flattened and joined), A (n, n) symmetric positive definite,
    B (n, p), C (p, n), c (n,); an inner batch s and an outer batch t are vectors of n entries. The steps are
    linear in a, so SGE has no smoothing error here and FiniteDifference none from its radius.
    """

    curvature: Tensor
    coupling: Tensor
    cross: Tensor
    offset: Tensor
    rho: float
    weights: TensorDict
    alphas: TensorDict

    @classmethod
    def random(cls, generator: torch.Generator, *, rho: float = 0.5) -> "Quadratic":
        """A random instance in float64 with n = 7 and p = 6; the eigenvalues of A lie in [0.5, 2.5]."""

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        weights = {"matrix": draw(2, 2), "vector": draw(3)}
        alphas = {"normal": draw(2, 2), "scalar": draw(), "reduce": draw(1)}
        n, p = tree.size(weights), tree.size(alphas)
        basis, _ = torch.linalg.qr(draw(n, n))
        eigenvalues = torch.linspace(0.5, 2.5, n, dtype=torch.float64)
        curvature = basis @ torch.diag(eigenvalues) @ basis.T
        return cls(curvature, draw(n, p), draw(p, n), draw(n), rho, weights, alphas)

    def problem(self, optimizer: InnerOptimizer) -> BilevelProblem:
        """The bilevel problem with this inner optimizer."""

        def inner_loss(weights: TensorDict, alphas: TensorDict, batch: Tensor) -> Tensor:
            w, a = tree.flatten(weights), tree.flatten(alphas)
            return w @ self.curvature @ w / 2 - w @ (self.coupling @ a + self.offset + batch)

        def outer_loss(weights: TensorDict, alphas: TensorDict, batch: Tensor) -> Tensor:
            w, a = tree.flatten(weights), tree.flatten(alphas)
            return (w - batch).square().sum() / 2 + a @ self.cross @ w + self.rho * a.square().sum() / 2

        return BilevelProblem(inner_loss, outer_loss, optimizer)

    def exact(
        self, optimizer: SGD, state: InnerState, inner_batches: Sequence[Tensor], outer_batch: Tensor
    ) -> tuple[TensorDict, TensorDict]:
        r"""(direct, indirect) after len(inner_batches) steps from `state`, at `self.alphas`.

        With z = (w, b), b the momentum buffer, a step is z' = T z + S (B a + c + s), where H = A + wd I,
        T = [[I - lr H, -lr m I], [H, m I]], S = [[lr I], [-I]]; so d z^N / d a = (I - T^N)(I - T)^-1 S B.
        """
        _require_linear(optimizer)
        n = len(self.offset)
        eye = torch.eye(n, dtype=self.offset.dtype)
        hessian = self.curvature + optimizer.weight_decay * eye
        top = torch.cat([eye - optimizer.lr * hessian, -optimizer.lr * optimizer.momentum * eye], dim=1)
        transition = torch.cat([top, torch.cat([hessian, optimizer.momentum * eye], dim=1)])
        source = torch.cat([optimizer.lr * eye, -eye])

        a = tree.flatten(self.alphas)
        buffers = tree.flatten(state.slots["momentum"]) if state.slots else torch.zeros_like(self.offset)
        z = torch.cat([tree.flatten(state.weights), buffers])
        for batch in inner_batches:
            z = transition @ z + source @ (self.coupling @ a + self.offset + batch)
        full = torch.eye(2 * n, dtype=self.offset.dtype)
        power = torch.linalg.matrix_power(transition, len(inner_batches))
        jacobian = ((full - power) @ torch.linalg.solve(full - transition, source @ self.coupling))[:n]
        return self._parts(z[:n], jacobian, outer_batch)

    def converged(self, optimizer: SGD, inner_batch: Tensor, outer_batch: Tensor) -> tuple[TensorDict, TensorDict]:
        """(direct, indirect) at w*(a) = H^-1 (B a + c + s), the fixed point of steps on one batch."""
        _require_linear(optimizer)
        hessian = self.curvature + optimizer.weight_decay * torch.eye(len(self.offset), dtype=torch.float64)
        jacobian = torch.linalg.solve(hessian, self.coupling)
        weights = jacobian @ tree.flatten(self.alphas) + torch.linalg.solve(hessian, self.offset + inner_batch)
        return self._parts(weights, jacobian, outer_batch)

    def _parts(self, weights: Tensor, jacobian: Tensor, outer_batch: Tensor) -> tuple[TensorDict, TensorDict]:
        a = tree.flatten(self.alphas)
        direct = self.cross @ weights + self.rho * a
        indirect = jacobian.T @ (weights - outer_batch + self.cross.T @ a)
        return tree.unflatten(direct, self.alphas), tree.unflatten(indirect, self.alphas)


@dataclass(frozen=True)
class WeightDecay:
    r"""Learning the decay of every single weight: nonlinear in the alphas, still solvable.

        L_train(w, a; s) = sum_i [ d_i w_i^2 / 2 - (c_i + s_i) w_i + exp(a_i) w_i^2 / 2 ]
        L_val(w, a; t)   = ||w - t||^2 / 2

    d, c, w, a of n entries, an inner batch s and an outer batch t vectors of n; for steps of plain SGD on one
    repeated batch. Since w^N is not linear in a, SGE's smoothing error shows: a projection's falls as mu.
    """

    curvature: Tensor
    offset: Tensor
    weights: TensorDict
    alphas: TensorDict

    @classmethod
    def random(cls, generator: torch.Generator, *, size: int = 4) -> "WeightDecay":
        """A random instance in float64 with `size` weights, d_i in [0.5, 1.5]."""

        def draw() -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        curvature = 0.5 + torch.rand(size, generator=generator, dtype=torch.float64)
        return cls(curvature, draw(), {"w": draw()}, {"log_decay": 0.5 * draw()})

    def problem(self, optimizer: InnerOptimizer) -> BilevelProblem:
        """The bilevel problem with this inner optimizer."""

        def inner_loss(weights: TensorDict, alphas: TensorDict, batch: Tensor) -> Tensor:
            w, decay = weights["w"], alphas["log_decay"].exp()
            return ((self.curvature + decay) * w.square() / 2 - (self.offset + batch) * w).sum()

        def outer_loss(weights: TensorDict, alphas: TensorDict, batch: Tensor) -> Tensor:
            return (weights["w"] - batch).square().sum() / 2

        return BilevelProblem(inner_loss, outer_loss, optimizer)

    def exact(
        self,
        optimizer: SGD,
        state: InnerState,
        steps: int,
        inner_batch: Tensor,
        outer_batch: Tensor,
        alphas: TensorDict | None = None,
    ) -> tuple[TensorDict, TensorDict]:
        r"""(direct, indirect) after `steps` steps on one batch from `state`, at `alphas` (`self.alphas`).

        With k = d + exp(a), m = 1 - lr k and w* = (c + s) / k:  w^N = m^N w^0 + (1 - m^N) w*,  so
        d w^N / d a = exp(a) [ -N lr m^(N-1) (w^0 - w*) - (1 - m^N) w* / k ].
        """
        _require_linear(optimizer)
        plain = not optimizer.momentum and not optimizer.weight_decay
        require(plain, "optimizer", "plain SGD(lr)", optimizer)
        decay = (alphas or self.alphas)["log_decay"].exp()
        stiffness = self.curvature + decay
        factor = 1 - optimizer.lr * stiffness
        fixed_point = (self.offset + inner_batch) / stiffness
        start = state.weights["w"]
        end = factor**steps * start + (1 - factor**steps) * fixed_point
        slope = -steps * optimizer.lr * factor ** (steps - 1) * (start - fixed_point)
        jacobian = decay * (slope - (1 - factor**steps) * fixed_point / stiffness)
        direct = torch.zeros_like(decay)
        return {"log_decay": direct}, {"log_decay": jacobian * (end - outer_batch)}

    def converged(self, inner_batch: Tensor, outer_batch: Tensor) -> tuple[TensorDict, TensorDict]:
        """(direct, indirect) at w* = (c + s) / (d + exp(a)): d w* / d a = -exp(a) w* / (d + exp(a))."""
        decay = self.alphas["log_decay"].exp()
        fixed_point = (self.offset + inner_batch) / (self.curvature + decay)
        jacobian = -decay * fixed_point / (self.curvature + decay)
        return {"log_decay": torch.zeros_like(decay)}, {"log_decay": jacobian * (fixed_point - outer_batch)}
