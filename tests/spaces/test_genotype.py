import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sgenas.errors import GenotypeError
from sgenas.spaces.genotype import Cell, Edge, Genotype

PUBLISHED = Path(__file__).parents[3] / "shared" / "genotypes.json"

SMALL = Genotype(
    "darts",
    (
        ("normal", Cell((Edge(0, 2, "sep_conv_3x3"), Edge(1, 2, "skip_connect")), concat=(2,), nodes=1)),
        ("reduce", Cell((), concat=(), nodes=1)),
    ),
)


def test_json_both_ways(tmp_path: Path) -> None:
    assert Genotype.from_json(SMALL.to_json()) == SMALL
    (tmp_path / "g.json").write_text(SMALL.to_json())
    assert Genotype.load(tmp_path / "g.json") == SMALL
    assert SMALL["normal"].edges[0].operation == "sep_conv_3x3"
    assert str(SMALL) == "normal  2: sep_conv_3x3(0) + skip_connect(1)\nreduce  2: -"


@pytest.mark.skipif(not PUBLISHED.exists(), reason="shared folder is missing")
def test_every_published_cell_can_be_said() -> None:
    published = json.loads(PUBLISHED.read_text())["genotypes"]
    for entry in published.values():
        if entry["cell_class"] != "Cell":
            continue
        for kind in ("normal", "reduce"):
            pairs = entry["genotype"][kind]
            edges = [Edge(source, 2 + index // 2, name) for index, (name, source) in enumerate(pairs)]
            cell = Cell(tuple(edges), concat=tuple(entry["genotype"][f"{kind}_concat"]))
            genotype = Genotype("darts", ((kind, cell),))
            assert Genotype.from_json(genotype.to_json()) == genotype


def changed(path: list[Any], value: Any) -> str:
    data = copy.deepcopy(SMALL.to_dict())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(data)


EDGE = ["cells", "normal", "edges", 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[]", "genotype must be an object, got list"),
        (changed(["format"], "other"), "genotype.format must be 'sgenas-genotype', got 'other'"),
        (changed(["version"], 2), "genotype.version must be 1, got 2"),
        (changed(["space"], 3), "genotype.space must be a string, got 3"),
        (changed(["extra"], 1), "must have the keys"),
        (changed(["cells"], {}), "at least one cell"),
        (changed(["cells"], []), "genotype.cells must be an object"),
        (changed(["cells", "normal"], 5), "genotype.cells.normal must be an object, got int"),
        (changed(["cells", "normal", "edges"], {}), "genotype.cells.normal.edges must be a list, got dict"),
        (changed([*EDGE, "operation"], "conv_9x9"), "edge.operation must be one of .* got 'conv_9x9'"),
        (changed([*EDGE, "operation"], ["none"]), "edge.operation must be one of"),
        (changed([*EDGE, "source"], 2), r"edge.source must be from 0 to 1 \(an earlier node .* got 2"),
        (changed([*EDGE, "source"], True), "edge.source must be from 0 to 1"),
        (changed([*EDGE, "target"], 3), "edge.target must be from 2 to 2, got 3"),
        (changed([*EDGE, "target"], "2"), "edge.target must be from 2 to 2, got '2'"),
        (changed(["cells", "normal", "nodes"], 0), "cell.nodes must be an integer from 1 to 100, got 0"),
        (changed(["cells", "normal", "inputs"], 1.5), "cell.inputs must be an integer from 1 to 100"),
        (changed(["cells", "normal", "concat"], [2, 2]), "must not repeat a node"),
        (changed(["cells", "normal", "concat"], [1]), "cell.concat must hold nodes from 2 to 2, got 1"),
        (
            changed(["cells", "normal", "edges"], [SMALL.to_dict()["cells"]["normal"]["edges"][0]] * 2),
            "must not repeat an edge, got twice Edge",
        ),
    ],
)
def test_bad_json(text: str, message: str) -> None:
    with pytest.raises(GenotypeError, match=message) as caught:
        Genotype.from_json(text)
    assert "\n" not in str(caught.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(GenotypeError, match="none.json cannot be read"):
        Genotype.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe")
    with pytest.raises(GenotypeError, match="bad.json cannot be read"):
        Genotype.load(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(GenotypeError, match="list.json: genotype must be an object"):
        Genotype.load(tmp_path / "list.json")


def test_unknown_cell_name() -> None:
    with pytest.raises(KeyError):
        SMALL["stem"]


def test_same_cell_name_twice() -> None:
    with pytest.raises(GenotypeError, match="different names"):
        Genotype("darts", (SMALL.cells[0], SMALL.cells[0]))


def test_a_cell_of_as_many_nodes_as_there_may_be() -> None:
    edge = Edge(100, 101, "skip_connect")
    assert Cell((edge,), (101,), nodes=100, inputs=2).edges == (edge,)
    with pytest.raises(GenotypeError, match="cell.nodes must be an integer from 1 to 100, got 101"):
        Cell((edge,), (101,), nodes=101, inputs=2)


def test_a_cell_is_read_as_it_is_written() -> None:
    cell = Cell((Edge(0, 2, "sep_conv_3x3"), Edge(1, 2, "skip_connect")), (2, 3), nodes=2)
    assert str(cell) == "2: sep_conv_3x3(0) + skip_connect(1); 3: -"
    assert cell.rewired(str(cell)) == cell
    changed = cell.rewired("2: -; 3: max_pool_3x3(2)")
    assert changed == Cell((Edge(2, 3, "max_pool_3x3"),), (2, 3), nodes=2)


@pytest.mark.parametrize(
    "text", ["", "2", "2: skip_connect", "x: skip_connect(0)", "2: skip_connect(0) skip_connect(1)"]
)
def test_what_is_no_cell(text: str) -> None:
    with pytest.raises(GenotypeError, match="a cell must read as `2: sep_conv_3x3"):
        Cell((), (2,), nodes=1).rewired(text)


def test_the_edge_that_is_there_twice_is_named() -> None:
    once, twice = Edge(0, 2, "skip_connect"), Edge(1, 2, "max_pool_3x3")
    with pytest.raises(GenotypeError, match=r"got twice Edge\(source=1"):
        Cell((once, twice, twice), (2,), nodes=1)


def test_as_many_cells_as_a_genotype_may_have() -> None:
    cells = tuple((f"cell {number}", SMALL.cells[0][1]) for number in range(21))
    assert len(Genotype("darts", cells[:20]).cells) == 20
    with pytest.raises(GenotypeError, match="genotype.cells must hold at most 20 cells, got 21"):
        Genotype("darts", cells)
