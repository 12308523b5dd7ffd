"""Thrift's compact protocol: what is written is read, and announcing costs."""

from __future__ import annotations

import random

import pytest

from sigma.data.thrift import CompactReader, ThriftError
from tests.unit.data.parquet_writer import BINARY, I32, I64, LIST, STRUCT, struct

SAMPLE = {
    1: (I32, -5),
    2: (I64, 2**62),
    4: (BINARY, b"text" * 50),
    5: (STRUCT, {1: (I32, 7), 200: (I32, 8)}),
    6: (LIST, (I32, list(range(40)))),
    7: (LIST, (STRUCT, [{1: (I32, 1)}, {}])),
    90: (I64, -(2**63)),
}


def test_numbers_and_structs_are_read_and_the_rest_is_skipped():
    data = struct(SAMPLE) + b"more"
    reader = CompactReader(data)
    expected = {1: -5, 2: 2**62, 4: None, 5: {1: 7, 200: 8}, 6: None, 7: None, 90: -(2**63)}
    assert reader.struct() == expected
    assert data[reader.at :] == b"more"


def test_maps_booleans_doubles_and_bytes_are_skipped():
    """{1: true, 2: false, 3: byte, 4: double, 5: map of 2 numbers to bytes, 6: empty map, 7: 9}."""
    fields = b"\x11" + b"\x12" + b"\x13\x07" + b"\x17" + bytes(8) + b"\x1b\x02\x58\x02\x01a\x04\x01b" + b"\x1b\x00"
    assert CompactReader(fields + b"\x15\x12\x00").struct() == {
        1: True, 2: False, 3: None, 4: None, 5: None, 6: None, 7: 9,
    }  # fmt: skip


@pytest.mark.parametrize("end", range(len(struct(SAMPLE))))
def test_a_beginning_alone_is_an_error(end):
    with pytest.raises(ThriftError, match="ends too early"):
        CompactReader(struct(SAMPLE)[:end]).struct()


@pytest.mark.parametrize(
    "data, match",
    [
        (b"\x1c" * 50, "structs"),
        (b"\x19\xf5\xff\xff\xff\xff\x0f" + bytes(9000), "elements"),
        (b"\x19\xfc\x64" + bytes(200), "structs"),
        (b"\x15" + b"\xff" * 12, "64 bits"),
        (b"\x1d", "unknown type"),
        (b"\x18\xff\xff\xff\x7f", "too early"),
    ],
    ids=["nested", "numbers", "structs", "long number", "type", "string"],
)
def test_what_announces_too_much_is_refused(data, match):
    with pytest.raises(ThriftError, match=match):
        CompactReader(data).struct()


def test_noise_gives_a_struct_or_a_thrift_error():
    rng = random.Random(2)
    for _ in range(2000):
        data = rng.randbytes(rng.randrange(60))
        try:
            CompactReader(data).struct()
        except ThriftError:
            continue
