import json
from pathlib import Path
from typing import Any

import pytest

from sgenas.errors import DataError, InvalidValueError, RunFolderError
from sgenas.nets.costs import NetworkSpec, places
from sgenas.nets.latency import LatencyTable, measure

TINY = NetworkSpec("darts", 2, 3, 1, classes=2, height=8, width=8)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return measure(TINY, batch_size=2, repeats=2, facts={"device": "cpu"})


def test_every_place_is_measured_and_the_file_keeps_all(table: LatencyTable, tmp_path: Path) -> None:
    assert set(table.milliseconds) == {place for stand in places(TINY).values() for place in stand}
    assert min(table.milliseconds.values()) > 0
    assert table.rest > 0
    assert table.facts == {"device": "cpu", "repeats": 2}
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table


def test_nasbench201_is_measured_too() -> None:
    spec = NetworkSpec.of("nasbench201", channels=2, layers=1, classes=2, height=8, width=8)
    found = measure(spec, repeats=1)
    assert {place.operation for place in found.milliseconds} == {
        *("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    }
    assert {(place.channels, place.height) for place in found.milliseconds} == {(2, 8), (4, 4), (8, 2)}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": 2}, "version must be 1, got 2"),
        ({"network": []}, "network must be an object, got list"),
        ({"operations": {}}, "operations must be a list, got dict"),
        ({"operations": [1]}, r"operations\[0\].milliseconds must be a number from 0 to 1e.12, got None"),
        (
            {"operations": [{"milliseconds": 1}]},
            r"operations\[0\].operation must be a text, got None",
        ),
        ({"rest_milliseconds": -1}, "rest_milliseconds must be a number from 0 to 1e.12, got -1"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"facts": None}, "facts must be an object, got NoneType"),
    ],
)
def test_faults_in_a_file_are_named(
    table: LatencyTable, tmp_path: Path, change: dict[str, Any], fault: str
) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((DataError, RunFolderError), match=fault):
        LatencyTable.load(path)


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="repeats must be an integer >= 1, got 0"):
        measure(TINY, repeats=0)
