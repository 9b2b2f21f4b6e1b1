import json
from pathlib import Path
from typing import Any

import pytest

from sgenas.errors import DataError, InvalidValueError
from sgenas.spaces.cell_costs import NetworkSpec, placements
from sgenas.spaces.latency import LatencyTable, measure

TINY = NetworkSpec("darts", 2, 3, 1, num_classes=2, height=8, width=8)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return measure(TINY, batch_size=2, repeats=2, facts={"device": "cpu"})


def test_every_placement_is_measured_and_saved(table: LatencyTable, tmp_path: Path) -> None:
    assert set(table.milliseconds) == {each for row in placements(TINY).values() for each in row}
    assert min(table.milliseconds.values()) > 0
    assert table.rest > 0
    assert table.facts == {"device": "cpu", "repeats": 2}
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    with pytest.raises(DataError, match="cannot be written"):
        table.save(tmp_path / "missing" / "table.json")


def test_nasbench201_is_measured_too() -> None:
    spec = NetworkSpec.of("nasbench201", channels=2, layers=1, num_classes=2, height=8, width=8)
    found = measure(spec, repeats=1).milliseconds
    names = {"skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"}
    assert {each.operation for each in found} == names
    assert {(each.channels, each.height) for each in found} == {(2, 8), (4, 4), (8, 2)}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": 1}, "version"),
        ({"network": []}, "malformed"),
        ({"operations": None}, "malformed"),
        ({"operations": [1]}, "malformed"),
        ({"operations": [{"milliseconds": 1}]}, "malformed"),
        ({"rest_milliseconds": -1}, "milliseconds"),
        ({"rest_milliseconds": float("nan")}, "milliseconds"),
        ({"batch_size": 0}, "batch_size"),
        ({"facts": None}, "malformed"),
    ],
)
def test_faults_in_a_file_are_named(table: LatencyTable, tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=fault):
        LatencyTable.load(path)


def test_numbers_below_one_raise() -> None:
    with pytest.raises(InvalidValueError, match="repeats"):
        measure(TINY, repeats=0)
    with pytest.raises(InvalidValueError, match="space .* got 'rnn'"):
        NetworkSpec.of("rnn")
