from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sigma.config.data import DataSection
from sigma.core.errors import ConfigError
from sigma.data.corpus import load_corpus
from sigma.data.quality.contamination import Contamination, hashes_of, write_hashes
from sigma.data.quality.gate import REASONS, Gate, Verdict, build_duplicates, build_gate, wanted_languages
from sigma.data.record import Record
from sigma.data.tally import DUPLICATE

FRENCH = "Le comité s'est réuni mardi pour parler du nouveau pont, qui doit être achevé avant la fin de l'été. "


def test_good_english_pages_are_kept(gate, prose, page):
    kept = sum(gate.check(page(record.text)) is None for record in prose[::4])
    assert kept >= 0.99 * len(prose[::4]) > 600


def test_a_page_in_another_language_is_dropped_unless_it_is_wanted(gate, page):
    french = page("\n".join(f"{FRENCH} Numéro {i}: une autre phrase avec des mots divers." for i in range(6)))
    assert gate.check(french) == "language"
    both = Gate(held_out=lambda: Contamination([]), languages=("en", "fr"))
    anything = Gate(held_out=lambda: Contamination([]))
    assert both.check(french) != "language"
    assert anything.check(french) != "language"


@pytest.mark.parametrize("source", ["fineweb", "cosmopedia", "files", "natural"])
def test_rules_and_language_are_for_pages_of_the_web_alone(gate, source):
    assert gate.check(Record(source, "x", "Kurz und deutsch.")) is None
    assert gate.check(Record("commoncrawl", "x", "Kurz und deutsch.")) == "too_short"


def test_no_record_gets_past_the_guard(make_text):
    gate = Gate(held_out=lambda: Contamination([hashes_of([make_text(7, 40)])]))
    for source in ("commoncrawl", "fineweb", "files"):
        assert gate.check(Record(source, "x", make_text(1) + make_text(7, 40))) == "contamination"
        assert gate.check(Record(source, "x", make_text(1))) is None


@pytest.mark.parametrize("source", ["commoncrawl", "files"])
def test_text_that_is_no_unicode_is_dropped(source, gate, make_text):
    for at in (0, 60, 2000):
        assert gate.check(Record(source, "x", make_text(1)[:at] + "\udc80" + make_text(1)[at:])) == "no_unicode"


@pytest.mark.parametrize(
    "text", ["", " ", "\x00" * 500, "a" * 100_000, "\n" * 5000, "٣" * 900, "🙂" * 300, "。" * 200], ids=ascii
)
def test_odd_texts_get_a_verdict(gate, page, text):
    assert gate.check(page(text)) in REASONS


def test_the_signature_comes_with_the_decision(gate, page, make_text):
    verdict = gate.examine(page(make_text(1)))
    assert verdict.reason is None
    np.testing.assert_array_equal(verdict.signature, gate.signature(page(make_text(1))))
    assert gate.examine(page("junk")).signature is None
    assert gate.examine(Record("files", "x", "three short words")) == Verdict(None, None)


def test_threads_give_the_verdicts_of_one_thread(gate, prose, make_text):
    records = [Record("commoncrawl", str(i), r.text[: 40 * i + 30]) for i, r in enumerate(prose[:120])]
    alone = [gate.check(record) for record in records]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(gate.check, records)) == alone
    assert len(set(alone)) > 1


def test_the_held_out_texts_are_asked_for_once(make_text):
    calls = []

    def held_out():
        calls.append(1)
        return Contamination([])

    gate = Gate(held_out=held_out)
    assert calls == []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(gate.check, [Record("files", str(i), make_text(i)) for i in range(8)]))
    assert calls == [1]


def test_the_document_names_every_reason():
    text = (Path(__file__).parents[4] / "docs" / "data.md").read_text("utf-8")
    assert [reason for reason in (*REASONS, DUPLICATE) if f"`{reason}`" not in text] == []


# ------------------------------------------------------------------ from the configuration
def test_a_configured_gate_guards_the_bundled_texts_and_the_file(make_text, tmp_path):
    write_hashes(tmp_path / "hidden", [make_text(7, 40)])
    gate = build_gate(replace(DataSection(), contamination_file=tmp_path / "hidden"))
    held_out = next(load_corpus().records("natural", validation=True))
    assert gate.check(Record("files", "x", held_out.text)) == "contamination"
    assert gate.check(Record("files", "x", make_text(7, 40))) == "contamination"
    assert gate.check(Record("files", "x", make_text(1))) is None
    assert build_gate(DataSection()).check(Record("files", "x", make_text(7, 40))) is None


def test_every_flag_that_changes_verdicts_changes_the_fingerprint(tmp_path, make_text):
    write_hashes(tmp_path / "one", [make_text(7)])
    write_hashes(tmp_path / "two", [make_text(8)])
    sections = [
        DataSection(),
        replace(DataSection(), languages="en,fr"),
        replace(DataSection(), languages="any"),
        replace(DataSection(), dedup_normalize_chars=100),
        replace(DataSection(), contamination_file=tmp_path / "one"),
        replace(DataSection(), contamination_file=tmp_path / "two"),
    ]
    assert len({build_gate(section).fingerprint for section in sections}) == len(sections)
    assert build_gate(DataSection()).fingerprint == build_gate(DataSection()).fingerprint


def test_the_beginning_that_signatures_see_is_a_flag(make_text):
    short, long = (build_gate(replace(DataSection(), dedup_normalize_chars=n)) for n in (100, 4096))
    one, other = (Record("files", "x", make_text(1)[:300] + make_text(n)) for n in (2, 3))
    assert np.array_equal(short.signature(one), short.signature(other))
    assert not np.array_equal(long.signature(one), long.signature(other))


def test_the_window_of_duplicates_is_a_flag():
    assert build_duplicates(DataSection()).window == 65536
    assert build_duplicates(replace(DataSection(), dedup_window_size=0)) is None


@pytest.mark.parametrize(
    "value, expected", [("any", set()), ("en", {"en"}), ("en, FR", {"en", "fr"})], ids=["any", "one", "two"]
)
def test_languages_are_a_list_of_codes(value, expected):
    assert wanted_languages(value) == expected


@pytest.mark.parametrize("value", ["", "english", "en,,fr", "en fr"])
def test_an_unknown_language_is_refused(value):
    with pytest.raises(ConfigError, match="not a language code"):
        wanted_languages(value)
