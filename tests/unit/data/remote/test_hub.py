"""Data sets on the hub: which files, which revision, which rows; and that only what is needed is fetched."""

from __future__ import annotations

import pickle

import pytest

from sigma.data.record import Damaged, DataError, Unavailable
from sigma.data.remote.hub import DataSet, HubDataSet, cosmopedia, fineweb
from tests.unit.data.layouts import COSMOPEDIA, EDU, FINEWEB, SMOLLM, english, fineweb_columns, parquet
from tests.unit.data.loopback import SHA, Plan, loopback_hub
from tests.unit.data.remote.conftest import HASTY, SOURCES, epoch, stream_of, take


@pytest.fixture(scope="module")
def shared():
    with loopback_hub() as hub:
        yield hub


@pytest.fixture
def hub(shared):
    shared.requests.clear()
    shared.headers.clear()
    return shared


def edu(hub, score=3.0, **options):
    return HubDataSet("fineweb", fineweb("sample-10BT", scored=True), least_score=score, endpoint=hub.url, **options)


@pytest.mark.parametrize(
    "found, expected",
    [
        (fineweb("sample-10BT", scored=True), DataSet(EDU, "sample/10BT")),
        (fineweb("sample-350BT", scored=False), DataSet(FINEWEB, "sample/350BT")),
        (fineweb("CC-MAIN-2025-26", scored=False), DataSet(FINEWEB, "data/CC-MAIN-2025-26")),
        (cosmopedia("cosmopedia-v2"), DataSet(SMOLLM, "cosmopedia-v2")),
        (cosmopedia("web_samples_v2"), DataSet(COSMOPEDIA, "data/web_samples_v2")),
    ],
)
def test_a_configuration_is_a_folder_of_a_repository(found, expected):
    assert found == expected


def test_nothing_is_asked_before_it_is_wanted(hub):
    collection = edu(hub)
    assert collection.fingerprint
    assert collection.pin is None
    assert hub.requests == []


def test_the_rows_are_those_of_the_files_in_order(hub):
    collection = HubDataSet("fineweb", fineweb("sample-10BT", scored=False), endpoint=hub.url)
    texts, position = [], 0
    while position is not None:
        block = collection.read(1, position)
        texts += [(record.id, record.text) for record in block.records]
        position = block.next
    expected = english(20, 60 + 20)
    assert texts == [(f"sample/10BT/001_00000.parquet:{i}", text) for i, text in enumerate(expected)]


@pytest.mark.parametrize("score, share", [(3.0, 1.0), (3.5, 0.75), (4.0, 0.5), (4.75, 0.125)])
def test_rows_below_the_score_are_left_out_and_counted(hub, score, share):
    scores = [3 + i % 8 / 4 for i in range(20)] * 3
    records, skipped = epoch(stream_of(edu(hub, score)))
    assert len(records) == sum(value >= score for value in scores)
    assert skipped["score"] == 60 - len(records)


def test_a_score_that_is_missing_is_below(hub):
    columns = fineweb_columns(english(3), edu=True) | {"score": [5.0, None, float("nan")]}
    with loopback_hub(0, {f"datasets/{EDU}/sample/10BT/0.parquet": parquet(columns)}) as own:
        block = edu(own, 3.0).read(0, 0)
    assert (len(block.records), block.skipped["score"]) == (1, 2)


@pytest.mark.parametrize("lacking", ["text", "score"])
def test_a_file_without_its_columns_is_damaged(lacking):
    columns = fineweb_columns(english(3), edu=True)
    del columns[lacking]
    with (
        loopback_hub(0, {f"datasets/{EDU}/sample/10BT/0.parquet": parquet(columns)}) as own,
        pytest.raises(Damaged, match=f"column `{lacking}`"),
    ):
        edu(own).read(0, 0)


def test_the_revision_of_the_first_start_is_read_again(hub):
    first = edu(hub)
    first.files()
    hub.requests.clear()
    second = edu(hub)
    second.pin_to(first.pin)
    second.files()
    assert [path for path, _ in hub.requests] == [f"api/datasets/{EDU}/tree/{SHA}/sample/10BT"]
    assert second.pin == first.pin


def test_other_files_at_the_same_revision_stop_the_run(hub):
    first = edu(hub)
    first.files()
    with loopback_hub(90) as other:
        second = edu(other)
        second.pin_to(first.pin)
        with pytest.raises(DataError, match="no longer has the files"):
            second.files()


def test_a_list_in_pages_is_the_list_in_one():
    with loopback_hub() as whole, loopback_hub(page=1) as paged:
        assert edu(whole).files() == edu(paged).files()
        assert sum("tree" in path for path, _ in paged.requests) == 3


def test_a_configuration_that_does_not_exist_is_named(hub):
    with pytest.raises(Unavailable, match="404"):
        HubDataSet("fineweb", fineweb("sample-9BT", scored=True), endpoint=hub.url, http=HASTY).files()
    hub.store["datasets/a/b/notes.txt"] = b"x"
    with pytest.raises(DataError, match="no parquet file in"):
        HubDataSet("fineweb", DataSet("a/b", ""), endpoint=hub.url).files()


def test_only_the_needed_columns_are_fetched_in_small_ranges(hub):
    collection = edu(hub, http=HASTY)
    size = collection.files()[0].size
    collection.read(0, 0)
    ranges = [tuple(map(int, wanted[6:].split("-"))) for path, wanted in hub.requests if wanted and "cdn" in path]
    assert all(end - start < HASTY.range_bytes for start, end in ranges)
    columns = fineweb_columns(english(20), edu=True) | {"url": ["x" * 30000 + str(i) for i in range(20)]}
    with loopback_hub(0, {f"datasets/{EDU}/sample/10BT/0.parquet": parquet(columns, compression="none")}) as own:
        edu(own, http=HASTY).read(0, 0)
        fetched = sum(end - start + 1 for start, end in _ranges(own))
        assert fetched < 200_000, "600,000 bytes of addresses are not text"
    assert size


def _ranges(hub):
    return [tuple(map(int, wanted[6:].split("-"))) for path, wanted in hub.requests if wanted and "cdn" in path]


def test_the_environment_gives_the_mirror_and_the_token(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    collection = HubDataSet("fineweb", fineweb("sample-10BT", scored=True), least_score=3.0)
    collection.read(0, 0)
    assert {headers.get("Authorization") for headers in hub.headers} == {"Bearer hf_0123456789abcdef"}
    assert "hf_0123" not in collection.fingerprint + str(collection.pin) + repr(collection)


@pytest.mark.parametrize("name", SOURCES)
def test_a_remote_source_resumes_exactly_in_another_process(hub, name):
    whole = take(stream_of(SOURCES[name](hub.url)), 70)
    for stop in (1, 17, 33, 59):
        first = stream_of(SOURCES[name](hub.url))
        take(first, stop)
        second = pickle.loads(pickle.dumps(first))
        assert take(second, 70 - stop) == whole[stop:]
        third = stream_of(SOURCES[name](hub.url))
        third.seek(first.cursor())
        assert take(third, 5) == whole[stop : stop + 5]


def test_a_source_that_dies_comes_back_where_it_was():
    with loopback_hub() as hub:
        stream = stream_of(SOURCES["fineweb"](hub.url))
        whole = [record.id for record in take(stream_of(SOURCES["fineweb"](hub.url)), 150)]
        ids = [record.id for record in take(stream, 10)]
        hub.die()
        while stream.ready(0.2):
            ids.append(next(stream).id)
        assert stream.failure
        hub.revive()
        ids += [record.id for record in take(stream, 150 - len(ids))]
        assert ids == whole
        assert stream.failure is None
        stream.close()


def test_close_ends_a_read_that_hangs():
    with loopback_hub(plan=Plan(["hang"] * 9)) as hub:
        stream = stream_of(edu(hub))
        assert not stream.ready(0.1)
        reader = stream._reader
        stream.close()
        assert not reader._thread.is_alive()
