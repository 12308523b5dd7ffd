"""Common Crawl: which crawls and files, and the records of WET files."""

from __future__ import annotations

import gzip

import pytest

from sigma.data.record import DataError, Unavailable
from sigma.data.remote.common_crawl import CommonCrawl
from sigma_kernels import counters
from tests.unit.data.layouts import CRAWLS, crawl_files, english, wet
from tests.unit.data.loopback import loopback_hub
from tests.unit.data.remote.conftest import HASTY


@pytest.fixture(scope="module")
def hub():
    with loopback_hub() as hub:
        yield hub


def crawl(hub, seed=1, **options):
    return CommonCrawl(seed=seed, data_url=hub.url, index_url=hub.url, **options)


def test_the_newest_crawls_are_taken_and_pinned(hub):
    newest, both = crawl(hub, latest=1), crawl(hub, latest=2)
    assert {file.path.split("/")[1] for file in newest.files()} == {CRAWLS[0]}
    assert len(both.files()) == 6
    assert CRAWLS[0] in newest.pin
    again = crawl(hub, latest=1, crawls=[CRAWLS[1]])
    again.pin_to(newest.pin)
    assert again.files() == newest.files(), "the pin counts, not what is newest now"
    again.pin_to(both.pin)
    assert again.files() == both.files(), "nor what was read before"


def test_crawls_can_be_named(hub):
    assert {file.path.split("/")[1] for file in crawl(hub, crawls=[CRAWLS[1]]).files()} == {CRAWLS[1]}


def test_the_chosen_paths_are_drawn_by_the_seed_and_stay(hub):
    texts = english(40)
    wets = [wet([text]) for text in texts]
    with loopback_hub(0, crawl_files(CRAWLS[0], wets)) as many:
        chosen = [crawl(many, seed, crawls=CRAWLS[:1], paths_per_crawl=7).files() for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0]) == 7


def test_a_list_that_changed_stops_the_run(hub):
    first = crawl(hub, crawls=CRAWLS[:1])
    first.files()
    with loopback_hub(0, crawl_files(CRAWLS[0], [wet(["a"])])) as other:
        second = crawl(other, crawls=CRAWLS[:1])
        second.pin_to(first.pin)
        with pytest.raises(DataError, match="no longer has the files"):
            second.files()


def test_the_records_are_those_of_the_file(hub):
    collection = crawl(hub, crawls=CRAWLS[:1])
    block = collection.read(1, 0)
    assert [record.text for record in block.records] == english(20, 4 * 60 + 20)
    assert block.next is None
    assert len({record.id for record in block.records}) == 20
    assert counters.get("warc.fastwarc") == 21, "with the description at the beginning"


@pytest.mark.parametrize(
    "listing",
    [
        b"",
        b"no gzip",
        gzip.compress(b""),
        gzip.compress(b"crawl-data/x.warc.wet.gz\n")[:-9],
        gzip.compress(b"http://elsewhere/x.warc.wet.gz\n"),
        gzip.compress(b"crawl-data/../../etc/passwd.warc.wet.gz\n"),
        gzip.compress(b"crawl-data/\xff.warc.wet.gz\n"),
        gzip.compress(bytes(40 << 20)),
    ],
    ids=["empty", "no gzip", "no paths", "cut off", "another server", "outside", "not ASCII", "bomb"],
)
def test_a_list_that_is_no_list_is_unavailable(listing):
    with (
        loopback_hub(0, {f"crawl-data/{CRAWLS[0]}/wet.paths.gz": listing}) as own,
        pytest.raises(Unavailable, match="cannot be understood"),
    ):
        crawl(own, crawls=CRAWLS[:1], http=HASTY).files()


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b"[1]", b'[{"name": 1}]', b"[" * 100_000, b'[{"id": "x"}]'])
def test_an_index_that_is_no_index_is_unavailable(index):
    with loopback_hub(0, {"collinfo.json": index}) as own, pytest.raises(Unavailable, match="cannot be understood"):
        crawl(own, http=HASTY).files()
