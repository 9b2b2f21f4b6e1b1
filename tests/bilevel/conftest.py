from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from sgenas.bilevel import BilevelProblem


def passes() -> int:
    """What a pass at this point counts: two in forward mode, which carries a derivative along."""
    return 1 + any(level.key() == TransformType.Jvp for level in retrieve_all_functorch_interpreters())


class Counter:
    """Counts the passes through the losses of a problem."""

    def __init__(self) -> None:
        self.forward = self.backward = 0.0

    def problem(
        self, problem: BilevelProblem, share: Callable[[Any], float] = lambda batch: 1.0
    ) -> BilevelProblem:
        """The same problem, counted; share: of a whole pass, what one on that batch counts."""

        def count_backward(part: float) -> None:
            self.backward += part * passes()

        class Counted(torch.autograd.Function):
            @staticmethod
            def forward(loss: torch.Tensor, part: float) -> torch.Tensor:  # noqa: ARG004
                return loss.clone()

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG004
                ctx.part = inputs[1]

            @staticmethod
            def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
                count_backward(ctx.part)
                return grad, None

            @staticmethod
            def jvp(ctx: Any, tangent: torch.Tensor, part: None) -> torch.Tensor:  # noqa: ARG004
                return tangent.clone()

        def counted(loss: Any) -> Any:
            def call(weights: Any, alphas: Any, batch: Any) -> torch.Tensor:
                self.forward += share(batch) * passes()
                return Counted.apply(loss(weights, alphas, batch), share(batch))

            return call

        return BilevelProblem(
            counted(problem.inner_loss), counted(problem.outer_loss), problem.inner_optimizer
        )


@pytest.fixture
def counter() -> Counter:
    return Counter()
