"""How large the pages of a parquet file become, read from their headers before anything is unpacked.

A page is what is compressed and unpacked as a whole. Its header says how large it becomes, and readers go by
nothing else, so that a few bytes may make two gigabytes. Headers are structures of Thrift's compact protocol;
of the structure PageHeader two numbers are wanted (parquet-format, README.md and parquet.thrift).
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

HEADER = 2**16
"""Bytes that a header may have; its statistics hold the smallest and the largest value of the page, which
writers cut to 4 kB."""
DEEPEST = 8
"""Levels of structures in structures; a page header has 3."""
UNCOMPRESSED, COMPRESSED = 2, 3
"""Numbers of fields of PageHeader."""


class Page(NamedTuple):
    """Bytes of a page as it is stored and once it is unpacked."""

    stored: int
    unpacked: int


def pages(file: BinaryIO, start: int, length: int) -> Iterator[Page]:
    """The pages of the column chunk that stands at `start` in `file`, `length` bytes of it.

    Raises ValueError where a header is none.
    """
    end = start + length
    while start < end:
        file.seek(start)
        header = _Thrift(file.read(min(HEADER, end - start)))
        fields = header.structure()
        page = Page(fields.get(COMPRESSED, -1), fields.get(UNCOMPRESSED, -1))
        if min(page) < 0:
            raise ValueError(f"a page must have sizes >= 0, got {page.stored} and {page.unpacked}")
        start += header.place + page.stored
        yield page


class _Thrift:
    """A reader of Thrift's compact protocol: numbers are kept, all else is passed over."""

    def __init__(self, content: bytes) -> None:
        self._content, self.place = content, 0

    def structure(self, depth: int = 0) -> dict[int, int]:
        """The whole numbers of a structure, by the numbers of their fields."""
        found: dict[int, int] = {}
        number = 0
        while kind := self._byte():
            # the upper half is the distance to the field before, or 0 where the number itself follows
            number = number + (kind >> 4) if kind >> 4 else self._integer()
            value = self._value(kind & 15, depth, in_list=False)
            if isinstance(value, int):
                found[number] = value
        return found

    def _value(self, kind: int, depth: int, in_list: bool) -> Any:
        if depth > DEEPEST:
            raise ValueError("a page header must not be so deep")
        if kind in (1, 2):
            # a truth value is in its field's kind, in a list it is a byte
            self.place += in_list
        elif kind == 3:
            self.place += 1
        elif kind in (4, 5, 6):
            return self._integer()
        elif kind == 7:
            self.place += 8
        elif kind == 8:
            length = self._varint()
            self.place += length
        elif kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            for _ in range(min(count, HEADER + 1)):
                self._value(head & 15, depth + 1, in_list=True)
                self._check()
        elif kind == 12:
            self.structure(depth + 1)
        else:
            raise ValueError(f"a page header must not hold a value of kind {kind}")
        self._check()
        return None

    def _check(self) -> None:
        if self.place > len(self._content):
            raise ValueError(f"a page header must end within {len(self._content)} bytes, got a longer")

    def _byte(self) -> int:
        self.place += 1
        self._check()
        return self._content[self.place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
