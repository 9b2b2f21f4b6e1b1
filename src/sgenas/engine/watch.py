"""What is watched in a search: alphas, true accuracies, and the signs of a collapse; when to stop."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sgenas.spaces import AccuracyTable, Genotype
from sgenas.spaces.nasbench201_table import COLUMNS
from sgenas.spaces.supernet import SupernetSpace
from sgenas.trees import Tree

WINDOW = 5
RATIO = 1.3


def skip_connections(genotype: Genotype) -> dict[str, int]:
    """{cell: number of skip connections}: many of them are the mark of a collapsed search."""
    return {
        name: sum(edge.operation == "skip_connect" for edge in cell.edges) for name, cell in genotype.cells
    }


def edge_entropies(mixing: Tree) -> dict[str, Tensor]:
    """{cell: (E,)}: entropy of each edge's weights, brought to sum 1, as a share of the largest possible.

    -sum_k p_k log p_k / log O: 1 where all O operations weigh the same, 0 where one has all the weight. Of
    the weights (O,) of a single edge: a 0-d tensor.
    """
    found = {}
    for kind, table in mixing.items():
        shares = table.detach() / table.detach().sum(dim=-1, keepdim=True)
        entropy = -(shares * shares.clamp_min(1e-30).log()).sum(dim=-1)
        found[kind] = entropy / max(math.log(table.shape[-1]), 1e-30)
    return found


def early_stop(measured: Sequence[tuple[int, float]], earliest: int) -> int | None:
    """The epoch to go back to when the eigenvalue has risen too fast; None while it has not.

    measured: (epoch, largest eigenvalue of the outer loss' Hessian in the alphas), in order. The rule of
    Zela et al. (arXiv:1909.09656): with m(i) the mean of the WINDOW = 5 measurements up to the i-th, stop at
    i when m(i) / m(i - 4) > RATIO = 1.3, and take the cell of measurement i - 4; not if that epoch lies
    before `earliest`. A ratio to an average that is not positive says nothing and never stops.
    """
    back = len(measured) - WINDOW
    if back < WINDOW - 1:
        return None
    now, then = (
        sum(value for _, value in measured[last - WINDOW + 1 : last + 1]) / WINDOW
        for last in (len(measured) - 1, back)
    )
    epoch = measured[back][0]
    return epoch if then > 0 and now > RATIO * then and epoch >= earliest else None


def alpha_arrays(space: SupernetSpace, history: Sequence[Tree]) -> dict[str, Any]:
    """What alphas.npz holds: raw alphas, mixing weights and entropies of each table at every moment.

    history: alphas before the first epoch and after each, (E, O) by table.
    """
    arrays: dict[str, Any] = {
        "epoch": np.arange(len(history)),
        "operations": np.array(space.operations),
        "edges": np.array(space.edges),
    }
    mixing = [space.mixing(alphas) for alphas in history]
    for name in history[0]:
        arrays[name] = np.stack([alphas[name].cpu().numpy() for alphas in history])
    entropies = [edge_entropies(weights) for weights in mixing]
    for name in mixing[0]:
        arrays[f"{name}_mixing"] = np.stack([weights[name].cpu().numpy() for weights in mixing])
        arrays[f"{name}_entropy"] = np.stack([edges[name].cpu().numpy() for edges in entropies])
    return arrays


def true_accuracies(table: AccuracyTable, genotype: Genotype) -> dict[str, float]:
    """What a table of true accuracies says of a cell: accuracy, rank and regret on each of its data sets."""
    row: dict[str, float] = {}
    for name, accuracy in table.query(genotype).items():
        column = COLUMNS[name].removesuffix("_test")
        row[f"true_{column}"] = accuracy
        row[f"rank_{column}"] = table.rank(genotype, name)
        row[f"regret_{column}"] = table.regret(genotype, name)
    return row
