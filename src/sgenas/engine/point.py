"""Where a search stands, as a checkpoint keeps it: what searches for cells and in modules have alike."""

from typing import Any

import torch

from sgenas.bilevel import Cost
from sgenas.bilevel.inner import InnerState
from sgenas.engine.loop import same_shapes
from sgenas.engine.parts import to_device
from sgenas.trees import Tree


def to_dict(
    cost: Cost,
    state: InnerState,
    alphas: Tree,
    optimizer: torch.optim.Optimizer,
    directions: torch.Generator,
    memory: Tree | None,
) -> dict[str, Any]:
    """As plain data and tensors. optimizer: of the alphas; memory: the last estimate's indirect part."""
    return {
        "cost": [cost.forward, cost.backward, cost.inner_steps],
        "weights": state.weights,
        "buffers": state.buffers,
        "inner_step": state.step,
        "alphas": alphas,
        "alpha_optimizer": optimizer.state_dict(),
        "directions": directions.get_state(),
        "memory": memory,
    }


def go_to(
    found: dict[str, Any],
    state: InnerState,
    alphas: Tree,
    optimizer: torch.optim.Optimizer,
    directions: torch.Generator,
    device: torch.device,
) -> tuple[Cost, InnerState, Tree | None]:
    """Brings alphas, optimiser and directions, in place, to where `to_dict` found them; the rest of it.

    state: one of the shapes that are wanted. Raises ValueError for tensors of other names or shapes, and
    any of the usual errors for what is no such dictionary.
    """

    def fitted(expected: Tree, name: str) -> Tree:
        return same_shapes(expected, to_device(found[name], device))

    cost = Cost(*found["cost"])
    there = InnerState(
        fitted(state.weights, "weights"), fitted(state.buffers, "buffers"), found["inner_step"]
    )
    memory = None if found["memory"] is None else fitted(alphas, "memory")
    for name, alpha in fitted(alphas, "alphas").items():
        alphas[name].copy_(alpha)
    optimizer.load_state_dict(found["alpha_optimizer"])
    directions.set_state(found["directions"])
    return cost, there, memory
