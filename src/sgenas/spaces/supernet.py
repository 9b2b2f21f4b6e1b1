"""What search spaces do with their supernets: fill them, relax the alphas, run them for one or many."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgenas import trees
from sgenas.errors import GenotypeError
from sgenas.spaces import initial, relaxation
from sgenas.spaces.derivation import Rule
from sgenas.spaces.genotype import Genotype
from sgenas.trees import Tree


def stacked_cross_entropy(logits: Tensor, labels: Tensor, factors: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of each of M members, (M,), from logits (M, B, classes) and labels (B,).

    factors: (B,), what each image's cross-entropy is multiplied by; 1 if not given.
    """
    members = len(logits)
    each = F.cross_entropy(logits.flatten(0, 1), labels.repeat(members), reduction="none")
    each = each.reshape(members, -1)
    return (each if factors is None else factors * each).mean(dim=1)


class SupernetSpace:
    """Base of the search spaces. The network takes (images, mixing weights) and holds no alphas.

    kinds: names of the cells. edges: (source, target) of the rows of an alpha table; operations: its columns;
    nodes: computed ones of a cell.
    """

    supernet: nn.Module
    kinds: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    operations: tuple[str, ...]
    nodes: int

    def _adopt(self, network: nn.Module, generator: torch.Generator | None) -> None:
        """Makes a network without storage the space's own, first weights drawn (by default with seed 0)."""
        self.supernet = network.to_empty(device="cpu")
        self.supernet.load_state_dict(self.initial_weights(generator or torch.Generator().manual_seed(0)))

    def initial_weights(self, generator: torch.Generator) -> Tree:
        """Fresh weights on the CPU, drawn as PyTorch draws them by default.

        Convolutions and linear layers: uniform in +-1 / sqrt(fan_in); normalisation: scale 1, shift 0.
        """
        return initial.initial_weights(self.supernet, generator)

    def initial_alphas(self, generator: torch.Generator) -> Tree:
        """1e-3 N(0, 1) for every entry, as in the DARTS code and AutoDL's; on the CPU."""
        shape = (len(self.edges), len(self.operations))
        return {kind: 1e-3 * torch.randn(shape, generator=generator) for kind in self.kinds}

    @property
    def rule(self) -> Rule:
        """What `derive` maximises, for a derivation within a budget."""
        raise NotImplementedError

    def derive(self, alphas: Tree) -> Genotype:
        """The cell of the moment."""
        raise NotImplementedError

    def mixing(self, alphas: Tree) -> Tree:
        """Mixing weights of raw alphas: softmax over the operations of each edge (Eq. 1)."""
        return relaxation.softmax(alphas)

    def logits(self, weights: Tree, alphas: Tree, images: Tensor) -> Tensor:
        """(B, classes) for images (B, input_channels, H, W) in floats: pure, differentiable in all three."""
        return self.mixed_logits(weights, self.mixing(alphas), images)

    def mixed_logits(self, weights: Tree, mixing: Tree, images: Tensor) -> Tensor:
        """`logits` for given mixing weights, {kind: (E, O)}."""
        return torch.func.functional_call(self.supernet, weights, (images, mixing))

    def stacked_logits(self, weights: Tree, alphas: Tree, images: Tensor) -> Tensor:
        """(M, B, classes): the `logits` of M members at once, every tensor of both trees (M, ...)."""
        flat = trees.map_tree(lambda tensor: tensor.flatten(0, 1), weights)
        return torch.func.functional_call(self.supernet, flat, (images, self.mixing(alphas)))

    def one_hot(self, genotype: Genotype) -> Tree:
        """The mixing weights of a discrete cell: 1 where it has an operation on an edge, 0 elsewhere.

        Raises GenotypeError for a cell that this space does not have.
        """
        tables: Tree = {}
        for kind in self.kinds:
            tables[kind] = torch.zeros(len(self.edges), len(self.operations))
            for edge in genotype[kind].edges:
                place = (edge.source, edge.target)
                if place not in self.edges or edge.operation not in self.operations:
                    raise GenotypeError(f"cell {kind} must be of this space, got edge {edge}")
                tables[kind][self.edges.index(place), self.operations.index(edge.operation)] = 1.0
        return tables
