"""Look-up of what the networks of NAS-Bench-Macro reach: a table made here, and the real one where it is there."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_searches import cells

from sgenas.errors import DataError, GenotypeError, InvalidValueError
from sgenas.searching.callbacks import TabulatedAccuracy
from sgenas.spaces import MacroSettings, MacroTable, NasBench201Settings, load_table, macro
from sgenas.spaces.macro_space.strings import all_strings, from_string, to_string

REAL = Path(__file__).parents[4] / "shared" / "data" / "nasbench-macro.json"
SMALL = {"00000000": 45.5, "22212220": 93.25, "01010101": 90.0, "10000000": 93.25}


def text(accuracies: dict[str, Any]) -> str:
    return json.dumps({arch: {"mean_acc": value, "params": 1} for arch, value in accuracies.items()})


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "table.json"
    path.write_text(text(SMALL))
    return path


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table in which network number i has accuracy 20 + i / 100."""
    path = tmp_path_factory.mktemp("table") / "table.json"
    path.write_text(text({arch: 20 + index / 100 for index, arch in enumerate(all_strings())}))
    return path


def test_look_ups_in_a_small_table(written: Path) -> None:
    table = MacroTable.load(written, complete=False)
    assert (len(table), table.datasets) == (4, ("cifar10",))
    assert table.query("01010101") == table.query(from_string("01010101")) == {"cifar10": 90.0}
    assert [table.rank(arch, "cifar10") for arch in SMALL] == [4, 1, 3, 1]
    assert [table.regret(arch, "cifar10") for arch in SMALL] == [47.75, 0, 3.25, 0]
    assert table.best("cifar10") == "22212220"
    with pytest.raises(DataError, match="no row for 00000001"):
        table.query("00000001")
    for junk in ("0000000", "00000003", "|none~0|"):
        with pytest.raises(GenotypeError, match="8 digits"):
            table.query(junk)
    with pytest.raises(InvalidValueError, match="dataset must be one of cifar10"):
        table.rank("00000000", "cifar100")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "cannot be read"),
        ("[]", "object"),
        ("{}", "at least one row"),
        ('{"00000000": {"mean_acc": 1}, "00000000": {"mean_acc": 2}}', "twice 00000000"),
        ('{"00000000": 5}', "00000000: mean_acc"),
        ('{"00000000": {"test_acc": [5]}}', "00000000: mean_acc"),
        ('{"00000000": {"mean_acc": NaN}}', "mean_acc .* 'nan'"),
        ('{"00000000": {"mean_acc": true}}', "mean_acc .* 'True'"),
        (text({"00000000": 100.5}), "cifar10 .* 100.5"),
        (text({"0000000": 5}), "'0000000'"),
        (text({"00000003": 5}), "'00000003'"),
    ],
)
def test_faulty_files_name_the_network(written: Path, content: str, word: str) -> None:
    written.write_text(content)
    with pytest.raises(DataError, match=word) as error:
        MacroTable.load(written, complete=False)
    assert str(error.value).startswith(str(written))
    assert "\n" not in str(error.value)


def test_table_with_missing_networks_names_one(written: Path, complete: Path) -> None:
    with pytest.raises(DataError, match="must have 6561 rows, got 4; 00000001 is missing"):
        MacroTable.load(written)
    with pytest.raises(DataError, match="none.json cannot be read"):
        load_table(written.with_name("none.json"))
    assert isinstance(load_table(complete), MacroTable)
    with pytest.raises(DataError, match="datasets must be one of cifar10"):
        MacroTable.load(complete, ["cifar100"])


def test_search_logs_the_tabulated_accuracy_of_the_derived_network(complete: Path) -> None:
    config = cells(epochs=1)
    config = dataclasses.replace(config, space=MacroSettings(channels=2), table=str(complete))
    result = config.run(progress=False)
    index, row = list(all_strings()).index(to_string(result.genotype)), result.history[-1]
    assert row["tabulated_cifar10"] == 20 + index / 100
    assert row["rank_cifar10"] == 6561 - index
    assert row["regret_cifar10"] == pytest.approx((6560 - index) / 100)


def test_tables_of_another_space_or_number_of_classes_raise(complete: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(cells(), space=NasBench201Settings(channels=2, layers=1), table=str(complete))
    with pytest.raises(InvalidValueError, match="of the space nasbench201, got 'nasbench-macro'") as caught:
        config.run(tmp_path / "run", progress=False)
    assert caught.value.field == "table"
    assert not (tmp_path / "run").exists()
    tabulated = TabulatedAccuracy(complete)
    tabulated.check(macro(channels=2, num_classes=10))
    with pytest.raises(InvalidValueError, match="10 classes, .* got 7") as caught:
        tabulated.check(macro(channels=2, num_classes=7))
    assert caught.value.field == "data"
    with pytest.raises(InvalidValueError, match="nasbench201 or nasbench-macro"):
        cells(table=str(complete))


@pytest.mark.skipif(not REAL.is_file(), reason="the table is not here")
def test_known_facts_of_the_benchmark() -> None:
    real = load_table(REAL)
    assert len(real) == 6561
    assert real.best("cifar10") == "22212220"
    assert real.query("22212220")["cifar10"] == pytest.approx(93.13, abs=0.005)
    accuracies = [real.query(arch)["cifar10"] for arch in all_strings()]
    assert sum(accuracies) / 6561 == pytest.approx(90.25, abs=0.2)
    # identities of one stage commute
    assert real.query("22212202") == real.query("22212220")
