"""Cells whose network is small."""

from sgenas.spaces.genotype import Cell, Edge, Genotype

TINY_CELLS = Genotype(
    "darts",
    (
        ("normal", Cell((Edge(0, 2, "sep_conv_3x3"), Edge(1, 2, "skip_connect")), (2,), nodes=1)),
        ("reduce", Cell((Edge(0, 2, "max_pool_3x3"), Edge(1, 2, "dil_conv_3x3")), (2,), nodes=1)),
    ),
)
