"""Look-up of what the benchmark's cells reach: a table made here, and the real one where it is there."""

import random
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from sgenas.errors import DataError, GenotypeError, InvalidValueError, RunFolderError
from sgenas.spaces import AccuracyTable
from sgenas.spaces.nasbench201_strings import all_strings, from_string
from sgenas.spaces.nasbench201_table import import_table

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "nasbench201-200epochs.csv"
ALL_SKIP = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
ALL_NONE = ALL_SKIP.replace("skip_connect", "none")
FIRST, SECOND, THIRD, FOURTH = list(all_strings())[100:104]
HEADER = "arch,cifar10_test,cifar100_test,imagenet16_120_test"
SMALL = f"{HEADER}\n{FIRST},90.5,70,40.25\n{SECOND},91,60,40.25\n{THIRD},10,70.5,1e1\n"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(SMALL)
    return path


def test_small_table(written: Path) -> None:
    table = AccuracyTable.load(written, complete=False)
    assert len(table) == 3
    assert list(table.architectures()) == [FIRST, SECOND, THIRD]
    assert table.datasets == ("cifar10", "cifar100", "ImageNet16-120")
    assert table.query(FIRST) == {"cifar10": 90.5, "cifar100": 70.0, "ImageNet16-120": 40.25}
    assert table.query(from_string(THIRD)) == {"cifar10": 10.0, "cifar100": 70.5, "ImageNet16-120": 10.0}
    assert [table.rank(arch, "cifar10") for arch in (FIRST, SECOND, THIRD)] == [2, 1, 3]
    assert [table.rank(arch, "ImageNet16-120") for arch in (FIRST, SECOND, THIRD)] == [1, 1, 3]
    assert table.regret(FIRST, "cifar10") == 0.5
    assert table.regret(from_string(THIRD), "cifar100") == 0
    assert table.best("cifar10") == SECOND
    assert table.best("cifar100") == THIRD
    assert table.best("ImageNet16-120") == FIRST


def test_ranks_and_regrets_are_those_of_counting() -> None:
    draw = random.Random(0)
    rows = {arch: [float(draw.randint(0, 30))] for arch in draw.sample(list(all_strings()), 200)}
    table = AccuracyTable(["cifar100"], rows, complete=False)
    for arch, (value,) in rows.items():
        assert table.rank(arch, "cifar100") == 1 + sum(other > value for (other,) in rows.values())
        assert table.regret(arch, "cifar100") == max(other for (other,) in rows.values()) - value


def test_columns_may_come_in_any_order_and_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"cifar100_test,arch,cifar10_test\n1,{FIRST},2\n3,{SECOND},4\n")
    assert AccuracyTable.load(path, complete=False).query(FIRST) == {"cifar100": 1.0, "cifar10": 2.0}
    only = AccuracyTable.load(path, ["cifar10"], complete=False)
    assert only.query(SECOND) == {"cifar10": 4.0}
    with pytest.raises(InvalidValueError, match="dataset must be one of cifar10, got 'cifar100'"):
        only.best("cifar100")


def test_nothing_and_everything_right_are_accuracies_too() -> None:
    table = AccuracyTable(["cifar10"], {FIRST: [0.0], SECOND: [100.0]}, complete=False)
    assert table.best("cifar10") == SECOND
    assert table.regret(FIRST, "cifar10") == 100


def test_saving_and_loading(written: Path, tmp_path: Path) -> None:
    table = AccuracyTable.load(written, complete=False)
    table.save(tmp_path / "again.csv")
    lines = [f"{FIRST},90.5,70.0,40.25", f"{SECOND},91.0,60.0,40.25", f"{THIRD},10.0,70.5,10.0"]
    assert (tmp_path / "again.csv").read_text().splitlines() == [HEADER, *lines]
    again = AccuracyTable.load(tmp_path / "again.csv", complete=False)
    assert all(again.query(arch) == table.query(arch) for arch in table.architectures())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("arch,", "name,"), "columns must be arch, cifar10_test, .* got 'name'"),
        (("cifar100_test", "cifar10_test"), "columns must not repeat, got arch, cifar10_test, cifar10_test"),
        ((SMALL, ""), "column arch is missing, got no line"),
        ((HEADER, HEADER.replace("arch,", "")), "column arch is missing, got cifar10_test"),
        ((SMALL, f"arch\n{FIRST}\n"), r"must have an accuracy column \(cifar10_test, .*\), got none"),
        (("90.5,70,", "90.5,"), "line 2: must have 4 values, got 3"),
        (("90.5", "high"), "line 2: cifar10_test must be a finite number, got 'high'"),
        (("90.5", ""), "line 2: cifar10_test must be a finite number, got ''"),
        (("90.5", "nan"), "line 2: cifar10_test must be a finite number, got 'nan'"),
        (("90.5", "100.5"), "cifar10 must be from 0 to 100, got 100.5"),
        (("90.5", "-1"), "cifar10 must be from 0 to 100, got -1"),
        ((SECOND, FIRST), "line 3: arch must not repeat, got twice"),
        ((FIRST, "|none~0|"), r"arch must be a cell of NAS-Bench-201, got '\|none~0\|'"),
        ((SMALL, HEADER + "\n"), "must have at least one row, got none"),
        ((SMALL, SMALL + "\n"), "line 5: must have 4 values, got 0"),
        ((SMALL, SMALL + '"open'), "cannot be read: unexpected end of data"),
    ],
)
def test_faulty_files(written: Path, change: tuple[str, str], message: str) -> None:
    written.write_text(SMALL.replace(*change, 1))
    with pytest.raises(DataError, match=message) as error:
        AccuracyTable.load(written, complete=False)
    assert str(error.value).startswith(str(written))
    assert "\n" not in str(error.value)


def test_missing_file_and_column_and_row(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv cannot be read: .*No such file"):
        AccuracyTable.load(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"table.csv cannot be read: "):
        written.write_bytes(b"\xff\xfe")
        AccuracyTable.load(written)
    written.write_text(f"arch,cifar10_test\n{FIRST},1\n")
    with pytest.raises(DataError, match="column cifar100_test is missing, got arch, cifar10_test"):
        AccuracyTable.load(written, ["cifar10", "cifar100"])
    with pytest.raises(InvalidValueError, match="datasets must be among cifar10, .* got 'svhn'"):
        AccuracyTable(["svhn"], {FIRST: [1.0]}, complete=False)
    with pytest.raises(InvalidValueError, match="datasets must hold different names"):
        AccuracyTable(["cifar10", "cifar10"], {FIRST: [1.0, 2.0]}, complete=False)
    with pytest.raises(DataError, match="must have 1 values, got 2"):
        AccuracyTable(["cifar10"], {FIRST: [1.0, 2.0]}, complete=False)
    rows = {arch: [50.0] for arch in all_strings()}
    assert len(AccuracyTable(["cifar10"], rows)) == 15_625
    del rows[ALL_SKIP]
    with pytest.raises(DataError) as error:
        AccuracyTable(["cifar10"], rows)
    assert str(error.value) == f"accuracy table must have 15625 rows, got 15624, without {ALL_SKIP}"


def test_faulty_questions(written: Path) -> None:
    table = AccuracyTable.load(written, complete=False)
    with pytest.raises(DataError) as error:
        table.query(FOURTH)
    assert str(error.value) == f"accuracy table must hold the cell asked for, got none for {FOURTH}"
    with pytest.raises(GenotypeError, match="must have 3 nodes"):
        table.query("junk")
    for ask in (lambda name: table.rank(FIRST, name), lambda name: table.regret(FIRST, name), table.best):
        with pytest.raises(
            InvalidValueError, match="dataset must be one of cifar10, cifar100, ImageNet16-120, got 'cifar11'"
        ):
            ask("cifar11")


class OfficialApi:
    """The names and meanings of the calls that NATS-Bench and NAS-Bench-201 offer, on three cells."""

    def __init__(self, *, without: str = "") -> None:
        self.meta_archs = [FIRST, SECOND, THIRD]
        self.without = without

    def __len__(self) -> int:
        return len(self.meta_archs)

    def arch(self, index: int) -> str:
        return self.meta_archs[index]

    def get_more_info(
        self, index: int, dataset: str, iepoch: int | None = None, hp: str = "12", is_random: bool = True
    ) -> Mapping[str, float]:
        assert iepoch is None
        assert hp == "200"
        assert is_random is False
        place = ("cifar10", "cifar100", "ImageNet16-120").index(dataset)
        info = {"train-accuracy": 99.0, "valid-accuracy": 1.0, "valtest-accuracy": 2.0}
        if dataset != self.without:
            info["test-accuracy"] = 10.123456 * (index + 1) + place
        return info


def test_import_from_the_official_api(tmp_path: Path) -> None:
    path = tmp_path / "imported.csv"
    table = import_table(OfficialApi(), path, complete=False)
    assert path.read_text().splitlines()[:2] == [HEADER, f"{FIRST},10.1235,11.1235,12.1235"]
    read = AccuracyTable.load(path, complete=False)
    for index, arch in enumerate((FIRST, SECOND, THIRD)):
        expected = [round(10.123456 * (index + 1) + place, 4) for place in range(3)]
        assert list(read.query(arch).values()) == expected
        assert table.query(arch) == read.query(arch)


def test_faulty_imports_write_nothing(tmp_path: Path) -> None:
    path = tmp_path / "imported.csv"
    with pytest.raises(DataError, match=r"cell 0 \(.*\), cifar100: must give test-accuracy, got train-acc"):
        import_table(OfficialApi(without="cifar100"), path, complete=False)
    with pytest.raises(DataError, match="must have 15625 rows, got 3, without"):
        import_table(OfficialApi(), path)
    api = OfficialApi()
    api.meta_archs[2] = FIRST
    with pytest.raises(DataError, match="cell 2: arch must not repeat"):
        import_table(api, path, complete=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunFolderError, match="cannot be written"):
        import_table(OfficialApi(), tmp_path / "none" / "imported.csv", complete=False)


@pytest.fixture(scope="module")
def real() -> AccuracyTable:
    if not REAL.is_file():
        pytest.skip(f"{REAL} is not here")
    return AccuracyTable.load(REAL)


def test_known_facts_of_the_benchmark(real: AccuracyTable) -> None:
    assert len(real) == 15_625
    for dataset, accuracy in (("cifar10", 94.37), ("cifar100", 73.51), ("ImageNet16-120", 47.31)):
        best = real.best(dataset)
        assert real.query(best)[dataset] == pytest.approx(accuracy, abs=0.006)
        assert real.rank(best, dataset) == 1
        assert real.regret(best, dataset) == 0
    # what DARTS collapses to, with the accuracies that the benchmark's paper gives for DARTS
    skip = real.query(ALL_SKIP)
    assert [round(value, 2) for value in skip.values()] == [54.3, 15.61, 16.32]
    assert real.regret(ALL_SKIP, "cifar10") == pytest.approx(94.3733 - 54.30, abs=0.01)
    # a cell that lets nothing through guesses
    assert real.query(ALL_NONE)["cifar10"] == pytest.approx(10, abs=0.01)


def test_real_table_is_written_as_it_was(real: AccuracyTable, tmp_path: Path) -> None:
    real.save(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == REAL.read_bytes()


def test_look_ups_take_microseconds(real: AccuracyTable) -> None:
    """A study asks about every cell again and again: 15,625 questions of each kind within seconds."""
    start = time.process_time()
    for arch in real.architectures():
        real.query(arch)
        real.rank(arch, "cifar10")
        real.regret(arch, "cifar100")
    assert time.process_time() - start < 5
