"""From the configuration to one source of streamed text: no network and no heavy library is needed to build it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

from sigma.config.data import DataSection
from sigma.data.background import Pause
from sigma.data.local import LocalFiles
from sigma.data.record import Collection, Damaged
from sigma.data.remote.common_crawl import DATA_URL, INDEX_URL, CommonCrawl
from sigma.data.remote.hub import HubDataSet, cosmopedia, fineweb
from sigma.data.window import WindowSize
from sigma.data.window_source import WindowSource

SourceName = Literal["files", "fineweb", "cosmopedia", "commoncrawl"]


def text_source(
    name: SourceName, data: DataSection, seed: int, on_damage: Callable[[Damaged], None] | None = None
) -> WindowSource:
    """A source by name. Raises ConfigError when the folder of local files has none."""
    size = WindowSize(records=data.stream_shuffle_buffer)
    pause = Pause(first_s=0.1, most_s=5.0) if name == "files" else Pause()
    return WindowSource(_collection(name, data, seed), seed, size=size, pause=pause, on_damage=on_damage)


def _collection(name: SourceName, data: DataSection, seed: int) -> Collection:
    if name == "files":
        return LocalFiles(data.data_dir)
    if name == "fineweb":
        scored = data.fineweb_min_score > 0
        return HubDataSet(name, fineweb(data.fineweb_config, scored=scored), least_score=data.fineweb_min_score)
    if name == "cosmopedia":
        return HubDataSet(name, cosmopedia(data.cosmopedia_config))
    mirror = os.environ.get("COMMONCRAWL_ENDPOINT")
    return CommonCrawl(
        seed=seed,
        crawls=() if data.commoncrawl_crawls == "latest" else data.commoncrawl_crawls.replace(" ", "").split(","),
        latest=data.commoncrawl_latest_crawls,
        paths_per_crawl=data.commoncrawl_wet_paths_per_crawl,
        data_url=mirror or DATA_URL,
        index_url=mirror or INDEX_URL,
    )
