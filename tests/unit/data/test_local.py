"""The user's own files: every text once, without a loss, and what is no good is counted with its place."""

from __future__ import annotations

import gzip
import json
import pickle
import random
from collections import Counter

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma.core.errors import ConfigError
from sigma.data import json_lines, text_files
from sigma.data.limits import RecordLimits
from sigma.data.local import LocalFiles
from sigma.data.record import Damaged, DataError, Unavailable
from sigma.data.text_files import cut_length
from sigma.data.window_source import WindowSource
from tests.unit.data.layouts import parquet


def lines(*rows):
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def read_all(collection, file=0, start=0):
    """(texts, reasons, places) of a file from a position on, and the positions of its blocks."""
    position, texts, skipped, places, positions = start, [], Counter(), [], []
    while position is not None:
        block = collection.read(file, position)
        assert block.next is None or block.next > position
        texts += [record.text for record in block.records]
        skipped += block.skipped
        places += block.places
        positions.append(position)
        position = block.next
    return texts, skipped, places, positions


def test_an_empty_or_missing_folder_says_what_to_put_where(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"holds no text: put files that end in \.txt, .*--data-dir") as caught:
            LocalFiles(folder)
        assert str(folder) in str(caught.value)


def test_every_kind_of_file_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/e.TXT").write_text("five")
    (tmp_path / "a.txt").write_text("one é")
    (tmp_path / "b.md").write_text("# two")
    (tmp_path / "c.jsonl").write_bytes(lines({"text": "three"}))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines({"text": "four", "id": 4})))
    (tmp_path / "f.jsonl.zst").write_bytes(zstandard.compress(lines({"text": "six"})))
    (tmp_path / "g.parquet").write_bytes(parquet({"text": ["seven", "eight"], "other": [1, 2]}))
    for ignored in ("README.txt", ".hidden.txt", "picture.png", "h.json", ".git/x.txt"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_text("not this")
    collection = LocalFiles(tmp_path)
    names = [file.path for file in collection.files()]
    assert names == ["a.txt", "b.md", "c.jsonl", "d.jsonl.gz", "f.jsonl.zst", "g.parquet", "sub/e.TXT"]
    texts = [text for i in range(len(names)) for text in read_all(collection, i)[0]]
    assert texts == ["one é", "# two", "three", "four", "six", "seven", "eight", "five"]


def test_the_pin_is_of_the_contents_and_not_of_the_place(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("some text")
    here, there = LocalFiles(tmp_path / "here"), LocalFiles(tmp_path / "there")
    here.files(), there.files()
    assert here.pin == there.pin
    (tmp_path / "there/a.txt").write_text("same size")
    other = LocalFiles(tmp_path / "there")
    other.pin_to(here.pin)
    with pytest.raises(DataError, match="not those that the run was started with"):
        other.files()


def test_a_file_that_goes_away_is_unavailable_until_it_is_back(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some text")
    collection = LocalFiles(tmp_path)
    collection.files()
    path.rename(tmp_path / "b")
    with pytest.raises(Unavailable, match=r"a\.txt"):
        collection.read(0, 0)
    (tmp_path / "b").rename(path)
    assert read_all(collection)[0] == ["some text"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_disk_that_fails_in_the_middle_is_no_damage(tmp_path, suffix, monkeypatch):
    rows = [f"text {i}" for i in range(3000)]
    content = lines(*({"text": row} for row in rows)) if suffix == "jsonl" else parquet({"text": rows}, row_group=1500)
    (tmp_path / f"a.{suffix}").write_bytes(content)
    collection = LocalFiles(tmp_path)
    first = collection.read(0, 0)

    class Failing:
        def __getattr__(self, name):
            raise OSError(5, "Input/output error")

    reader = collection._open[1]
    for name in ("_file", "_unpacked"):
        monkeypatch.setattr(reader, name, Failing(), raising=False)
    with pytest.raises(Unavailable, match="Input/output error"):
        read_all(collection, start=first.next)
    monkeypatch.undo()
    texts = read_all(collection, start=first.next)[0]
    assert [record.text for record in first.records] + texts == rows


# ------------------------------------------------------------------ txt
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["\n", "\n\n", " ", "€" * 50]), max_size=40
    ),
    st.integers(8, 64),
)
def test_joined_documents_are_the_file(tmp_path_factory, parts, size):
    folder = tmp_path_factory.mktemp("texts")
    text = "".join(parts).lstrip("\ufeff") + "."
    (folder / "a.txt").write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "DOCUMENT_BYTES", size)
        patch.setattr(text_files, "BLOCK_DOCUMENTS", 3)
        texts, skipped, _, _ = read_all(LocalFiles(folder))
    blank = skipped["empty"]
    assert sum(skipped.values()) == blank
    if not blank:
        assert "".join(texts) == text
    assert all(len(part.encode()) <= size for part in texts)


@pytest.mark.parametrize(
    "data, first",
    [
        ("one\n\ntwo\n\nthree", "one\n\ntwo\n\n"),
        ("one\r\n\r\ntwo three", "one\r\n\r\n"),
        ("one\ntwo three", "one\n"),
        ("one two three", "one two "),
        ("onetwothree", "onetwothree"),
    ],
)
def test_a_long_text_is_cut_at_a_paragraph_else_a_line_else_a_word(data, first):
    assert data.encode()[: cut_length(data.encode())].decode() == first


@pytest.mark.parametrize("end", range(1, 12))
def test_a_cut_is_never_inside_a_character(end):
    data = "aé€😀z".encode()[:end]
    data[: cut_length(data)].decode()
    assert cut_length(data) > 0


def test_text_that_is_not_utf8_is_counted_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"first\nsecond \xe9\nthird")
    (tmp_path / "b.txt").write_text("a byte order mark", "utf-8-sig")
    (tmp_path / "c.txt").write_text("for Windows", "utf-16")
    collection = LocalFiles(tmp_path)
    assert read_all(collection, 0)[:3] == ([], Counter({"not UTF-8": 1}), ["a.txt, line 2: not UTF-8"])
    assert read_all(collection, 1)[0] == ["a byte order mark"]
    assert read_all(collection, 2)[1] == Counter({"not UTF-8": 1})


def test_one_bad_byte_costs_its_document_and_not_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "DOCUMENT_BYTES", 10)
    (tmp_path / "a.txt").write_bytes(b"aaaaaa\n\nbb\xff\n\ncccccc\n\n")
    texts, skipped, places, _ = read_all(LocalFiles(tmp_path))
    assert (texts, skipped) == (["aaaaaa\n\n", "cccccc\n\n"], Counter({"not UTF-8": 1}))
    assert places == ["a.txt, line 3: not UTF-8"]


# ------------------------------------------------------------------ jsonl
ROWS = [{"text": f"row {i} " + "é" * (i % 7)} for i in range(50)]
ZSTD = zstandard.ZstdCompressor(write_checksum=True)
PACKERS = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": ZSTD.compress}


@pytest.mark.parametrize("suffix", PACKERS)
def test_reading_from_any_block_on_gives_the_rest(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(json_lines, "BLOCK_LINES", 7)
    (tmp_path / f"a.{suffix}").write_bytes(PACKERS[suffix](lines(*ROWS)))
    texts, _, _, positions = read_all(LocalFiles(tmp_path))
    assert texts == [row["text"] for row in ROWS]
    assert len(positions) == 8
    for number, position in enumerate(positions):
        assert read_all(LocalFiles(tmp_path), start=position)[0] == texts[7 * number :]


BAD_LINES = {
    "no JSON": (b"{nope\n", "broken line"),
    "cut off": (b'{"text": "ab\n', "broken line"),
    "deep": (b"[" * 200_000 + b"\n", "broken line"),
    "a huge number": (b'{"text": ' + b"9" * 5000 + b"}\n", "broken line"),
    "no object": (b'["text"]\n', "no text"),
    "no text": (b'{"body": "x"}\n', "no text"),
    "text is a number": (b'{"text": 5}\n', "no text"),
    "text is null": (b'{"text": null}\n', "no text"),
    "empty": (b'{"text": ""}\n', "empty"),
    "not UTF-8": (b'{"text": "\xff"}\n', "not UTF-8"),
    "half a surrogate pair": (b'{"text": "\\ud800"}\n', "not UTF-8"),
    "many brackets": (b'{"text": "a", "b": [' + b"[]," * 400_000 + b"[]]}\n", "too large"),
    "NaN": (b'{"text": NaN}\n', "no text"),
    "NUL bytes": (bytes(50) + b"\n", "broken line"),
}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_counted_with_its_number_and_takes_nothing_with_it(tmp_path, name, suffix):
    line, reason = BAD_LINES[name]
    noise = {"text": random.Random(1).randbytes(20_000).hex()}  # or the file is a bomb by its ratio
    content = lines({"text": "before"}, b"\n", noise, line, {"text": "after"})
    (tmp_path / f"a.{suffix}").write_bytes(PACKERS[suffix](content))
    texts, skipped, places, _ = read_all(LocalFiles(tmp_path))
    assert (texts, skipped) == (["before", noise["text"], "after"], Counter({reason: 1}))
    assert places == [f"a.{suffix}, line 4: {reason}"]


@pytest.mark.parametrize("length", [99, 100, 101, 102, 250, 5000])
def test_a_line_longer_than_a_record_is_skipped_without_being_read_at_once(tmp_path, length, monkeypatch):
    monkeypatch.setattr(json_lines, "PIECE", 30)
    row = b'{"text": "' + b"x" * (length - 13) + b'"}\n'
    assert len(row) == length
    (tmp_path / "a.jsonl").write_bytes(row + lines({"text": "after"}))
    texts, skipped, _, _ = read_all(LocalFiles(tmp_path, RecordLimits(record_bytes=100)))
    assert texts[-1] == "after"
    assert skipped == (Counter() if length <= 101 else Counter({"too large": 1}))


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "flip", "noise", "bomb", "not packed"])
def test_a_packed_file_that_is_damaged_gives_what_comes_before(tmp_path, suffix, damage):
    rng = random.Random(3)
    rows = [{"text": rng.randbytes(500).hex()} for _ in range(400)]
    packed = PACKERS[suffix](lines(*rows))
    half = len(packed) // 2
    content = {
        "cut": packed[:half],
        "flip": packed[:half] + bytes([packed[half] ^ 255]) + packed[half + 1 :],
        "noise": packed[:half] + rng.randbytes(1000),
        "bomb": PACKERS[suffix](lines(*rows[:3]) + bytes(30 << 20)),
        "not packed": lines(*rows),
    }[damage]
    (tmp_path / f"a.{suffix}").write_bytes(content)
    collection, position, texts, damaged = LocalFiles(tmp_path), 0, [], 0
    while position is not None:
        try:
            block = collection.read(0, position)
        except Damaged as error:
            damaged, position = damaged + 1, error.resume
            continue
        texts += [record.text for record in block.records]
        damaged += block.skipped.total()
        position = block.next
    sound = {"bomb": 3, "not packed": 0}.get(damage, 120)  # a flipped bit is found at the end of its member, or never
    assert texts[:sound] == [row["text"] for row in rows[:sound]]
    assert damaged >= 1
    assert len(texts) < 400


def test_a_slow_line_is_damage_and_the_next_one_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "one"}, {"text": "two"}))
    with pytest.raises(Damaged, match="takes more than") as caught:
        LocalFiles(tmp_path, RecordLimits(seconds=-1)).read(0, 0)
    assert caught.value.resume == len(lines({"text": "one"}))


# ------------------------------------------------------------------ as a source
def test_local_files_are_an_endless_source_that_resumes_exactly(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(*({"text": f"{name}{i}"} for i in range(30))))
    (tmp_path / "d.txt").write_text("a text")
    stream = WindowSource(LocalFiles(tmp_path), 1)
    ids = [next(stream).id for _ in range(250)]
    assert Counter(ids[:91]) == Counter(ids[91:182]) == dict.fromkeys(ids[:91], 1)
    stream.close()
    for stop in range(0, 200, 23):
        first = WindowSource(LocalFiles(tmp_path), 1)
        assert [next(first).id for _ in range(stop)] == ids[:stop]
        second = pickle.loads(pickle.dumps(first))
        assert [next(second).id for _ in range(30)] == ids[stop : stop + 30]
