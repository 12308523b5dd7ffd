from __future__ import annotations

from collections import Counter

import pytest

from sigma.data.background import Pause
from sigma.data.remote.common_crawl import CommonCrawl
from sigma.data.remote.connection import HttpLimits
from sigma.data.remote.hub import HubDataSet, cosmopedia, fineweb
from sigma.data.window import WindowSize
from sigma.data.window_source import WindowSource

HASTY = HttpLimits(
    connect_s=2,
    read_s=0.2,
    total_s=0.8,
    least_rate=2000,
    rate_grace_s=0.2,
    backoff_s=0.01,
    most_backoff_s=0.03,
    range_bytes=20_000,
    banned_s=0.02,
)
SOURCES = {
    "fineweb-edu": lambda url: HubDataSet(
        "fineweb", fineweb("sample-10BT", scored=True), least_score=3.5, endpoint=url, http=HASTY
    ),
    "fineweb": lambda url: HubDataSet("fineweb", fineweb("sample-10BT", scored=False), endpoint=url, http=HASTY),
    "cosmopedia": lambda url: HubDataSet("cosmopedia", cosmopedia("cosmopedia-v2"), endpoint=url, http=HASTY),
    "commoncrawl": lambda url: CommonCrawl(seed=1, data_url=url, index_url=url, http=HASTY),
}


def stream_of(collection, **options):
    size = WindowSize(records=25, blocks=4)
    return WindowSource(collection, 3, size=size, pause=Pause(0.01, 0.02), **options)


def take(stream, n, timeout_s=20.0):
    """The next n records; waits through failures."""
    out = []
    while len(out) < n:
        assert stream.ready(timeout_s), stream.failure
        out.append(next(stream))
    return out


def epoch(stream):
    """All records of the epoch that the stream is in, and what was left out in it."""
    before, number, out = Counter(stream.skipped), stream.cursor()["epoch"], []
    while stream.cursor()["epoch"] == number:
        out += take(stream, 1)
    return out, stream.skipped - before


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in (
        "HF_TOKEN",
        "HF_ENDPOINT",
        "COMMONCRAWL_ENDPOINT",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
