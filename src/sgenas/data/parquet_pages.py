"""What a parquet file says of itself: how many rows its parts have, and how large its pages become.

Both are read here before pyarrow unpacks anything. It goes by what the file says, so that a few bytes may
make two gigabytes, and its own objects for a description that contradicts itself end the whole process
(26.0.1: a histogram of another length than its column's levels). Structures and the numbers of their fields:
parquet-format, README.md and parquet.thrift.
"""

import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from sgenas import limits
from sgenas.data.thrift import I32, I64, Thrift, Wanted

MAGIC = b"PAR1"
HEADER = 2**16
"""Bytes that a page's header may have; its statistics hold the smallest and the largest value of the page,
which writers cut to 4 kB."""
UNPACKED, STORED, DATA_PAGE_1, DATA_PAGE_2 = 2, 3, 5, 8
"""Of PageHeader."""
PAGE_HEADER: dict[int, Wanted] = {UNPACKED: I32, STORED: I32, DATA_PAGE_1: {2: I32}, DATA_PAGE_2: {4: I32}}
"""With the encodings of both kinds of data pages."""
REFUSED = {6: "DELTA_LENGTH_BYTE_ARRAY", 7: "DELTA_BYTE_ARRAY"}
"""Encodings in which a page of a few bytes may have a thousand million values, all of which pyarrow makes."""
SCHEMA, CHILDREN = 2, 5
"""Of FileMetaData and of SchemaElement."""
DEEPEST = 32
"""Levels of columns in columns; pyarrow 15 goes down any number of them, until its stack ends."""
ROW_GROUPS = 4
"""Of FileMetaData."""
COLUMNS, ROWS = 1, 3
"""Of RowGroup."""
META_DATA = 3
"""Of ColumnChunk."""
LENGTH, DATA_PAGE, DICTIONARY_PAGE = 7, 9, 11
"""Of ColumnMetaData."""
CHUNK = {META_DATA: {LENGTH: I64, DATA_PAGE: I64, DICTIONARY_PAGE: I64}}
FOOTER: dict[int, Wanted] = {SCHEMA: [{CHILDREN: I32}], ROW_GROUPS: [{COLUMNS: [CHUNK], ROWS: I64}]}


class Chunk(NamedTuple):
    """Where the pages of a column in a row group begin, and their bytes with their headers."""

    start: int
    length: int


class RowGroup(NamedTuple):
    rows: int
    chunks: list[Chunk]
    """One for each column, those inside of structures counted one by one."""


class Page(NamedTuple):
    """Bytes of a page as it is stored and once it is unpacked."""

    stored: int
    unpacked: int


def row_groups(file: BinaryIO) -> list[RowGroup]:
    """The parts of a parquet file, from its footer.

    Raises ValueError for a footer of more than `limits.FOOTER` bytes, or one that is none.
    """
    end = file.seek(0, os.SEEK_END) - 8
    file.seek(max(0, end))
    last = file.read(8)
    if last[4:] != MAGIC:
        raise ValueError(f"it must end with {MAGIC.decode()}, as Parquet files do, got {last[4:]!r}")
    size = int.from_bytes(last[:4], "little")
    if size > limits.FOOTER:
        raise ValueError(f"its footer must have at most {limits.FOOTER:,} bytes, got {size:,}")
    if size > end:
        raise ValueError(f"its footer must be inside of it, got {size:,} bytes of {max(0, end):,}")
    file.seek(end - size)
    fields = Thrift(file.read(size), "its footer", limits.CHUNKS).structure(FOOTER)
    _check_depth([element.get(CHILDREN, 0) for element in fields.get(SCHEMA, [])])
    found = []
    for group in fields.get(ROW_GROUPS, []):
        chunks = [_chunk(column.get(META_DATA, {})) for column in group.get(COLUMNS, [])]
        found.append(RowGroup(group.get(ROWS, -1), chunks))
    return found


def _check_depth(children: Sequence[int]) -> None:
    """Raises ValueError for a tree that is too deep; children: of each element, which stand behind it."""
    left: list[int] = []
    for count in children:
        while left and left[-1] == 0:
            left.pop()
        if left:
            left[-1] -= 1
        left.append(max(0, count))
        if len(left) > DEEPEST:
            raise ValueError(f"its columns must have at most {DEEPEST} levels")


def _chunk(fields: dict[int, int]) -> Chunk:
    start, length = fields.get(DATA_PAGE, -1), fields.get(LENGTH, -1)
    # 0 where a writer has left it out
    start = min(start, fields.get(DICTIONARY_PAGE, 0) or start)
    if min(start, length) < 0:
        raise ValueError(f"pages of a column must have a place and a length >= 0, got {start} and {length}")
    return Chunk(start, length)


def pages(file: BinaryIO, chunk: Chunk) -> Iterator[Page]:
    """The pages of a column in a row group.

    Raises ValueError where a header is none.
    """
    start, end = chunk.start, chunk.start + chunk.length
    while start < end:
        file.seek(start)
        header = Thrift(file.read(min(HEADER, end - start)), "a page header")
        fields = header.structure(PAGE_HEADER)
        encoding = fields.get(DATA_PAGE_1, {}).get(2, fields.get(DATA_PAGE_2, {}).get(4, 0))
        if encoding in REFUSED:
            raise ValueError(f"its pages must have another encoding than {REFUSED[encoding]}: write it anew")
        page = Page(fields.get(STORED, -1), fields.get(UNPACKED, -1))
        if min(page) < 0:
            raise ValueError(f"a page must have sizes >= 0, got {page.stored} and {page.unpacked}")
        start += header.place + page.stored
        yield page


def largest_page(file: BinaryIO, groups: Sequence[RowGroup], columns: Sequence[int], name: str) -> int:
    """Bytes of the largest page of the columns at these indices, once it is unpacked.

    Raises ValueError for one that is packed as no honest page is, with the `name` of the columns.
    """
    largest = 0
    for group in groups:
        for column in columns:
            if column >= len(group.chunks):
                raise ValueError(f"a part of it must have column {column}, got {len(group.chunks)} columns")
            for page in pages(file, group.chunks[column]):
                most = max(limits.PAGE, limits.UNPACKED * page.stored)
                if page.unpacked > most:
                    raise ValueError(
                        f"a page of column {name!r} must become at most {most:,} bytes,"
                        f" got {page.unpacked:,} out of {page.stored:,}"
                    )
                largest = max(largest, page.unpacked)
    return largest
