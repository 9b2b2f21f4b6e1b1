"""The benchmark's names of its cells, both ways."""

from itertools import product

import pytest

from sgenas.errors import GenotypeError
from sgenas.spaces import Cell, Edge, Genotype
from sgenas.spaces.nasbench201_strings import all_strings, from_string, genotype_of, to_string

EXAMPLE = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|"


def test_example() -> None:
    genotype = from_string(EXAMPLE)
    edges = (
        Edge(0, 1, "nor_conv_3x3"),
        Edge(1, 2, "skip_connect"),
        Edge(0, 3, "avg_pool_3x3"),
        Edge(1, 3, "nor_conv_1x1"),
        Edge(2, 3, "skip_connect"),
    )
    assert genotype == Genotype("nasbench201", (("cell", Cell(edges, (3,), nodes=3, inputs=1)),))
    assert to_string(genotype) == EXAMPLE


def test_all_cells_go_both_ways() -> None:
    names = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    form = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
    expected = [form.format(*operations) for operations in product(names, repeat=6)]
    assert list(all_strings()) == expected
    genotypes = [from_string(text) for text in expected]
    assert [to_string(genotype) for genotype in genotypes] == expected
    assert len(set(genotypes)) == len(expected) == 15_625


def test_genotypes_go_through_json_too() -> None:
    genotype = from_string(EXAMPLE)
    assert Genotype.from_json(genotype.to_json()) == genotype


def test_order_of_the_edges_does_not_matter() -> None:
    cell = from_string(EXAMPLE)["cell"]
    turned = Cell(cell.edges[::-1], (3,), nodes=3, inputs=1)
    assert to_string(Genotype("nasbench201", (("cell", turned),))) == EXAMPLE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have 3 nodes, joined by +, got 1 in ''"),
        ("|none~0|+|none~0|none~1|", "must have 3 nodes, joined by +, got 2"),
        (EXAMPLE + "+|none~0|", "must have 3 nodes, joined by +, got 4"),
        (EXAMPLE[1:], "node 1: must stand between two |, got 'nor_conv_3x3~0|'"),
        (EXAMPLE + "\n", "node 3: must stand between two |, got '|avg_pool"),
        (EXAMPLE.replace("|nor_conv_3x3~0|", "|"), "node 1: must stand between two |, got '|'"),
        (EXAMPLE.replace("|none~0|", "|"), "node 2: must have 2 edges, got 1 in '|skip_connect~1|'"),
        (EXAMPLE.replace("|none~0|", "||none~0|"), "node 2: must have 2 edges, got 3"),
        (EXAMPLE.replace("none~0", "none"), "node 2, edge 0: must be operation~0, got 'none'"),
        (EXAMPLE.replace("none~0", ""), "node 2, edge 0: must be operation~0, got ''"),
        (EXAMPLE.replace("1x1~1", "1x1~2"), "node 3, edge 1: predecessor must be 1, got '2'"),
        (EXAMPLE.replace("1x1~1", "1x1~01"), "node 3, edge 1: predecessor must be 1, got '01'"),
        (EXAMPLE.replace("1x1~1", "1x1~"), "node 3, edge 1: predecessor must be 1, got ''"),
        (EXAMPLE.replace("1x1~1", "1x1~1~1"), "node 3, edge 1: predecessor must be 1, got '1~1'"),
        (EXAMPLE.replace("nor_conv_1x1", "sep_conv_3x3"), "node 3, edge 1: operation must be one of none, "),
        (EXAMPLE.replace("nor_conv_1x1", " nor_conv_1x1"), "got ' nor_conv_1x1'"),
        ("junk\njunk", "must have 3 nodes, joined by +, got 1 in 'junk\\njunk'"),
    ],
)
def test_faulty_strings(text: str, message: str) -> None:
    with pytest.raises(GenotypeError) as error:
        from_string(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def genotype(
    edges: tuple[Edge, ...] = (),
    concat: tuple[int, ...] = (3,),
    *,
    space: str = "nasbench201",
    kind: str = "cell",
    nodes: int = 3,
    inputs: int = 1,
) -> Genotype:
    return Genotype(space, ((kind, Cell(edges, concat, nodes=nodes, inputs=inputs)),))


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (genotype(space="darts"), "genotype.space must be 'nasbench201', got 'darts'"),
        (genotype(kind="normal"), "genotype.cells must be ['cell'], got ['normal']"),
        (genotype(nodes=4), "cell.nodes must be 3, got 4"),
        (genotype(inputs=2), "cell.inputs must be 1, got 2"),
        (genotype(concat=(1, 2, 3)), "cell.concat must be (3,), got (1, 2, 3)"),
        (genotype((Edge(0, 1, "sep_conv_3x3"),)), "node 1, edge 0: operation must be one of none, "),
        (
            genotype((Edge(1, 2, "nor_conv_1x1"), Edge(1, 2, "nor_conv_3x3"))),
            "node 2, edge 1: must have one operation, got nor_conv_1x1 and nor_conv_3x3",
        ),
    ],
)
def test_genotypes_that_the_benchmark_lacks(faulty: Genotype, message: str) -> None:
    with pytest.raises(GenotypeError) as error:
        to_string(faulty)
    assert message in str(error.value)


def test_explicit_none_is_the_same_as_no_edge() -> None:
    assert to_string(genotype((Edge(0, 1, "none"),))) == to_string(genotype())


def test_wrong_number_of_operations() -> None:
    with pytest.raises(GenotypeError, match="cell must have 6 operations, got 5"):
        genotype_of(["none"] * 5)
