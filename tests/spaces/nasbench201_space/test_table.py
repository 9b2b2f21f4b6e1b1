"""Look-up of what the benchmark's cells reach: a table made here, and the real one where it is there."""

import random
from pathlib import Path

import pytest

from sgenas.errors import DataError, GenotypeError, InvalidValueError
from sgenas.spaces import AccuracyTable
from sgenas.spaces.nasbench201_space.strings import all_strings, from_string

REAL = Path(__file__).parents[4] / "shared" / "data" / "nasbench201-200epochs.csv"
ALL_SKIP = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
FIRST, SECOND, THIRD, FOURTH = list(all_strings())[100:104]
HEADER = "arch,cifar10_test,cifar100_test,imagenet16_120_test"
SMALL = f"{HEADER}\n{FIRST},90.5,70,40.25\n{SECOND},91,60,40.25\n{THIRD},10,70.5,1e1\n"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(SMALL)
    return path


def test_look_ups_in_a_small_table(written: Path) -> None:
    table = AccuracyTable.load(written, complete=False)
    assert len(table) == 3
    assert table.query(FIRST) == {"cifar10": 90.5, "cifar100": 70.0, "ImageNet16-120": 40.25}
    assert table.query(from_string(THIRD)) == {"cifar10": 10.0, "cifar100": 70.5, "ImageNet16-120": 10.0}
    assert [table.rank(arch, "ImageNet16-120") for arch in (FIRST, SECOND, THIRD)] == [1, 1, 3]
    assert table.regret(FIRST, "cifar10") == 0.5
    assert table.regret(from_string(THIRD), "cifar100") == 0
    assert [table.best(name) for name in table.datasets] == [SECOND, THIRD, FIRST]


def test_ranks_and_regrets_are_those_of_counting() -> None:
    draw = random.Random(0)
    rows = {arch: [float(draw.randint(0, 30))] for arch in draw.sample(list(all_strings()), 200)}
    table = AccuracyTable(["cifar100"], rows, complete=False)
    for arch, (value,) in rows.items():
        assert table.rank(arch, "cifar100") == 1 + sum(other > value for (other,) in rows.values())
        assert table.regret(arch, "cifar100") == max(other for (other,) in rows.values()) - value


def test_columns_may_come_in_any_order_and_be_chosen(written: Path) -> None:
    written.write_text(f"cifar100_test,arch,cifar10_test\n1,{FIRST},0\n3,{SECOND},100\n")
    assert AccuracyTable.load(written, complete=False).query(FIRST) == {"cifar100": 1.0, "cifar10": 0.0}
    only = AccuracyTable.load(written, ["cifar10"], complete=False)
    assert only.query(SECOND) == {"cifar10": 100.0}
    with pytest.raises(InvalidValueError, match="dataset must be one of cifar10"):
        only.best("cifar100")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("arch,", "name,"), "columns"),
        (("cifar100_test", "cifar10_test"), "columns"),
        ((SMALL, ""), "column arch is missing"),
        ((HEADER, HEADER.replace("arch,", "")), "column arch is missing"),
        ((SMALL, f"arch\n{FIRST}\n"), "datasets"),
        (("90.5,70,", "90.5,"), "line 2: must have 4 values"),
        (("90.5,70,", "90.5,70,1,"), "line 2: must have 4 values"),
        (("90.5", "high"), "line 2: cifar10_test .* 'high'"),
        (("90.5", ""), "line 2: cifar10_test .* ''"),
        (("90.5", "nan"), "line 2: cifar10_test .* 'nan'"),
        (("90.5", "100.5"), "cifar10 .* 100.5"),
        (("90.5", "-1"), "cifar10 .* -1"),
        ((SECOND, FIRST), "line 3: arch must not repeat"),
        ((FIRST, "|none~0|"), r"got '\|none~0\|'"),
        ((SMALL, HEADER + "\n"), "at least one row"),
        ((SMALL, SMALL + '"open'), "cannot be read"),
        ((SMALL, SMALL + "\udcff"), "cannot be read"),
    ],
)
def test_faulty_files_name_the_line(written: Path, change: tuple[str, str], message: str) -> None:
    written.write_bytes(SMALL.replace(*change, 1).encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message) as error:
        AccuracyTable.load(written, complete=False)
    assert str(error.value).startswith(str(written))
    assert "\n" not in str(error.value)


def test_missing_files_columns_and_cells_raise(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.csv cannot be read"):
        AccuracyTable.load(tmp_path / "none.csv")
    table = AccuracyTable.load(written, complete=False)
    with pytest.raises(DataError, match="no row"):
        table.query(FOURTH)
    with pytest.raises(GenotypeError):
        table.query("junk")
    written.write_text(f"arch,cifar10_test\n{FIRST},1\n")
    with pytest.raises(DataError, match="column cifar100_test is missing"):
        AccuracyTable.load(written, ["cifar10", "cifar100"])
    for datasets in (["svhn"], ["cifar10", "cifar10"]):
        with pytest.raises(InvalidValueError) as caught:
            AccuracyTable(datasets, {FIRST: [1.0, 2.0]}, complete=False)
        assert caught.value.field == "datasets"
    with pytest.raises(DataError, match="must have 1 values, got 2"):
        AccuracyTable(["cifar10"], {FIRST: [1.0, 2.0]}, complete=False)
    rows = {arch: [50.0] for arch in all_strings()}
    assert len(AccuracyTable(["cifar10"], rows)) == 15_625
    del rows[ALL_SKIP]
    with pytest.raises(DataError) as error:
        AccuracyTable(["cifar10"], rows)
    assert ALL_SKIP in str(error.value)


@pytest.mark.skipif(not REAL.is_file(), reason="the table is not here")
def test_known_facts_of_the_benchmark() -> None:
    real = AccuracyTable.load(REAL)
    assert len(real) == 15_625
    for dataset, accuracy in (("cifar10", 94.37), ("cifar100", 73.51), ("ImageNet16-120", 47.31)):
        best = real.best(dataset)
        assert real.query(best)[dataset] == pytest.approx(accuracy, abs=0.006)
        assert (real.rank(best, dataset), real.regret(best, dataset)) == (1, 0)
    # what DARTS collapses to, with the accuracies that the benchmark's paper gives for DARTS
    assert [round(value, 2) for value in real.query(ALL_SKIP).values()] == [54.3, 15.61, 16.32]
    assert real.regret(ALL_SKIP, "cifar10") == pytest.approx(94.3733 - 54.30, abs=0.01)
    # a cell that lets nothing through guesses
    assert real.query(ALL_SKIP.replace("skip_connect", "none"))["cifar10"] == pytest.approx(10, abs=0.01)
