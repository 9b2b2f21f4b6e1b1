"""The best choice of one option from each of several groups within budgets, exactly.

The multiple-choice knapsack problem: each group has options with a score and costs. Take one option from each
group so that the total score is largest and no total cost exceeds its limit. Solved by dynamic programming
over the groups. Of the partial choices it keeps those that are undominated (no other one is at least as good
in score and in every cost), can still be completed within the limits, and may still beat the best complete
choice found so far, by the Lagrangian bound (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004,
chapter 11). No step drops every optimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pick = tuple[tuple[str, int, int], ...]
"""What an option selects: (table, row, column) of each operation."""
HALVINGS, ROUNDS = 60, 3
"""Effort of the search for good prices, which affect the speed and not the result."""


@dataclass(frozen=True)
class Options:
    """n options of a group, or n partial choices: costs (n, budgets), scores (n,), and their picks."""

    costs: Floats
    scores: Floats
    picks: tuple[Pick, ...]

    def __len__(self) -> int:
        return len(self.picks)

    def taken(self, indices: NDArray[np.intp]) -> "Options":
        """The options at ``indices``."""
        return Options(
            self.costs[indices], self.scores[indices], tuple(self.picks[index] for index in indices.tolist())
        )


def single(costs: Sequence[float] | Floats, score: float = 0.0, pick: Pick = ()) -> Options:
    """One option."""
    return Options(np.array([costs], dtype=np.float64), np.array([score]), (pick,))


def joined(parts: Sequence[Options]) -> Options:
    """The undominated options of all parts (at least one part)."""
    together = Options(
        np.concatenate([part.costs for part in parts]),
        np.concatenate([part.scores for part in parts]),
        tuple(pick for part in parts for pick in part.picks),
    )
    return together.taken(undominated(together.costs, together.scores))


def merged(first: Options, second: Options) -> Options:
    """The undominated sums of an option of ``first`` and one of ``second``."""
    costs, scores = _sums(first, second)
    return _pairs(first, second, costs, scores, undominated(costs, scores))


def undominated(costs: Floats, scores: Floats) -> NDArray[np.intp]:
    """Indices of the undominated options; of equal ones the first."""
    # by decreasing score, then increasing costs: an option comes after those that dominate it
    order = np.lexsort((*costs.T[::-1], -scores))
    if costs.shape[1] == 1:
        ranked = costs[order, 0]
        lowest = np.minimum.accumulate(np.concatenate(([np.inf], ranked[:-1])))
        return order[ranked < lowest]
    kept: list[int] = []
    front = np.empty((len(order), costs.shape[1]))
    for index in order.tolist():
        if not (front[: len(kept)] <= costs[index]).all(axis=1).any():
            front[len(kept)] = costs[index]
            kept.append(index)
    return np.array(kept, dtype=np.intp)


def cheapest(groups: Sequence[Options]) -> Floats:
    """The lowest total cost of any choice for each budget, (budgets,)."""
    return np.sum([group.costs.min(axis=0) for group in groups], axis=0)


def best_choice(groups: Sequence[Options], limits: Floats, floor: float = -np.inf) -> tuple[float, Pick] | None:
    """(score, picks) of the best choice within the limits (budgets,) and above ``floor``, or None; costs are >= 0."""
    least = [cheapest(groups[index:]) for index in range(len(groups))] + [np.zeros(len(limits))]
    if (least[0] > limits).any() or sum(group.scores.max() for group in groups) <= floor:
        return None
    prices, known = _prices(groups, limits)
    beaten = max(known, floor)
    if beaten > -np.inf:
        # keep choices as good as the best known one, in spite of rounding
        beaten -= 1e-9 * (1 + abs(beaten))
    relaxed = [(group.scores - group.costs @ prices).max() for group in groups]
    partial = single(np.zeros(len(limits)))
    for index, group in enumerate(groups):
        costs, scores = _sums(partial, group)
        bound = scores + (limits - costs) @ prices + sum(relaxed[index + 1 :])
        open_ = np.flatnonzero(((costs + least[index + 1]) <= limits).all(axis=1) & (bound >= beaten))
        kept = open_[undominated(costs[open_], scores[open_])]
        if len(kept) == 0:
            return None
        partial = _pairs(partial, group, costs, scores, kept)
    winner = int(partial.scores.argmax())
    score = float(partial.scores[winner])
    return (score, partial.picks[winner]) if score > floor else None


def _sums(first: Options, second: Options) -> tuple[Floats, Floats]:
    costs = first.costs[:, None] + second.costs[None]
    return costs.reshape(-1, costs.shape[2]), (first.scores[:, None] + second.scores[None]).reshape(-1)


def _pairs(first: Options, second: Options, costs: Floats, scores: Floats, kept: NDArray[np.intp]) -> Options:
    rows, columns = np.divmod(kept, len(second))
    picks = tuple(
        first.picks[row] + second.picks[column] for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    )
    return Options(costs[kept], scores[kept], picks)


def _prices(groups: Sequence[Options], limits: Floats) -> tuple[Floats, float]:
    """A price (budgets,) for each cost, and the score of the best complete choice found meanwhile (or -inf).

    Any prices >= 0 bound the score of every choice within the limits from above, by sum_g max(score - price
    cost) + price limit. Bisection brings each price in turn to where that bound is lowest.
    """
    prices = np.zeros(len(limits))
    best = -np.inf

    def over() -> Floats:
        nonlocal best
        taken = [int((group.scores - group.costs @ prices).argmax()) for group in groups]
        pairs = list(zip(groups, taken, strict=True))
        cost = np.sum([group.costs[index] for group, index in pairs], axis=0)
        if (cost <= limits).all():
            best = max(best, float(sum(group.scores[index] for group, index in pairs)))
        return cost > limits

    spread = sum(float(np.ptp(group.scores)) for group in groups) or 1.0
    largest = np.sum([group.costs.max(axis=0) for group in groups], axis=0)
    for _ in range(ROUNDS if len(limits) > 1 else 1):
        for index, most in enumerate(largest.tolist()):
            low, high = 0.0, 1e4 * spread / (most or 1.0)
            prices[index] = low
            if not over()[index]:
                continue
            for _ in range(HALVINGS):
                prices[index] = (low + high) / 2
                low, high = (prices[index], high) if over()[index] else (low, prices[index])
            prices[index] = high
            over()
    return prices, best
