import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sgenas.errors import GenotypeError
from sgenas.spaces.genotype import Cell, Edge, Genotype, existing_nodes

SMALL = Genotype(
    "darts",
    (
        ("normal", Cell((Edge(0, 2, "sep_conv_3x3"), Edge(1, 2, "skip_connect")), concat=(2,), nodes=1)),
        ("reduce", Cell((), concat=(), nodes=1)),
    ),
)


def test_json_round_trip(tmp_path: Path) -> None:
    assert Genotype.from_text(SMALL.to_json()) == Genotype.from_dict(SMALL.to_dict()) == SMALL
    (tmp_path / "g.json").write_text(SMALL.to_json())
    assert Genotype.load(tmp_path / "g.json") == SMALL
    assert SMALL["normal"].edges[0].operation == "sep_conv_3x3"
    assert str(SMALL) == "normal  2: sep_conv_3x3(0) + skip_connect(1)\nreduce  2: -"


def changed(path: list[Any], value: Any) -> str:
    data = copy.deepcopy(SMALL.to_dict())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(data)


EDGE = ["cells", "normal", "edges", 0]
FIRST_EDGE = SMALL.to_dict()["cells"]["normal"]["edges"][0]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        ("9" * 10_000, "JSON"),
        ("[]", "object"),
        (changed(["format"], "other"), "genotype.format"),
        (changed(["version"], 2), "genotype.version"),
        (changed(["space"], 3), "genotype.space"),
        (changed(["extra"], 1), "keys"),
        (changed(["cells"], {}), "at least one cell"),
        (changed(["cells"], []), "genotype.cells"),
        (changed(["cells", "normal"], 5), "genotype.cells.normal"),
        (changed(["cells", "normal", "edges"], {}), "genotype.cells.normal.edges"),
        (changed([*EDGE, "operation"], "conv_9x9"), "edge.operation .* got 'conv_9x9'"),
        (changed([*EDGE, "operation"], ["none"]), "edge.operation"),
        (changed([*EDGE, "source"], 2), "edge.source .* got 2"),
        (changed([*EDGE, "source"], True), "edge.source"),
        (changed([*EDGE, "target"], 3), "edge.target must be from 2 to 2, got 3"),
        (changed([*EDGE, "target"], "2"), "edge.target .* got '2'"),
        (changed(["cells", "normal", "nodes"], 0), "cell.nodes .* from 1 to 100, got 0"),
        (changed(["cells", "normal", "nodes"], 101), "cell.nodes .* from 1 to 100, got 101"),
        (changed(["cells", "normal", "inputs"], 1.5), "cell.inputs"),
        (changed(["cells", "normal", "concat"], [2, 2]), "repeat a node"),
        (changed(["cells", "normal", "concat"], [1]), "cell.concat"),
        (changed(["cells", "normal", "edges"], [FIRST_EDGE] * 2), "got twice Edge.source=0"),
    ],
)
def test_malformed_json_raises_one_line(text: str, word: str) -> None:
    with pytest.raises(GenotypeError, match=word) as caught:
        Genotype.from_text(text)
    assert "\n" not in str(caught.value)


def test_errors_of_files_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe")
    (tmp_path / "list.json").write_text("[]")
    for name, word in (("none", "cannot be read"), ("bad", "cannot be read"), ("list", "must be an object")):
        with pytest.raises(GenotypeError, match=f"{name}.json.*{word}"):
            Genotype.load(tmp_path / f"{name}.json")


def test_cell_names_must_differ() -> None:
    with pytest.raises(GenotypeError, match="different names"):
        Genotype("darts", (SMALL.cells[0], SMALL.cells[0]))


def test_existing_nodes_need_an_edge_from_an_existing_node() -> None:
    edges = (Edge(0, 2, "skip_connect"), Edge(3, 4, "sep_conv_3x3"), Edge(2, 5, "max_pool_3x3"), Edge(1, 3, "none"))
    assert existing_nodes(Cell(edges, (2, 3, 4, 5))) == (2, 5)
