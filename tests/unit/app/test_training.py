"""What a start prepares while the trainer is imported."""

import pytest

from sigma.config.data import DataSection
from sigma.core.errors import ConfigError
from sigma_app.training import unpacking


@pytest.fixture
def asked(monkeypatch):
    """What was loaded, in threads."""
    found = []
    monkeypatch.setattr("sigma.data.tokenizer.load_tokenizer", lambda name: found.append(("tokenizer", name)))
    monkeypatch.setattr("sigma.data.quality.gate.wanted_languages", lambda value: found.append(("languages", value)))
    return found


def test_all_is_loaded_at_the_end_of_the_block(asked):
    with unpacking(DataSection(data_backend="files", tokenizer="bytes", languages="fr")):
        pass
    assert sorted(asked) == [("languages", "fr"), ("tokenizer", "bytes")]


def test_bundled_texts_need_no_model_of_languages(asked):
    with unpacking(DataSection(data_backend="bundled", tokenizer="bytes")):
        pass
    assert asked == [("tokenizer", "bytes")]


def test_what_fails_is_left_to_the_one_who_needs_it(monkeypatch):
    def fail(name):
        raise ConfigError("no such tokenizer")

    monkeypatch.setattr("sigma.data.tokenizer.load_tokenizer", fail)
    with unpacking(DataSection(data_backend="bundled")):
        pass
