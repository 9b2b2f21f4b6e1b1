"""What parquet files say of themselves: as pyarrow has it, and strictly."""

import io
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgenas.data.parquet_pages import Chunk, Page, RowGroup, pages, row_groups
from sgenas.data.thrift import I32, I64, Thrift

STOP = b"\x00"


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def zigzag(value: int) -> bytes:
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def field(number: int, kind: int, content: bytes) -> bytes:
    """In the long form, in which its number stands behind its kind."""
    return bytes([kind]) + zigzag(number) + content


def number(at: int, value: int, kind: int = I64) -> bytes:
    return field(at, kind, zigzag(value))


def listed(kind: int, items: list[bytes]) -> bytes:
    return bytes([0xF0 | kind]) + varint(len(items)) + b"".join(items)


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_row_groups_as_pyarrow_has_them(dictionary: bool, compression: str) -> None:
    kept = io.BytesIO()
    images = [{"bytes": bytes([row]) * 50, "path": None} for row in range(7)]
    table = pa.table({"a.b": images, "label": range(7)})
    pq.write_table(table, kept, row_group_size=3, use_dictionary=dictionary, compression=compression)
    metadata = pq.ParquetFile(kept).metadata
    expected = []
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        columns = [group.column(index) for index in range(group.num_columns)]
        starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
        lengths = [column.total_compressed_size for column in columns]
        expected.append(
            RowGroup(group.num_rows, [Chunk(*pair) for pair in zip(starts, lengths, strict=True)])
        )
    assert [group.rows for group in expected] == [3, 3, 1]
    assert row_groups(kept) == expected
    unpacked = sum(page.unpacked for page in pages(kept, expected[0].chunks[0]))
    # 3 values, each with its length in 4 bytes
    assert unpacked >= 3 * 54


def test_pages_one_behind_the_other() -> None:
    first = number(2, 300, I32) + number(3, 4, I32) + STOP
    second = number(3, 2, I32) + field(5, 12, number(1, 7) + STOP) + number(2, 9, I32) + STOP
    file = io.BytesIO(b"......" + first + b"1234" + second + b"12" + b"other")
    length = len(first) + 4 + len(second) + 2
    assert list(pages(file, Chunk(6, length))) == [Page(4, 300), Page(2, 9)]


def test_all_kinds_of_values_are_passed_over() -> None:
    values = [
        field(20, 1, b""),
        field(21, 2, b""),
        field(22, 3, b"\x07"),
        field(23, 4, zigzag(-5)),
        field(24, 7, bytes(8)),
        field(25, 8, b"\x03abc"),
        field(26, 9, listed(1, [b"\x01", b"\x02"])),
        field(27, 10, b"\x25" + zigzag(1) + zigzag(2)),
        field(28, 12, number(1, 3) + STOP),
    ]
    reader = Thrift(b"".join(values) + number(2, -(2**63)) + STOP, "it")
    assert reader.structure({2: I64}) == {2: -(2**63)}
    # the short form: the distance to the field before
    assert Thrift(b"\x16\x02\x26\x04" + STOP, "it").structure({1: I64, 3: I64}) == {1: 1, 3: 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (number(2, 1) + number(2, 5) + STOP, "it must hold field 2 once"),
        (number(2, 1, I32) + STOP, "it must hold what is asked of it, got a value of kind 5"),
        (
            field(3, 9, listed(I64, [zigzag(1)])) + STOP,
            "it must hold what is asked of it, got a value of kind 6",
        ),
        (field(3, 9, listed(12, [STOP] * 4)), "it must hold at most 3 parts and columns of them"),
        (field(3, 12, STOP) + STOP, "it must hold what is asked of it, got a value of kind 12"),
        (number(2**16 + 2, 1) + STOP, "it must have fields with numbers from 1 to 32767, got 65538"),
        (number(-1, 1) + STOP, "it must have fields with numbers from 1 to 32767, got -1"),
        (field(4, I32, zigzag(2**32)) + STOP, "it must hold a number of at most 32 bits there"),
        (field(2, I64, b"\xff" * 9 + b"\x02") + STOP, "it must hold a number of at most 64 bits there"),
        (field(2, I64, b"\x80" * 12) + STOP, "it must hold a number of at most 64 bits there"),
        (field(9, 11, b"\x00") + STOP, "it must not hold a value of kind 11"),
        (field(9, 12, b"\x1c" * 99) + STOP, "it must not be so deep"),
        (field(3, 9, b"\x1c" * 99) + STOP, "it must hold what is asked of it, got a value of kind 12"),
        (field(9, 8, b"\x7f") + STOP, "it must end within 4 bytes, got a longer"),
        (field(9, 9, b"\xf5\xff\xff\xff\x7f") + STOP, "it must end within 8 bytes, got a longer"),
        (number(2, 1), "it must end within 3 bytes, got a longer"),
    ],
)
def test_refuses_what_others_may_read_otherwise(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Thrift(content, "it", items=3).structure({2: I64, 3: [{1: I64}], 4: I32})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it must end with PAR1, as Parquet files do, got b''"),
        (b"PAR1\x00\x00\x00\x00PARE", "it must end with PAR1, as Parquet files do, got b'PARE'"),
        (b"PAR1\x09\x00\x00\x00PAR1", "its footer must be inside of it, got 9 bytes of 4"),
    ],
)
def test_refuses_what_has_no_footer(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        row_groups(io.BytesIO(content))


@pytest.mark.parametrize(("start", "length"), [(-4, 8), (4, -8)])
def test_refuses_columns_that_are_nowhere(start: int, length: int) -> None:
    meta = field(3, 12, number(7, length) + number(9, start) + STOP)
    group = field(1, 9, listed(12, [meta + STOP])) + number(3, 2)
    footer = field(4, 9, listed(12, [group + STOP])) + STOP
    file = io.BytesIO(b"PAR1" + footer + np.array(len(footer), "<u4").tobytes() + b"PAR1")
    message = f"pages of a column must have a place and a length >= 0, got {start} and {length}"
    with pytest.raises(ValueError, match=re.escape(message)):
        row_groups(file)


@pytest.mark.parametrize(("levels", "deep"), [(32, False), (33, True)])
def test_refuses_columns_in_columns_without_end(levels: int, deep: bool) -> None:
    elements = [number(5, 1, I32) + STOP] * (levels - 1) + [STOP]
    footer = field(2, 9, listed(12, elements)) + STOP
    file = io.BytesIO(b"PAR1" + footer + np.array(len(footer), "<u4").tobytes() + b"PAR1")
    if deep:
        with pytest.raises(ValueError, match="its columns must have at most 32 levels"):
            row_groups(file)
    else:
        assert row_groups(file) == []


def test_columns_side_by_side_are_not_deep() -> None:
    elements = [number(5, 3, I32) + STOP, number(5, 40, I32) + STOP, *[STOP] * 40, STOP, STOP]
    footer = field(2, 9, listed(12, elements)) + STOP
    assert row_groups(io.BytesIO(b"PAR1" + footer + np.array(len(footer), "<u4").tobytes() + b"PAR1")) == []
