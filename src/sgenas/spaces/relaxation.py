"""From raw alphas to mixing weights: the continuous relaxation of the choice of an operation."""

from sgenas.trees import Tree


def softmax(alphas: Tree) -> Tree:
    """Eq. 1: each table (edges, operations) becomes beta = softmax over the operations of an edge."""
    return {name: table.softmax(dim=-1) for name, table in alphas.items()}
