import pytest
import torch

import sgenas
from sgenas.errors import InvalidValueError
from sgenas.spaces.derivation import edges_of, strongest_edges
from sgenas.spaces.genotype import DARTS_OPERATIONS, Edge


def test_edge_order_is_that_of_the_darts_code() -> None:
    edges = edges_of(4)
    assert len(edges) == 14
    assert [edges.index((0, target)) for target in range(2, 6)] == [0, 2, 5, 9]
    assert edges[9:] == ((0, 5), (1, 5), (2, 5), (3, 5), (4, 5))


def reference_rule(weights: list[list[float]], nodes: int) -> set[tuple[int, int, str]]:
    """The rule in words of methods.md: score by the largest non-none weight, keep two, best non-none op."""
    none = DARTS_OPERATIONS.index("none")
    found = set()
    start = 0
    for node in range(nodes):
        rows = weights[start : start + node + 2]
        start += node + 2
        scores = [max(w for k, w in enumerate(row) if k != none) for row in rows]
        order = sorted(range(len(rows)), key=lambda j: (-scores[j], j))
        for j in order[:2]:
            best = min((k for k in range(len(DARTS_OPERATIONS)) if k != none), key=lambda k: (-rows[j][k], k))
            found.add((j, node + 2, DARTS_OPERATIONS[best]))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_rule_on_random_tables_with_many_ties(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randint(0, 4, (14, 8), generator=generator) / 8
    cell = strongest_edges(mixing, DARTS_OPERATIONS, nodes=4)
    found = {(edge.source, edge.target, edge.operation) for edge in cell.edges}
    assert found == reference_rule(mixing.tolist(), 4)
    assert cell.concat == (2, 3, 4, 5)
    assert all(edge.operation != "none" for edge in cell.edges)


def test_none_is_never_chosen_however_strong() -> None:
    mixing = torch.zeros(14, 8)
    mixing[:, 0] = 1.0
    mixing[1, 5] = 0.1
    cell = strongest_edges(mixing, DARTS_OPERATIONS, nodes=4)
    assert Edge(1, 2, DARTS_OPERATIONS[5]) in cell.edges
    assert len(cell.edges) == 8


def test_a_space_derives_both_cells() -> None:
    space = sgenas.space("darts", channels=2, layers=3, operations="paper")
    alphas = space.initial_alphas(torch.Generator().manual_seed(0))
    alphas["reduce"][4, 2] = 5.0
    genotype = space.derive(alphas)
    assert [name for name, _ in genotype.cells] == ["normal", "reduce"]
    assert Edge(2, 3, space.operations[2]) in genotype["reduce"].edges


def test_wrong_shape() -> None:
    with pytest.raises(InvalidValueError, match=r"mixing must have shape \(14, 8\), got \(14, 7\)"):
        strongest_edges(torch.zeros(14, 7), DARTS_OPERATIONS, nodes=4)
