"""The benchmark's names of its cells, both ways."""

from itertools import product

import pytest

from sgenas.errors import GenotypeError
from sgenas.spaces import Cell, Edge, Genotype
from sgenas.spaces.nasbench201_space.strings import OPERATIONS, all_strings, from_string, genotype_of, to_string

EXAMPLE = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|"
EDGES = (
    Edge(0, 1, "nor_conv_3x3"),
    Edge(1, 2, "skip_connect"),
    Edge(0, 3, "avg_pool_3x3"),
    Edge(1, 3, "nor_conv_1x1"),
    Edge(2, 3, "skip_connect"),
)


def genotype(
    *edges: Edge, space: str = "nasbench201", kind: str = "cell", **changes: int | tuple[int, ...]
) -> Genotype:
    return Genotype(space, ((kind, Cell(edges, **({"concat": (3,), "nodes": 3, "inputs": 1} | changes))),))  # type: ignore[arg-type]


def test_string_and_genotype_of_an_example() -> None:
    assert from_string(EXAMPLE) == genotype(*EDGES) == Genotype.from_dict(genotype(*EDGES).to_dict())
    assert to_string(genotype(*EDGES[::-1])) == EXAMPLE
    assert to_string(genotype(Edge(0, 1, "none"))) == to_string(genotype())


def test_all_cells_go_both_ways() -> None:
    assert OPERATIONS == ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    form = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
    expected = [form.format(*operations) for operations in product(OPERATIONS, repeat=6)]
    assert list(all_strings()) == expected
    genotypes = [from_string(text) for text in expected]
    assert [to_string(genotype) for genotype in genotypes] == expected
    assert len(set(genotypes)) == len(expected) == 15_625


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "3 nodes"),
        ("|none~0|+|none~0|none~1|", "3 nodes"),
        (EXAMPLE + "+|none~0|", "3 nodes"),
        ("junk\njunk", "3 nodes"),
        (EXAMPLE[1:], "node 1"),
        (EXAMPLE + "\n", "node 3"),
        (EXAMPLE.replace("|nor_conv_3x3~0|", "|"), "node 1"),
        (EXAMPLE.replace("|none~0|", "|"), "node 2"),
        (EXAMPLE.replace("|none~0|", "||none~0|"), "node 2"),
        (EXAMPLE.replace("none~0", "none"), "node 2"),
        (EXAMPLE.replace("none~0", ""), "node 2"),
        (EXAMPLE.replace("1x1~1", "1x1~2"), "node 3"),
        (EXAMPLE.replace("1x1~1", "1x1~01"), "node 3"),
        (EXAMPLE.replace("1x1~1", "1x1~"), "node 3"),
        (EXAMPLE.replace("1x1~1", "1x1~1~1"), "node 3"),
        (EXAMPLE.replace("nor_conv_1x1", "sep_conv_3x3"), "node 3, edge 1: operation"),
        (EXAMPLE.replace("nor_conv_1x1", " nor_conv_1x1"), "node 3, edge 1: operation"),
    ],
)
def test_malformed_strings_name_the_place(text: str, word: str) -> None:
    with pytest.raises(GenotypeError, match=word) as error:
        from_string(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("faulty", "word"),
    [
        (genotype(space="darts"), "nasbench201"),
        (genotype(kind="normal"), "normal"),
        (genotype(nodes=4), "cell.nodes"),
        (genotype(inputs=2), "cell.inputs"),
        (genotype(concat=(1, 2, 3)), "cell.concat"),
        (genotype(Edge(0, 1, "sep_conv_3x3")), "node 1, edge 0: operation"),
        (genotype(Edge(1, 2, "nor_conv_1x1"), Edge(1, 2, "nor_conv_3x3")), "one operation"),
    ],
)
def test_genotypes_that_the_benchmark_lacks_raise(faulty: Genotype, word: str) -> None:
    with pytest.raises(GenotypeError, match=word):
        to_string(faulty)
    with pytest.raises(GenotypeError, match="6 operations, got 5"):
        genotype_of(["none"] * 5)
