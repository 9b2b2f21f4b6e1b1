"""betty-ml's side of `torchopt_compare`: the same hypergradients by its Engine and two Problems."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from betty.configs import Config, EngineConfig  # type: ignore[import-not-found]
from betty.engine import Engine  # type: ignore[import-not-found]
from betty.problems import ImplicitProblem, IterativeProblem  # type: ignore[import-not-found]
from torch import Tensor, nn

from sgenas.tree import Tree

PAIRS = ("unrolled", "conjugate gradients", "neumann series")
"""What betty has: no zero order around a whole training."""


class Alphas(nn.Module):
    """The outer variables as a module's parameters."""

    def __init__(self, alphas: Tree) -> None:
        super().__init__()
        self.values = nn.ParameterList(nn.Parameter(value.clone()) for value in alphas.values())
        self.keys = list(alphas)

    def tree(self) -> Tree:
        return dict(zip(self.keys, self.values, strict=True))


def hypergradient(case: Any, name: str) -> Tensor:
    """(p,): what betty's outer problem gets after the inner steps of ``case``."""
    steps, names, found = len(case.inner), list(case.weights), []
    unrolled = name == "unrolled"

    class Inner(IterativeProblem if unrolled else ImplicitProblem):  # type: ignore[misc]
        def weights(self) -> Tree:
            return dict(zip(names, self.trainable_parameters(), strict=True))

        def training_step(self, batch: Sequence[Tensor]) -> Tensor:
            loss: Tensor = case.inner_loss(self.weights(), self.outer.module.tree(), batch)
            return loss

    class Outer(ImplicitProblem):
        def training_step(self, batch: Sequence[Tensor]) -> Tensor:
            loss: Tensor = case.outer_loss(self.inner.weights(), self.module.tree(), batch)
            return loss

        def custom_optimizer_step(self) -> None:
            found.append(torch.cat([value.grad.flatten() for value in self.module.values]))

    network = case.network(case.weights)
    optimizer = torch.optim.SGD(network.parameters(), case.optimizer.lr, case.optimizer.momentum)
    inner_settings: dict[str, Any] = {"unroll_steps": steps, "retain_graph": unrolled}
    if name == "conjugate gradients":
        inner_settings |= {"type": "cg", "cg_iterations": case.arguments.max_hvps}
    elif name == "neumann series":
        inner_settings |= {
            "type": "neumann",
            "neumann_iterations": case.arguments.max_hvps,
            "neumann_alpha": case.optimizer.lr,
        }
    logging.disable(logging.INFO)
    inner = Inner(
        "inner", Config(**inner_settings), module=network, optimizer=optimizer, train_data_loader=[case.inner[0]]
    )
    outer = Outer(
        "outer",
        Config(first_order=not unrolled, retain_graph=True),
        module=Alphas(case.alphas),
        train_data_loader=[case.outer],
    )
    engine = Engine(
        [inner, outer],
        EngineConfig(train_iters=steps, valid_step=steps + 1),
        {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}},
    )
    engine.run()
    return found[0]
