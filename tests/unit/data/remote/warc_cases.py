"""Malformed and malicious WET files. A case is the bytes between two sound records, the reasons that are counted for
them, and the texts that are still read out of them.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field

from tests.unit.data.layouts import member, wet_record

TEXT = "A sound record, with an é in it.\n\nIt has a second paragraph."
GOOD = wet_record(TEXT, 1)
HEAD, BODY = GOOD.split(b"\r\n\r\n", 1)


@dataclass(frozen=True)
class Case:
    between: bytes
    skipped: Counter[str] = field(default_factory=Counter)
    texts: tuple[str, ...] = ()


def bad(content: bytes, reason: str = "broken record", n: int = 1) -> Case:
    """One member whose record is left out."""
    return Case(member(content), Counter({reason: n}))


def raw(between: bytes, reason: str = "broken gzip", n: int = 1) -> Case:
    """Bytes that are no sound member."""
    return Case(between, Counter({reason: n}))


def with_header(old: bytes, new: bytes) -> bytes:
    assert old in HEAD
    return GOOD.replace(old, new, 1)


def zeros(megabytes: int) -> bytes:
    """A gzip member of zeros, 1000 times smaller. Nobody reads far enough to see that it has no trailer."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + block * megabytes


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def flipped(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


LENGTHS = ["-1", "-5", "+60", "0x10", "1e3", "", "abc", "٣", "60 60", "1_0", "6 0", "9" * 30, str(2**31), str(2**63)]
LENGTHS += [str(2**64), str(2**64 + len(TEXT.encode())), "99999", "0", "1", "60", "62", "1000000000"]


def cases() -> dict[str, Case]:
    """All cases by name."""
    good = member(GOOD)
    found = {f"length {length[:24]}": bad(wet_record(TEXT, length=length)) for length in LENGTHS}
    found |= {
        "no length": bad(with_header(b"Content-Length", b"X-Length")),
        "two lengths": bad(with_header(b"Content-Type: text/plain", b"Content-Length: 3")),
        "two equal lengths": bad(with_header(b"Content-Type: text/plain", f"content-length: {len(BODY) - 4}".encode())),
        "length with a space before the colon": bad(with_header(b"Content-Length:", b"Content-Length :")),
        "length continued on the next line": bad(with_header(b"Content-Length: ", b"Content-Length:\r\n ")),
        "length in small letters": bad(with_header(b"Content-Length", b"content-length")),
        "no version": bad(with_header(b"WARC/1.0\r\n", b"")),
        "version 9": bad(with_header(b"WARC/1.0", b"WARC/9.9")),
        "version in small letters": bad(with_header(b"WARC/1.0", b"warc/1.0")),
        "version 1.1": Case(member(with_header(b"WARC/1.0", b"WARC/1.1")), texts=(TEXT,)),
        "lines end with LF": bad(GOOD.replace(b"\r\n", b"\n")),
        "no end of the header": bad(HEAD),
        "header cut off": bad(HEAD[:40]),
        "no type": bad(with_header(b"WARC-Type", b"X-Type")),
        "empty type": Case(member(with_header(b"conversion", b""))),
        "another type": Case(member(with_header(b"conversion", b"metadata"))),
        "type in capitals": Case(member(with_header(b"conversion", b"CONVERSION")), texts=(TEXT,)),
        "header line without colon": Case(member(with_header(b"WARC-Date:", b"WARC-Date")), texts=(TEXT,)),
        "header of 1 MB": bad(with_header(b"eng", noise(1 << 20).hex().encode())),
        "header of 40,000 lines": bad(with_header(b"eng", b"".join(b"\r\nA: %d" % i for i in range(40_000)))),
        "header of 10,000 continued lines": bad(with_header(b"eng", b"\r\n " * 10_000)),
        "header with one continued line": bad(with_header(b"eng", b"eng\r\n\tfra")),
        "header with bytes that are no text": bad(with_header(b"eng", b"\0\xff\xfe")),
        "ARC record": bad(b"http://a/ 1.2.3.4 20250101000000 text/html 5\nhello\n"),
        "HTML nested 10,000 times": bad(b"<html>" + b"<div>" * 10_000),
        "empty member": Case(member(b"")),
        "only empty lines": bad(b"\r\n" * 9),
        "no empty line at the end": Case(member(GOOD[:-4]), texts=(TEXT,)),
        "one empty line at the end": Case(member(GOOD[:-2]), texts=(TEXT,)),
        "more empty lines at the end": Case(member(GOOD + b"\r\n" * 5), texts=(TEXT,)),
        "text behind the record": Case(member(GOOD + b"more"), Counter({"broken record": 1}), (TEXT,)),
        "two records in a member": Case(member(GOOD + GOOD), texts=(TEXT, TEXT)),
        "a sound and a broken record in a member": Case(
            member(GOOD + wet_record(TEXT, length="7")), Counter({"broken record": 1}), (TEXT,)
        ),
        "empty text": bad(wet_record(""), "empty"),
        "only spaces": bad(wet_record(" \n\t " * 50), "empty"),
        "Latin-1": bad(wet_record("é".encode("latin-1") * 50), "not UTF-8"),
        "UTF-16": bad(wet_record(TEXT.encode("utf-16")), "not UTF-8"),
        "surrogates": bad(wet_record(b"a \xed\xa0\x80\xed\xb0\x80 b"), "not UTF-8"),
        "overlong slash": bad(wet_record(b"a \xc0\xaf b"), "not UTF-8"),
        "overlong NUL": bad(wet_record(b"a \xc0\x80 b"), "not UTF-8"),
        "beyond Unicode": bad(wet_record(b"a \xf4\x90\x80\x80 b"), "not UTF-8"),
        "cut in a character": bad(wet_record("é".encode()[:1]), "not UTF-8"),
        "random bytes as text": bad(wet_record(noise(5000)), "not UTF-8"),
        "NUL in the text": Case(member(wet_record("a\0b")), texts=("a\0b",)),
        "text that looks like a record": Case(member(wet_record(GOOD)), texts=(GOOD.decode(),)),
        "text that is gzip magic": Case(member(wet_record("\x1f\x08" * 40)), texts=("\x1f\x08" * 40,)),
        "a line of 1 MB": Case(member(wet_record(_wide())), texts=(_wide(),)),
        # gzip
        "zeros": raw(bytes(500)),
        "noise": raw(noise(3000)),
        "text without gzip": raw(GOOD),
        "magic alone": raw(b"\x1f\x8b\x08", "cut off"),
        "magic many times": raw(b"\x1f\x8b\x08" * 300, "cut off"),
        "header of gzip alone": raw(good[:10]),
        "cut in half": raw(good[: len(good) // 2]),
        "without its last byte": raw(good[:-1]),
        "without its check sum": raw(good[:-8]),
        "wrong check sum": raw(good[:-8] + b"abcd" + good[-4:]),
        "wrong length in the trailer": raw(good[:-4] + struct.pack("<I", 5)),
        "reserved flags": raw(good[:3] + b"\xe0" + good[4:]),
        "unknown method": raw(b"\x1f\x8b\x07" + good[3:]),
        "reserved block type": raw(good[:10] + b"\x07" + good[11:]),
        "stored block with a wrong length": raw(good[:10] + b"\x01\x05\x00\x00\x00hello" + good[-8:]),
        "distance before the beginning": raw(good[:10] + bytes.fromhex("4b04a2e0") + good[-8:]),
        "zlib in place of gzip": raw(zlib.compress(GOOD)),
        "raw deflate in place of gzip": raw(zlib.compress(GOOD)[2:-4]),
        "xz in place of gzip": raw(b"\xfd7zXZ\0" + noise(400)),
        "zstd in place of gzip": raw(b"\x28\xb5\x2f\xfd\x04\x00" + noise(300)),
        "brotli bomb in place of gzip": raw(b"\x5b\xff\xff\xff" + b"\x60\x02" * 200),
        "gzip in gzip": bad(good),
        "gzip in gzip in gzip": bad(member(member(good))),
        "gzip with a name and a comment": Case(
            good[:3] + b"\x18" + good[4:10] + b"name.wet\0a comment\0" + good[10:], texts=(TEXT,)
        ),
        "gzip with an extra field": Case(good[:3] + b"\x04" + good[4:10] + b"\x04\0abcd" + good[10:], texts=(TEXT,)),
        "gzip with a name of 30 KB": Case(
            good[:3] + b"\x08" + good[4:10] + b"n" * 30_000 + b"\0" + good[10:], texts=(TEXT,)
        ),
        # bombs
        "1 MB of zeros": raw(member(bytes(1 << 20)), "compression ratio"),
        "64 MB of zeros": raw(zeros(64), "compression ratio"),
        "1 GB of zeros": raw(zeros(1024), "compression ratio"),
        "a record of 8 MB of one letter": raw(member(wet_record("a" * (8 << 20))), "compression ratio"),
        "a bomb in a bomb": bad(wet_record(zeros(8)), "not UTF-8"),
        "17 MB that hardly pack": raw(member(wet_record(noise(17 << 20))), "too large"),
    }
    rng = random.Random(6)
    sound = member(GOOD)
    for number in range(24):
        found[f"flipped bit {number}"] = raw(flipped(sound, rng.randrange(80, 8 * (len(sound) - 8))))
    for number in range(8):
        found[f"cut at {number}"] = raw(sound[: rng.randrange(10, len(sound) - 9)])
    return found


def _wide() -> str:
    """A megabyte without a line break that does not pack well."""
    rng = random.Random(1)
    return " ".join(str(rng.randrange(10**6)) for _ in range(150_000))
