import hashlib
import json
import pickle
import re
from collections import defaultdict

import pytest

from sigma.data.corpus import FOLDER, Corpus, CorpusSource, permutation
from sigma.data.record import DataError


def documents(corpus, kind, validation):
    """(source, document id) -> text, joined from the passages."""
    pieces = defaultdict(list)
    for record in corpus.records(kind, validation=validation):
        name, part = record.id.rsplit("#", 1)
        pieces[record.source, name].append((int(part), record.text))
    return {name: "\n\n".join(text for _, text in sorted(parts)) for name, parts in pieces.items()}


def test_repository_carries_at_most_ten_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 10_000_000


def test_every_file_in_the_folder_is_recorded(corpus):
    recorded = {row["file"] for row in corpus.provenance["archives"]} | {corpus.provenance["tokenizer"]["file"]}
    assert {file.name for file in FOLDER.iterdir()} == recorded | {"provenance.json", "NOTICE.txt"}


def test_provenance_is_complete_and_every_licence_allowed(corpus, build):
    notice = (FOLDER / "NOTICE.txt").read_text("utf-8")
    for row in corpus.provenance["archives"]:
        assert row["title"] in notice
        assert row["files"]
        assert row["licence"] in build.LICENCES
        for file in row["files"]:
            assert set(file) == {"package", "path", "licence", "sha256", "bytes"}
            assert file["licence"] in build.LICENCES
            assert re.fullmatch(r"[0-9a-f]{64}", file["sha256"])
            assert corpus.provenance["packages"][file["package"]]["version"]


def test_documentation_table_is_the_generated_one(corpus, build):
    assert (FOLDER.parents[2] / "docs/corpus.md").read_text("utf-8") == build.table(corpus.provenance)


def test_counts_of_the_provenance_are_those_of_the_archives(corpus):
    for kind in ("natural", "code"):
        rows = [row for row in corpus.provenance["archives"] if row["kind"] == kind]
        train, held_out = documents(corpus, kind, False), documents(corpus, kind, True)
        assert len(train) + len(held_out) == sum(row["documents"] for row in rows)
        assert len(held_out) == sum(row["validation_documents"] for row in rows)


def test_validation_is_chosen_by_document_hash(corpus, build):
    for kind in ("natural", "code"):
        held_out = documents(corpus, kind, True)
        everything = held_out | documents(corpus, kind, False)
        for row in corpus.provenance["archives"]:
            if row["kind"] == kind:
                own = [(name, text) for (source, name), text in everything.items() if source == row["name"]]
                budget = int(sum(len(text.encode()) for _, text in own) * build.VALIDATION_SHARE)
                assert build.choose(own, budget) == {name for source, name in held_out if source == row["name"]}


def test_each_source_is_held_out_in_proportion_and_natural_validation_has_a_megabyte(corpus):
    held_out, train = documents(corpus, "natural", True), documents(corpus, "natural", False)
    sizes = [defaultdict(int), defaultdict(int)]
    for side, texts in zip(sizes, (held_out, train), strict=True):
        for (source, _), text in texts.items():
            side[source] += len(text.encode())
    assert sum(sizes[0].values()) >= 1_000_000
    assert all(0.04 <= sizes[0][source] / (sizes[0][source] + sizes[1][source]) <= 0.0601 for source in sizes[1])


def test_no_document_and_no_long_line_is_on_both_sides(corpus):
    def key(line):
        return re.sub(r"[\W\d_]+", " ", line.lower()).strip()

    hashes, lines, held_lines = [], set(), set()
    for validation in (False, True):
        texts = [*documents(corpus, "natural", validation).values(), *documents(corpus, "code", validation).values()]
        hashes.append({hashlib.sha256(text.encode()).digest() for text in texts})
    for text in documents(corpus, "natural", False).values():
        lines.update(key(line) for line in text.split("\n") if len(line) >= 60)
    for text in documents(corpus, "natural", True).values():
        held_lines.update(key(line) for line in text.split("\n") if len(line) >= 60)
    assert not hashes[0] & hashes[1]
    assert not {line for line in lines & held_lines if len(line) >= 60}


@pytest.mark.parametrize("how", ["flip", "truncate", "missing"])
def test_damaged_archive_is_a_clear_error(tiny_corpus, how):
    path = tiny_corpus.folder / "code.jsonl.xz"
    content = path.read_bytes()
    path.unlink()
    if how != "missing":
        flipped = content[:40] + bytes([content[40] ^ 1]) + content[41:]
        path.write_bytes(content[:-1] if how == "truncate" else flipped)
    with pytest.raises(DataError, match=r"code\.jsonl\.xz.*Install the program again"):
        Corpus(tiny_corpus.folder)


def test_damaged_provenance_is_a_clear_error(tiny_corpus):
    (tiny_corpus.folder / "provenance.json").write_text("{")
    with pytest.raises(DataError, match=r"provenance\.json"):
        Corpus(tiny_corpus.folder)


def test_wrong_passage_count_is_an_error(tiny_corpus):
    path = tiny_corpus.folder / "provenance.json"
    provenance = json.loads(path.read_text())
    provenance["archives"][0]["passages"] += 1
    path.write_text(json.dumps(provenance))
    with pytest.raises(DataError, match="holds 11 passages"):
        Corpus(tiny_corpus.folder)


def test_pickle_carries_the_folder_only(tiny_corpus):
    assert len(pickle.dumps(tiny_corpus)) < 500


@pytest.mark.parametrize("n", [1, 2, 17, 6000])
def test_permutation_holds_every_index_and_depends_on_seed_and_epoch(n):
    orders = [permutation(n, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert permutation(n, 0, 0).tolist() == orders[0]
    assert n < 17 or (orders[0] != orders[1] and orders[0] != orders[2])


def test_every_passage_once_per_epoch_and_a_new_order_in_the_next(corpus):
    source = CorpusSource("code", corpus, 3)
    epochs = [[next(source).id for _ in range(len(source))] for _ in range(2)]
    expected = sorted(record.id for record in corpus.records("code", validation=False))
    assert sorted(epochs[0]) == sorted(epochs[1]) == expected
    assert epochs[0] != epochs[1]


def test_source_resumes_from_any_cursor(tiny_corpus):
    source = CorpusSource("natural", tiny_corpus, 5)
    cursors, records = [], []
    for _ in range(25):
        cursors.append(source.cursor())
        records.append(next(source))
    for at, cursor in enumerate(cursors):
        resumed = CorpusSource("natural", tiny_corpus, 5)
        resumed.seek(cursor)
        assert [next(resumed) for _ in range(25 - at)] == records[at:]
