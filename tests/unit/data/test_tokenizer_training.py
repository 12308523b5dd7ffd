from dataclasses import replace

import pytest

from sigma.config.data import DataSection
from sigma.core.strict_json import load_file
from sigma.data.record import DataError
from sigma.data.tokenizer import load_tokenizer
from sigma.data.tokenizer_training import FILE_NAME, MANIFEST_NAME, Sample, train_tokenizer
from tests.unit.data.loopback import loopback_hub

BUNDLED = DataSection()


@pytest.fixture
def folder_of_texts(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(6):
        (texts / f"{number}.txt").write_text(f"Text number {number}. " + f"It says the word{number} often. " * 20)
    return replace(DataSection(), data_backend="files", data_dir=texts, code_ratio=0.0, synthetic_ratio=0.0)


def test_equal_inputs_give_equal_files(tmp_path):
    manifests = [train_tokenizer(Sample(BUNDLED, 1, 200_000), 400, tmp_path / name) for name in ("one", "two")]
    one, two = ((tmp_path / name / FILE_NAME).read_bytes() for name in ("one", "two"))
    assert one == two
    assert manifests[0] == manifests[1] == load_file(tmp_path / "one" / MANIFEST_NAME)
    other = train_tokenizer(Sample(BUNDLED, 2, 200_000), 400, tmp_path / "other")
    assert other["sample"]["sha256"] != manifests[0]["sample"]["sha256"]


def test_the_file_is_a_tokenizer_of_the_size_asked_for(tmp_path):
    train_tokenizer(Sample(BUNDLED, 1, 300_000), 700, tmp_path)
    made = load_tokenizer(tmp_path / FILE_NAME)
    text = "In the beginning, def f(x): 漢字 🙂\n"
    assert (made.vocab_size, made.encoder) == (700, "tiktoken")
    assert made.decode(made.encode(text)) == text
    assert made.content == (tmp_path / FILE_NAME).read_text("utf-8"), "ours needs no adopting"


def test_a_sample_is_bounded_and_mixed_like_the_training():
    sample = Sample(BUNDLED, 1, 500_000)
    texts = list(sample)
    assert sum(len(text.encode()) for text in texts) == sample.bytes_of.total()
    assert 500_000 <= sample.bytes_of.total() < 520_000
    assert sample.bytes_of["python-code"] == pytest.approx(0.15 / 0.95 * 500_000, rel=0.2)
    assert len(sample.bytes_of) > 5, "a little of every source"


def test_a_small_folder_is_read_once_and_gives_what_it_has(tmp_path, folder_of_texts):
    sample = Sample(replace(folder_of_texts, dedup_window_size=0), 1, 10_000_000)
    manifest = train_tokenizer(sample, 5000, tmp_path / "out")
    assert sample.records_of == {"files": 6}
    assert 259 < manifest["vocabulary"] < 5000
    assert load_tokenizer(tmp_path / "out" / FILE_NAME).vocab_size == manifest["vocabulary"]


def test_near_duplicates_are_left_out(folder_of_texts):
    for copy in range(3):
        (folder_of_texts.data_dir / f"copy{copy}.txt").write_text((folder_of_texts.data_dir / "1.txt").read_text())
    sample = Sample(folder_of_texts, 1, 10_000_000)
    list(sample)
    assert sample.dropped == {"near_duplicate": 3}
    assert sample.records_of == {"files": 6}


def test_streamed_sources_go_in_by_their_shares_through_the_gate(tmp_path, monkeypatch):
    with loopback_hub(documents=60, characters=1500) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("COMMONCRAWL_ENDPOINT", hub.url)
        data = replace(DataSection(), data_backend="hybrid", commoncrawl_ratio=0.5, fineweb_min_score=0.0)
        samples = [Sample(replace(data, num_workers=n), 1, 150_000) for n in (0, 2)]
        manifests = [train_tokenizer(sample, 500, tmp_path / str(n)) for n, sample in enumerate(samples)]
    assert manifests[0] == manifests[1]
    size = samples[0].bytes_of
    assert {"fineweb", "cosmopedia", "commoncrawl", "python-code"} <= set(size)
    assert size["commoncrawl"] == pytest.approx(0.5 * 0.8 / 0.95 * 150_000, rel=0.2)


def test_an_unreachable_source_is_an_error_and_writes_nothing(tmp_path, monkeypatch):
    with loopback_hub(documents=9) as hub:
        url = hub.url
    monkeypatch.setenv("HF_ENDPOINT", url)
    sample = Sample(replace(DataSection(), data_backend="cosmopedia"), 1, 10_000, patience_s=4)
    with pytest.raises(DataError, match=r"cosmopedia cannot be read: .*127\.0\.0\.1.* Nothing was written"):
        train_tokenizer(sample, 500, tmp_path / "out")
    assert not (tmp_path / "out").exists()
