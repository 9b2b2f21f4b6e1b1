"""Before and after a module search: a check of the loss, and statistics of batch normalization."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sgenas import tree
from sgenas.errors import InvalidValueError
from sgenas.spaces.modules.space import ModuleSpace
from sgenas.tree import TensorDict


def check_loss(
    space: ModuleSpace, loss: Callable[[Any, Any], Tensor], weights: TensorDict, alphas: TensorDict, batch: Any
) -> None:
    """Runs the loss twice on one batch, and differentiates it.

    Args:
        space: The space.
        loss: ``loss(model, batch)``.
        weights: Weights of the supernet.
        alphas: Architecture parameters.
        batch: A batch of the training data.

    Raises:
        InvalidValueError: If the loss is not a 0-d tensor, a buffer changes, two passes differ, or a choice
            has no part in the loss.
    """
    buffers = {name: tensor.clone() for name, tensor in space.buffers()}
    alphas = tree.leaves(alphas)
    value = loss(space.bind(weights, alphas), batch)
    if not isinstance(value, Tensor) or value.ndim:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidValueError(f"loss must return a 0-d tensor, got {got}", field="loss")
    for name, tensor in space.buffers():
        if not torch.equal(tensor, buffers[name]):
            raise InvalidValueError(
                f"buffer {name!r} of the model must not change in a pass; keep such state elsewhere", field="model"
            )
    again = loss(space.bind(weights, alphas), batch)
    if not torch.allclose(value, again, rtol=1e-5, atol=1e-8, equal_nan=True):
        raise InvalidValueError(
            f"loss must be the same for the same batch, got {value.item()} and {again.item()}; dropout is off"
            " during the search, put other random numbers into the batch",
            field="loss",
        )
    for name, alpha in alphas.items():
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, [alpha], retain_graph=True, allow_unused=True)
        if gradient is None:
            raise InvalidValueError(f"choice {name!r} must affect the loss, but does not on a batch", field="loss")


def calibrate_batch_norm(model: nn.Module, passes: Callable[[nn.Module], None]) -> None:
    """Sets the running statistics of batch normalization to their means over all batches.

    For a derived module with the weights of the supernet, whose running statistics the search did not update.

    Args:
        model: The derived module, changed in place; its modes are restored.
        passes: Runs the model on the training data.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not norms:
        return
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    # dropout off, so that the statistics are those of the derived module in use
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        passes(model)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, training in modes:
        module.training = training
