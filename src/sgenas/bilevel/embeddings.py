"""Embeddings whose gradients PyTorch changes on purpose, so that they are not the gradients of any function."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from sgenas import tree
from sgenas.bilevel.gradients import gradient
from sgenas.bilevel.problem import BilevelProblem
from sgenas.errors import InvalidValueError
from sgenas.functional import graph_nodes
from sgenas.tree import Tree

TOLERANCE = 1e-5
"""Largest relative distance of two gradients that differ by rounding."""
REMEDY = "use first-order, sge or evolution-strategies"


def require_true_gradients(problem: BilevelProblem, weights: Tree, alphas: Tree, batch: Any) -> None:
    """Refuses an inner loss with embeddings whose gradients are not those of the loss.

    PyTorch divides the gradients of rows by their frequency (``scale_grad_by_freq``), and drops that of the row
    ``padding_idx``. Second derivatives of such gradients are not symmetric, and those of frequencies are wrong. A
    padding row is fine if the loss does not depend on it, as with a mask. The passes are not counted; there are some
    until a batch has settled it.

    Raises:
        InvalidValueError: If there are such embeddings.
    """
    if problem.findings.true_gradients:
        return
    part = batch if problem.shards is None else problem.shards.one(batch, 0)
    with torch.enable_grad():
        w = tree.leaves(weights)
        loss = problem.inner_loss(w, tree.detach(alphas), part)
        nodes = [node for node in graph_nodes(loss) if node.name() in ("EmbeddingBackward0", "EmbeddingBagBackward0")]
        if any(node._saved_scale_grad_by_freq for node in nodes):
            raise InvalidValueError(f"inner_loss must be without scale_grad_by_freq; {REMEDY}", field="inner_loss")
        # (of bags, the padding is no part of the loss; none is -1, which is read as unsigned)
        padded = [n for n in nodes if n.name() == "EmbeddingBackward0" and 0 <= n._saved_padding_idx < 2**63]
        occurs = [bool((node._saved_indices == node._saved_padding_idx).any()) for node in padded]
        if any(occurs):
            with _WithoutPadding():
                other = problem.inner_loss(w, tree.detach(alphas), part)
            ours, true = (gradient(each, tree.tensors(w)) for each in (loss, other))
            if not tree.norm(tree.subtract(ours, true)) <= TOLERANCE * tree.norm(true):
                limit = "independent of the row padding_idx of embeddings, whose gradient PyTorch drops"
                raise InvalidValueError(f"inner_loss must be {limit}; mask it, or {REMEDY}", field="inner_loss")
    problem.findings.true_gradients = all(occurs)


class _WithoutPadding(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding:
            # the third argument, by position or by name
            args = (*args[:2], None, *args[3:]) if len(args) > 2 else args
            kwargs = {name: value for name, value in kwargs.items() if name != "padding_idx"}
        return func(*args, **kwargs)
