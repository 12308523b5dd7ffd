import pytest

from sigma.config.data import DataSection
from sigma.core.errors import ConfigError
from sigma.data.backends import build_stream
from sigma.data.outages import Limits
from tests.unit.data.streams import take


def test_every_flag_of_the_mixture_reaches_the_stream(bpe, tmp_path):
    def stream(**flags):
        return build_stream(DataSection(seq_len=64, **flags), 1, bpe, 2, run_dir=tmp_path)

    def members(built):
        group = built._mixture.groups[0]
        return dict(zip([feed.name for feed in group.feeds], group.shares, strict=True))

    hybrid = stream(data_backend="hybrid")
    assert members(hybrid) == pytest.approx({"fineweb": 0.21, "cosmopedia": 0.09, "commoncrawl": 0.7})
    changed = stream(data_backend="hybrid", commoncrawl_ratio=0.5, fineweb_ratio=0.2)
    assert members(changed) == pytest.approx({"fineweb": 0.1, "cosmopedia": 0.4, "commoncrawl": 0.5})
    assert members(stream(data_backend="hybrid", commoncrawl_ratio=0)).keys() == {"fineweb", "cosmopedia"}
    for backend in ("fineweb", "cosmopedia", "commoncrawl"):
        assert members(stream(data_backend=backend)) == {backend: 1.0}
    settings = stream(
        data_backend="hybrid", source_read_timeout_sec=7, source_resume_timeout_sec=8, num_workers=3,
        bootstrap_seed_batches=9, dedup_window_size=11, source_prefetch=5,
    )._settings  # fmt: skip
    assert settings.limits == Limits(7, 8)
    assert (settings.workers, settings.bootstrap, settings.dedup_window, settings.prefetch) == (3, 9, 11, 5)
    identities = {
        stream(data_backend="hybrid", **flags)._identity
        for flags in ({}, {"languages": "fr"}, {"fineweb_min_score": 3.0})
    }
    assert len(identities) == 3, "a checkpoint of other texts is refused"


def test_own_files_need_no_bootstrap_and_a_folder_without_texts_is_an_error(bpe, tmp_path):
    data = DataSection(data_backend="files", seq_len=64, bootstrap_seed_batches=9, data_dir=tmp_path / "data")
    with pytest.raises(ConfigError, match="holds no text"):
        build_stream(data, 1, bpe, 2)
    (tmp_path / "data").mkdir()
    for i in range(5):
        (tmp_path / "data" / f"{i}.txt").write_text(f"My own text number {i}, which nobody else has written before.")
    stream = build_stream(data, 1, bpe, 2, run_dir=tmp_path)
    records = [name for batch in take(stream, 4) for name in map(tuple, batch["records"])]
    stream.close()
    assert {source for source, _ in records} >= {"files"}
    assert "tiny-natural" not in {source for source, _ in records}
