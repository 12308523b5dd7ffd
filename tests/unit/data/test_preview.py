from dataclasses import replace

import pytest

from sigma.config.data import DataSection
from sigma.data import preview
from sigma.data.preview import measure_stages, preview_sources
from tests.unit.data.loopback import loopback_hub

HYBRID = replace(DataSection(), data_backend="hybrid", fineweb_min_score=0.0)


@pytest.fixture(autouse=True)
def _few_records(monkeypatch):
    monkeypatch.setattr(preview, "MOST_RECORDS", 40)


@pytest.fixture
def hub(monkeypatch):
    with loopback_hub(documents=30, characters=1200) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("COMMONCRAWL_ENDPOINT", hub.url)
        yield hub


def test_the_bundled_backend_shows_the_bundled_texts(bpe):
    (found,) = preview_sources(DataSection(), 1, bpe, 5)
    assert (found.name, found.failure, found.dropped, found.gated) == ("bundled", None, {}, False)
    assert len(found.kept) == len(found.records) == 40
    assert found.tokens == sum(len(bpe.encode(record.text)) for record in found.kept)
    assert found.read_s > 0


def test_every_source_of_a_backend_is_read_and_gated(bpe, hub):
    found = {one.name: one for one in preview_sources(HYBRID, 1, bpe, 20)}
    assert list(found) == ["fineweb", "cosmopedia", "commoncrawl", "bundled"]
    for name in ("fineweb", "cosmopedia", "commoncrawl"):
        one = found[name]
        assert one.failure is None
        assert one.gated
        assert len(one.records) == len(one.kept) + sum(map(len, one.dropped.values())) >= 30
        assert one.tokens > 0


def test_dropped_records_are_named_by_their_reason(bpe, tmp_path, corpus):
    held_out = next(corpus.records("natural", validation=True)).text
    text = "One text that comes a second time in other letters."
    for name, content in {"a": text, "b": text.upper(), "c": held_out}.items():
        (tmp_path / f"{name}.txt").write_text(content)
    found = next(iter(preview_sources(replace(DataSection(), data_backend="files", data_dir=tmp_path), 1, bpe, 5)))
    dropped = {reason: {one.text for one in records} for reason, records in found.dropped.items()}
    assert held_out in dropped["contamination"]
    assert len(dropped["near_duplicate"]) == 1
    assert {one.text for one in found.kept} == {text, text.upper()} - dropped["near_duplicate"]


def test_dead_sources_say_which_host_and_the_bundled_texts_are_shown(bpe, hub):
    hub.die()
    *dead, bundled = preview_sources(HYBRID, 1, bpe, 20)
    assert [one.name for one in dead] == ["fineweb", "cosmopedia", "commoncrawl"]
    assert all("127.0.0.1" in (one.failure or "") and not one.records for one in dead)
    assert len(bundled.kept) == 40


def test_a_silent_source_is_left_after_the_time(bpe, hub):
    hub.plan = type(hub.plan)(["hang"] * 50)
    found = next(iter(preview_sources(replace(HYBRID, data_backend="cosmopedia"), 1, bpe, 0.5)))
    assert "no answer within 0.5 s" in (found.failure or "")
    assert found.read_s < 3


def test_stages_name_everything_that_costs_time(bpe, corpus):
    records = [record for record, _ in zip(corpus.records("natural", validation=False), range(20), strict=False)]
    stages = measure_stages(DataSection(), bpe, records)
    assert [stage.name for stage in stages] == [
        "language", "words", "rules", "held-out texts", "signature", "near-duplicates", "tokens",
    ]  # fmt: skip
    assert all(stage.seconds > 0 and stage.mb_per_s > 0 for stage in stages)
    assert {stage.bytes for stage in stages} == {sum(len(record.text.encode()) for record in records)}
