"""Which network a genotype is trained in."""

import torch

from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.nets import darts, nasbench201
from sgenas.spaces.genotype import Genotype

SPACES = (*darts.SPACES, *nasbench201.SPACES)
"""Every value of `genotype.space` that `build` knows."""


def takes_auxiliary(genotype: Genotype) -> bool:
    """Whether the genotype's network can have an auxiliary head."""
    return genotype.space in darts.SPACES


def build(
    genotype: Genotype,
    *,
    channels: int | None = None,
    layers: int | None = None,
    classes: int = 10,
    input_channels: int = 3,
    auxiliary: bool = False,
    generator: torch.Generator | None = None,
) -> darts.DartsNetwork | nasbench201.NasBench201Network:
    """The network of `genotype.space`: DartsNetwork, or NasBench201Network for "nasbench201".

    channels: of the first cell; layers: number of cells, in NasBench201Network that of each stage; None
    stands for the network's own default (36 and 20; 16 and 5). generator: draws the first weights on the
    CPU and leaves torch's own randomness alone; without one, they come from the latter.

    Raises GenotypeError for an unknown space or cells that do not fit it, InvalidValueError for sizes below
    their minimum, a generator that is not on the CPU, and an auxiliary head where there is none.
    """
    if genotype.space not in SPACES:
        raise GenotypeError(f"genotype.space must be one of {', '.join(SPACES)}, got {genotype.space!r}")
    if auxiliary and not takes_auxiliary(genotype):
        raise InvalidValueError(
            f"auxiliary must be False in the space {genotype.space}, which has no auxiliary head, got True"
        )
    if generator is None:
        return _make(genotype, channels, layers, classes, input_channels, auxiliary)
    if generator.device.type != "cpu":
        raise InvalidValueError(f"generator must be on the cpu, got one on {generator.device}")
    # modules fill their own weights from the global state, so the generator's takes its place meanwhile
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        network = _make(genotype, channels, layers, classes, input_channels, auxiliary)
        generator.set_state(torch.get_rng_state())
    return network


def _make(
    genotype: Genotype,
    channels: int | None,
    layers: int | None,
    classes: int,
    input_channels: int,
    auxiliary: bool,
) -> darts.DartsNetwork | nasbench201.NasBench201Network:
    if genotype.space in nasbench201.SPACES:
        return nasbench201.NasBench201Network(
            genotype,
            channels=16 if channels is None else channels,
            cells=5 if layers is None else layers,
            classes=classes,
            input_channels=input_channels,
        )
    return darts.DartsNetwork(
        genotype,
        channels=36 if channels is None else channels,
        layers=20 if layers is None else layers,
        classes=classes,
        input_channels=input_channels,
        auxiliary=auxiliary,
    )
