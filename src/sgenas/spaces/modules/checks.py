"""Before and after a module search: a check of the model, and statistics of batch normalization."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from sgenas import tree
from sgenas.errors import InvalidValueError, one_line
from sgenas.functional import Functional, evaluating, graph_nodes
from sgenas.losses import Loss
from sgenas.spaces.modules.choices import BaseChoice
from sgenas.spaces.modules.space import ModuleSpace
from sgenas.tree import TensorDict

SEED = 0
"""Of what the module draws in the check."""


def verify(
    space: ModuleSpace, batch: Any, loss: Loss, weights: TensorDict | None = None, alphas: TensorDict | None = None
) -> None:
    """See `ModuleSpace.verify`."""
    given, moved, alphas = _near(space, weights, alphas)
    w, a = tree.leaves(moved), tree.leaves(alphas)
    outputs: list[Tensor] = []

    def model(*args: Any, **kwargs: Any) -> Any:
        found = space.seeded(SEED).bind(w, a)(*args, **kwargs)
        outputs.extend(leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor))
        return found

    with torch.no_grad():
        # what the module keeps of this pass must not be seen in the next ones
        _scalar(loss(space.seeded(SEED).bind(tree.detach(given), tree.detach(a)), batch))
    value = _scalar(loss(model, batch))
    _refuse_other_weights(space, outputs, [*w.values(), *a.values(), *pytree.tree_leaves(batch)])
    again = _scalar(loss(space.seeded(SEED).bind(w, a), batch))
    if not _close(value, again):
        raise InvalidValueError(
            f"loss must be the same for the same batch, got {value.item()} and {again.item()}; put random numbers that"
            " it draws into the batch, and keep no state from pass to pass",
            field="loss",
        )
    ours = _gradients(value, w | a)
    for name, gradient in ours.items():
        if name in a and gradient is None:
            raise InvalidValueError(f"choice {name!r} must affect the loss, but does not on a batch", field="loss")
    # in the plain copy nothing is replaced, so a recomputed part or a stale output sees the same weights
    own = tree.leaves(a)
    plain = _plain_copy(space, moved, own)
    same = _scalar(loss(lambda *args, **kwargs: Functional(plain)({}, args, kwargs, SEED), batch))
    parameters = {name: parameter for name, parameter in plain.named_parameters() if name in w}
    _compare({"loss": value.detach(), **ours}, {"loss": same.detach(), **_gradients(same, parameters | own)})


def _near(
    space: ModuleSpace, weights: TensorDict | None, alphas: TensorDict | None
) -> tuple[TensorDict, TensorDict, TensorDict]:
    """Given weights, weights moved by a part of themselves (so that they keep their signs), alphas; as the space has
    them in dtype and device."""
    own = space.initial_weights()
    given = own if weights is None else tree.map(lambda w, like: w.detach().to(like), weights, own)
    draw = torch.Generator().manual_seed(SEED)
    moved = tree.map(lambda w: w * (1 + 0.01 * torch.randn(w.shape, generator=draw)).to(w), given)
    like = next(iter(moved.values()))
    alphas = {name: torch.zeros(shape) for name, shape in space.shapes.items()} if alphas is None else alphas
    return given, moved, {name: alpha.detach().to(like.device, like.real.dtype) for name, alpha in alphas.items()}


def _plain_copy(space: ModuleSpace, weights: TensorDict, alphas: TensorDict) -> nn.Module:
    """A copy of the supernet that holds these weights and the mixing weights of ``alphas``."""
    plain, mixing = space.supernet(), space.mixing(alphas)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    for choice in plain.modules():
        if isinstance(choice, BaseChoice):
            choice._buffers["mixing"] = mixing[choice.name]
    return plain


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidValueError(f"loss must return a 0-d tensor, got {got}", field="loss")
    return value


def _gradients(value: Tensor, leaves: TensorDict) -> dict[str, Tensor | None]:
    """d value / d leaves; None where there is no dependence."""
    if not value.requires_grad:
        return dict.fromkeys(leaves)
    try:
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:
        message = f"model must be differentiable in its weights, got: {one_line(error)}"
        raise InvalidValueError(message, field="model") from None
    return dict(zip(leaves, found, strict=True))


def _refuse_other_weights(space: ModuleSpace, outputs: list[Tensor], passed: list[Any]) -> None:
    """Raises InvalidValueError if outputs depend on a trainable tensor that was not passed."""
    known = {id(tensor) for tensor in passed}
    for leaf in (node.variable for node in graph_nodes(*outputs) if hasattr(node, "variable")):
        # (a pass may also make leaves of its own, to differentiate inside)
        holder = "" if id(leaf) in known else _holder(space, leaf)
        if holder or (id(leaf) not in known and isinstance(leaf, nn.Parameter)):
            raise InvalidValueError(
                f"model uses a trainable tensor of shape {tuple(leaf.shape)} that is no parameter of the space"
                f"{holder}, so it would not be trained; make it an attribute of a module (or an"
                " nn.ParameterList) and reach it through self, or call requires_grad_(False) on it",
                field="model",
            )


def _holder(space: ModuleSpace, leaf: Tensor) -> str:
    """Where a tensor is held outside of parameters, if it can be found."""
    for path, module in space.named_modules():
        for name, value in vars(module).items():
            place = f"{path}.{name}".removeprefix(".")
            if name not in ("_parameters", "_buffers", "_modules"):
                if any(each is leaf for each in pytree.tree_leaves(value)):
                    return f" (in {place!r})"
                if getattr(value, "__closure__", None):
                    return f" (perhaps through the function {place!r}, which keeps the module it was made in)"
    return ""


def _compare(ours: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    gradients = [each for name, each in expected.items() if each is not None and name != "loss"]
    largest = max((_norm(each) for each in gradients), default=0.0)
    for name, right in expected.items():
        left = ours[name]
        if right is not None and not _close(torch.zeros_like(right) if left is None else left, right, largest):
            what = "loss" if name == "loss" else f"gradient of {name!r}"
            raise InvalidValueError(
                f"{what} must be that of a plain copy of the model with the same weights, but differs; does the model"
                " keep weights or outputs somewhere else than in its parameters?",
                field="model",
            )


def _norm(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(torch.where(torch.isfinite(tensor), tensor, 0)).item()


def _close(left: Tensor, right: Tensor, scale: float = 0.0) -> bool:
    """Whether two computations of one value agree, up to the rounding of their type at its size or ``scale``."""
    same = torch.equal(torch.isfinite(left), torch.isfinite(right))
    return same and _norm(left - right) <= math.sqrt(torch.finfo(right.dtype).eps) * max(_norm(right), scale)


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
    momenta = [norm.momentum for norm in norms]
    # dropout off, so that the statistics are those of the derived module in use
    with evaluating(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        passes(model)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
