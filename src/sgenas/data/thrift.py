"""Numbers out of structures of Thrift's compact protocol, strictly: the way in which parquet files describe
themselves (thrift-compact-protocol.md of Apache Thrift).

A lenient reader and a strict one may understand the same bytes differently. So that whoever checks a file
with this one sees what another reader sees, a wanted field must be of its kind and stand there once.
"""

from collections.abc import Mapping
from typing import Any

I32, I64 = 5, 6
"""Kinds of whole numbers."""
BINARY, LISTS, STRUCTURE = 8, (9, 10), 12
DEEPEST = 16
"""Levels of lists and structures; a parquet footer has 8."""

Wanted = int | list[Any] | Mapping[int, Any]
"""I32, I64, a mapping {number of a field: what is wanted of it} for a structure, [wanted] for a list."""


class Thrift:
    """A reader that goes through `content`; `place` is where it stands.

    Every method raises ValueError for what is not as the protocol or the caller has it.
    """

    def __init__(self, content: bytes, what: str, items: int = 0) -> None:
        """what: its name in messages. items: how many all wanted lists together may have."""
        self._content, self._what, self.place = content, what, 0
        self._items = self._items_left = items

    def structure(self, wanted: Mapping[int, Wanted], depth: int = 0) -> dict[int, Any]:
        """The wanted fields that are there: numbers, lists and dictionaries. All others are passed over."""
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            kind = head & 15
            # the upper half is the distance to the field before, or 0 where the number itself follows
            number = number + (head >> 4) if head >> 4 else self._integer()
            if not 0 < number < 2**15:
                raise ValueError(f"{self._what} must have fields with numbers from 1 to 32767, got {number}")
            if number not in wanted:
                self._pass(kind, depth, in_list=False)
                continue
            if number in found:
                raise ValueError(f"{self._what} must hold field {number} once")
            found[number] = self._read(wanted[number], kind, depth)
        return found

    def _read(self, wanted: Wanted, kind: int, depth: int) -> Any:
        self._check_depth(depth)
        if isinstance(wanted, list) and kind in LISTS:
            count, inside = self._list_head()
            self._items_left -= count
            if self._items_left < 0:
                raise ValueError(f"{self._what} must hold at most {self._items:,} parts and columns of them")
            return [self._read(wanted[0], inside, depth + 1) for _ in range(count)]
        if isinstance(wanted, Mapping) and kind == STRUCTURE:
            return self.structure(wanted, depth + 1)
        if kind != wanted:
            raise ValueError(f"{self._what} must hold what is asked of it, got a value of kind {kind}")
        return self._integer(32 if kind == I32 else 64)

    def _pass(self, kind: int, depth: int, in_list: bool) -> None:
        """Goes on behind a value."""
        self._check_depth(depth)
        if kind in (1, 2):
            # a truth value is in its field's kind, in a list it is a byte
            self._skip(in_list)
        elif kind == 3:
            self._skip(1)
        elif kind in (4, I32, I64):
            self._integer()
        elif kind == 7:
            self._skip(8)
        elif kind == BINARY:
            self._skip(self._varint())
        elif kind in LISTS:
            count, inside = self._list_head()
            for _ in range(count):
                self._pass(inside, depth + 1, in_list=True)
        elif kind == STRUCTURE:
            self.structure({}, depth + 1)
        else:
            raise ValueError(f"{self._what} must not hold a value of kind {kind}")

    def _list_head(self) -> tuple[int, int]:
        """How many elements a list has, and of which kind."""
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        # each takes a byte or more
        if count > len(self._content) - self.place:
            raise ValueError(f"{self._what} must end within {len(self._content)} bytes, got a longer")
        return count, head & 15

    def _check_depth(self, depth: int) -> None:
        if depth > DEEPEST:
            raise ValueError(f"{self._what} must not be so deep")

    def _skip(self, count: int) -> None:
        self.place += count
        if self.place > len(self._content):
            raise ValueError(f"{self._what} must end within {len(self._content)} bytes, got a longer")

    def _byte(self) -> int:
        self._skip(1)
        return self._content[self.place - 1]

    def _varint(self, bits: int = 64) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if value >> bits or shift > 70:
                # others would cut it off
                raise ValueError(f"{self._what} must hold a number of at most {bits} bits there")
            if byte < 128:
                return value

    def _integer(self, bits: int = 64) -> int:
        value = self._varint(bits)
        return (value >> 1) ^ -(value & 1)
