"""Says where an optimisation stopped being finite: which loss, in which inner step, along which direction."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sgenas.bilevel.projections import Perturbation
from sgenas.errors import DivergenceError


def require_finite(inner_losses: Sequence[Tensor], outer_loss: Tensor, place: str = "") -> None:
    """Raises DivergenceError naming the first loss that is not finite; `place`: on which trajectory.

    Waits for the device once.
    """
    if bool(torch.isfinite(torch.stack([*inner_losses, outer_loss])).all()):
        return
    _require_finite_inner(inner_losses, place)
    raise DivergenceError(f"outer_loss is {outer_loss.item()} after inner step {len(inner_losses)}{place}")


def require_finite_projections(task: Perturbation, projections: Tensor) -> None:
    """Raises DivergenceError for the first direction whose projection is not finite, with the inner step.

    projections: (Q,), one for each direction of the task. Waits for the device once; a trajectory is followed
    again only to find its step.
    """
    index = first_not_finite(projections)
    if index is None:
        return
    place = along(index, len(projections))
    again = task.problem.run(task.start, task.perturbed(task.directions[index]), task.batches)
    _require_finite_inner(again.losses, place)
    value = projections[index].item()
    raise DivergenceError(f"the projection is {value}{place}, though its inner losses are finite")


def first_not_finite(values: Tensor) -> int | None:
    """Index in (Q,), None where all are finite."""
    finite = torch.isfinite(values)
    return None if bool(finite.all()) else finite.tolist().index(False)


def along(index: int, count: int) -> str:
    """Names a trajectory by its direction; `index` counts from 0."""
    return f" along direction {index + 1} of {count}"


def _require_finite_inner(losses: Sequence[Tensor], place: str) -> None:
    for index, loss in enumerate(losses):
        if not bool(torch.isfinite(loss)):
            step = f"inner step {index + 1} of {len(losses)}"
            raise DivergenceError(f"inner_loss is {loss.item()} in {step}{place}")
