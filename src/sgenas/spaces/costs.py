"""What the parts of a cell cost in the network that is built of it, as plain tables."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sgenas.errors import GenotypeError
from sgenas.spaces.genotype import Genotype, existing_nodes
from sgenas.trees import Tree

QUANTITIES = ("params", "macs", "latency")
"""Parameters, multiply-adds, and measured milliseconds."""


@dataclass(frozen=True)
class CostTable:
    """The cost of a network as a sum over the operations of its cells:

        cost(genotype) = fixed[n] + sum over kinds, sum over kept (edge e, operation o) of values[kind][e, o]

    quantity: one of QUANTITIES. edges, operations: rows and columns of the tables. values: {kind: (E, O)},
    float64, each summed over all cells of that kind in the network. fixed: what does not depend on the
    operations, by the number of nodes that each kind's output joins (n, in the order of `values`): with fewer
    of them the cells are narrower. drops_nodes: whether a node that no operation leads to is left out of the
    network, with the edges that leave it (`existing_nodes`), as in the cells of DARTS; in NAS-Bench-201 all
    operations count.
    """

    quantity: str
    edges: tuple[tuple[int, int], ...]
    operations: tuple[str, ...]
    values: Mapping[str, Tensor]
    fixed: Mapping[tuple[int, ...], float]
    drops_nodes: bool

    def of(self, genotype: Genotype) -> float | None:
        """The cost of the network of a cell of this space; None where a cell is empty and there is none.

        Raises GenotypeError for an edge or an operation that the table does not have.
        """
        total, joined = 0.0, []
        for kind, values in self.values.items():
            cell = genotype[kind]
            there = existing_nodes(cell) if self.drops_nodes else range(cell.inputs, cell.inputs + cell.nodes)
            for edge in cell.edges:
                place = (edge.source, edge.target)
                if place not in self.edges or edge.operation not in self.operations:
                    raise GenotypeError(f"cell {kind} must be of this space, got edge {edge}")
                if edge.target in there and (edge.source < cell.inputs or edge.source in there):
                    row, column = self.edges.index(place), self.operations.index(edge.operation)
                    total += values[row, column].item()
            joined.append(len(set(cell.concat) & set(there)))
        return None if 0 in joined else self.fixed[tuple(joined)] + total


def expected_cost(table: CostTable, mixing: Tree) -> Tensor:
    """The searched part of a cost, expected: sum_kinds sum_e sum_o m[e, o] values[e, o] / its uniform value.

    mixing: {kind: (E, O)}, the space's own relaxation. The expectation is that of a cell which keeps *every*
    edge, each with an operation drawn with probability m (with sigmoids: each operation by itself; in
    PC-DARTS m is weighed by the edge, so that every node has one edge in the mean). Which edges a derivation
    keeps is not in it: that rule has no derivative. Divided by the value for m = 1 / O everywhere, so that 1
    means as costly as the undecided softmax. A 0-d tensor, differentiable in `mixing`; 0 where nothing has a
    cost.
    """
    uniform = sum(values.mean(dim=1).sum().item() for values in table.values.values())
    total = torch.zeros((), device=next(iter(mixing.values())).device)
    for kind, values in table.values.items() if uniform else ():
        total = total + (mixing[kind] * (values / uniform).to(mixing[kind])).sum()
    return total
