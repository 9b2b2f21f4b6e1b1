"""Discrete networks: what a genotype is trained in, how large that is, and published cells."""

from sgenas.nets.darts import DartsNetwork
from sgenas.nets.nasbench201 import NasBench201Network
from sgenas.nets.networks import build
from sgenas.nets.published import find_genotype, names, published
from sgenas.nets.sizes import Size, count_macs, network_size

__all__ = [
    "DartsNetwork",
    "NasBench201Network",
    "Size",
    "build",
    "count_macs",
    "find_genotype",
    "names",
    "network_size",
    "published",
]
