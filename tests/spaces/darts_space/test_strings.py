"""The text form of the DARTS code, everywhere a genotype is read."""

import json
from pathlib import Path

import pytest

from sgenas.errors import GenotypeError
from sgenas.spaces.darts_space.published import find_genotype, names, published
from sgenas.spaces.genotype import Cell, Edge, Genotype

# as printed by quark0/darts and xiaomi-automl/FairDARTS
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),"
    " ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)],"
    " normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2),"
    " ('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)],"
    " reduce_concat=range(2, 6))"
)
FAIR = (
    "Genotype(normal=[('skip_connect', 2, 0), ('dil_conv_3x3', 2, 0), ('sep_conv_3x3', 5, 2)],"
    " normal_concat=range(2, 6), reduce=[('max_pool_3x3', 3, 1)], reduce_concat=range(2, 6))"
)


@pytest.mark.parametrize("before", ["", "DARTS_V2 = ", "\n", "11/28 05:33:23 PM genotype = "])
@pytest.mark.parametrize("after", ["", "\n", "  # found\n"])
def test_printed_genotype_is_read(before: str, after: str) -> None:
    assert Genotype.from_text(before + DARTS_V2 + after) == published("darts-v2")


def test_triples_of_fair_darts_are_operation_target_source() -> None:
    genotype = Genotype.from_text(FAIR)
    assert genotype.space == "fair-darts"
    edges = (Edge(0, 2, "skip_connect"), Edge(0, 2, "dil_conv_3x3"), Edge(2, 5, "sep_conv_3x3"))
    assert genotype["normal"] == Cell(edges, (2, 3, 4, 5))
    assert genotype["reduce"] == Cell((Edge(1, 3, "max_pool_3x3"),), (2, 3, 4, 5))
    assert genotype.to_darts_text() == FAIR


@pytest.mark.parametrize("name", names())
def test_published_cells_round_trip(name: str) -> None:
    genotype = published(name)
    assert find_genotype(genotype.to_darts_text()) == genotype


def test_it_is_read_from_files_run_directories_and_json(tmp_path: Path) -> None:
    (tmp_path / "genotype.txt").write_text(f"FOUND = {DARTS_V2}\n")
    rows = {
        f"{kind}": [[edge.operation, edge.source] for edge in cell.edges] for kind, cell in published("darts-v2").cells
    }
    data = rows | {"normal_concat": [2, 3, 4, 5], "reduce_concat": [2, 3, 4, 5]}
    (tmp_path / "genotype.json").write_text(json.dumps(data))
    for text in (str(tmp_path / "genotype.txt"), str(tmp_path), json.dumps(data), DARTS_V2):
        assert find_genotype(text) == published("darts-v2")


@pytest.mark.parametrize(
    "text",
    [
        "Genotype()",
        "Genotype(1, 2, 3, 4)",
        "Genotype",
        DARTS_V2 + DARTS_V2,
        DARTS_V2[:-1],
        "A = " + DARTS_V2 + "\nB = " + DARTS_V2,
        DARTS_V2.replace("range(2, 6)", "range(10**9)"),
        DARTS_V2.replace("range(2, 6)", "range(1000000000)"),
        DARTS_V2.replace("range(2, 6)", "range()"),
        DARTS_V2.replace("range(2, 6)", "list([2, 3])"),
        DARTS_V2.replace("range(2, 6)", "__import__('os').getcwd()"),
        DARTS_V2.replace("range(2, 6)", "[2, 3, 4, 5], other=[]"),
        DARTS_V2.replace("range(2, 6)", "[2, 7]"),
        DARTS_V2.replace("range(2, 6)", "['2']"),
        DARTS_V2.replace("('sep_conv_3x3', 0), ", "", 1),
        DARTS_V2.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', 5"),
        DARTS_V2.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', 2.0"),
        DARTS_V2.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', 5, 2"),
        DARTS_V2.replace("'dil_conv_3x3', 2", "['dil_conv_3x3'], 2"),
        DARTS_V2.replace("'dil_conv_3x3'", "'conv_9x9'"),
        DARTS_V2.replace("('dil_conv_3x3', 2)", "'dil_conv_3x3'"),
        "Genotype(normal=" + "(" * 5000 + ")",
        json.dumps({"normal": 1, "normal_concat": [], "reduce": [], "reduce_concat": []}),
        json.dumps({"normal": [], "normal_concat": [2], "reduce": []}),
    ],
)
def test_malformed_text_raises_one_line(text: str) -> None:
    with pytest.raises(GenotypeError) as caught:
        Genotype.from_text(text)
    assert "\n" not in str(caught.value)


def test_genotypes_that_the_form_cannot_express() -> None:
    one = Cell((Edge(0, 2, "skip_connect"),), (2,), nodes=1)
    for genotype in (
        Genotype("darts", (("normal", one), ("reduce", one))),
        Genotype("darts", (("normal", one),)),
        Genotype("nasbench201", (("cell", Cell((), (3,), 3, 1)),)),
    ):
        with pytest.raises(GenotypeError, match="DARTS form needs"):
            genotype.to_darts_text()
