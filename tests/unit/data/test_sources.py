"""Every flag of the streamed sources has its effect; building a source needs no network and no heavy library."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sigma.config.data import DataSection
from sigma.core.errors import ConfigError
from sigma.data.record import Unavailable
from sigma.data.sources import text_source
from tests.unit.data.loopback import loopback_hub

ROOT = Path(__file__).parents[3]
REMOTE = ("fineweb", "cosmopedia", "commoncrawl")


@pytest.fixture
def hub(monkeypatch):
    with loopback_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("COMMONCRAWL_ENDPOINT", hub.url)
        yield hub


def section(**values):
    return replace(DataSection(), **values)


def first(name, **values):
    source = text_source(name, section(**values), 1)
    record = next(source)
    source.close()
    return record, source


@pytest.mark.parametrize("name", REMOTE)
def test_the_defaults_read_from_each_remote_source(hub, name):
    record, source = first(name)
    assert record.source == source.name == name
    assert len(record.text) > 1000


@pytest.mark.parametrize(
    "name, flag, value, asked",
    [
        ("fineweb", "fineweb_min_score", 0.0, "HuggingFaceFW/fineweb/tree"),
        ("fineweb", "fineweb_min_score", 3.0, "HuggingFaceFW/fineweb-edu/tree"),
        ("fineweb", "fineweb_config", "sample-100BT", "sample/100BT"),
        ("cosmopedia", "cosmopedia_config", "web_samples_v2", "HuggingFaceTB/cosmopedia/tree"),
        ("commoncrawl", "commoncrawl_crawls", "CC-MAIN-2025-30", "CC-MAIN-2025-30/wet.paths.gz"),
        ("commoncrawl", "commoncrawl_latest_crawls", 1, "CC-MAIN-2025-33/wet.paths.gz"),
    ],
)
def test_a_flag_chooses_what_is_asked_for(hub, name, flag, value, asked):
    source = text_source(name, section(**{flag: value}), 1)
    source.ready(20 if value != "sample-100BT" else 1)
    source.close()
    assert any(asked in path for path, _ in hub.requests)
    if flag == "commoncrawl_latest_crawls":
        assert not any("CC-MAIN-2025-30" in path for path, _ in hub.requests)


def test_the_score_leaves_rows_out(hub):
    _, source = first("fineweb", fineweb_min_score=4.5)
    assert source.skipped["score"] > 0


def test_the_number_of_paths_limits_the_files(hub):
    _, source = first("commoncrawl", commoncrawl_wet_paths_per_crawl=1)
    assert len(source._collection.files()) == 2


def test_the_shuffle_buffer_is_the_window(hub):
    assert first("cosmopedia", stream_shuffle_buffer=30)[1].cursor()["records"] == 40, "whole row groups of 20"
    assert first("cosmopedia")[1].cursor()["records"] == 60


def test_the_folder_of_files_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("my text")
    assert first("files", data_dir=tmp_path)[0].text == "my text"


def test_what_the_order_depends_on_is_in_the_fingerprint(tmp_path):
    (tmp_path / "a.txt").write_text("my text")
    base = {name: text_source(name, section(data_dir=tmp_path), 1).fingerprint for name in (*REMOTE, "files")}
    assert len(set(base.values())) == 4
    changes = {
        "fineweb": {"fineweb_min_score": 3.0},
        "cosmopedia": {"cosmopedia_config": "stories"},
        "commoncrawl": {"commoncrawl_wet_paths_per_crawl": 5},
        "files": {"stream_shuffle_buffer": 5},
    }
    for name, change in changes.items():
        assert text_source(name, section(data_dir=tmp_path, **change), 1).fingerprint != base[name]


def test_a_dead_network_is_unavailable_and_does_not_stop_who_asks(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    source = text_source("fineweb", section(), 1)
    assert not source.ready(0.01)
    with pytest.raises(Unavailable, match="refused"):
        next(source)
    assert "refused" in source.failure
    source.close()


@pytest.mark.parametrize(
    "variable, value, message",
    [
        ("HF_ENDPOINT", "huggingface.co", "HF_ENDPOINT=huggingface.co: is no address"),
        ("HF_ENDPOINT", "http://a:b", "is no address"),
        ("HF_ENDPOINT", "http://a b", "is no address"),
        ("COMMONCRAWL_ENDPOINT", "ftp://mirror", "COMMONCRAWL_ENDPOINT=ftp://mirror: is no address"),
        ("HF_TOKEN", "hf_secret\nhf_other", "HF_TOKEN holds characters"),
    ],
)
def test_a_wrong_environment_is_named_and_no_token_told(monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message) as caught:
        text_source("commoncrawl" if variable.startswith("COMMON") else "fineweb", section(), 1)
    assert "secret" not in str(caught.value)


def test_a_crawl_that_is_none_is_named():
    with pytest.raises(ConfigError, match="--commoncrawl-crawls: '2025-33' is no crawl"):
        text_source("commoncrawl", section(commoncrawl_crawls="CC-MAIN-2025-30, 2025-33"), 1)


def test_building_a_source_loads_no_heavy_library():
    code = """
import sys
from sigma.config.data import DataSection
from sigma.data.sources import text_source
for name in ("fineweb", "cosmopedia", "commoncrawl"):
    text_source(name, DataSection(), 1).fingerprint
print([name for name in ("pyarrow", "fastwarc", "warcio", "zstandard", "truststore") if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
