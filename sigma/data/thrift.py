"""Thrift's compact protocol, as far as parquet needs it: structs as {field number: value}, or skipped and counted.

A few bytes can announce millions of elements. Every element costs from a budget, so nothing large is made of them.
Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
MOST_NESTING = 12


class ThriftError(ValueError):
    """Bytes that are not the compact protocol, or announce more than they may."""


class CompactReader:
    """Reads from `data` at `at`. `structs` and `elements` are what it may still meet."""

    def __init__(self, data: bytes | memoryview, at: int = 0, *, structs: int = 64, elements: int = 4096) -> None:
        self._data, self.at = data, at
        self._structs, self._elements = structs, elements
        self._nesting = 0

    def struct(self) -> dict[int, Any]:
        """The struct that begins here. Binary values and containers are skipped; their value is None."""
        self._structs -= 1
        self._nesting += 1
        if self._structs < 0 or self._nesting > MOST_NESTING:
            raise ThriftError("more structs than allowed")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            kind, step = head & 15, head >> 4
            number = number + step if step else self._zigzag()
            fields[number] = self._value(kind, in_struct=True)
        self._nesting -= 1
        return fields

    def _value(self, kind: int, *, in_struct: bool) -> Any:
        self._elements -= 1
        if self._elements < 0:
            raise ThriftError("more elements than allowed")
        if kind in (TRUE, FALSE):
            return kind == TRUE if in_struct else self._byte() == TRUE
        if kind in (I16, I32, I64):
            return self._zigzag()
        if kind == STRUCT:
            return self.struct()
        if kind in (BYTE, DOUBLE, BINARY):
            self._skip({BYTE: 1, DOUBLE: 8}.get(kind) or self._varint())
        elif kind in (LIST, SET):
            self._list()
        elif kind == MAP:
            self._map()
        else:
            raise ThriftError(f"unknown type {kind}")
        return None

    def _list(self) -> None:
        head = self._byte()
        size = head >> 4 if head >> 4 != 15 else self._varint()
        for _ in range(size):
            self._value(head & 15, in_struct=False)

    def _map(self) -> None:
        if size := self._varint():
            kinds = self._byte()
            for _ in range(size):
                self._value(kinds >> 4, in_struct=False)
                self._value(kinds & 15, in_struct=False)

    def _byte(self) -> int:
        if self.at >= len(self._data):
            raise ThriftError("ends too early")
        self.at += 1
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ThriftError("a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, size: int) -> None:
        if size > len(self._data) - self.at:
            raise ThriftError("ends too early")
        self.at += size
