"""`sigma data` and `sigma tokenizer` as a person meets them."""

import re

import numpy as np
import pytest

from sigma.data.quality.contamination import open_hashes
from sigma.data.tokenizer import load_tokenizer
from sigma_app.__main__ import main
from tests.unit.data.loopback import loopback_hub


@pytest.fixture(autouse=True)
def _few_records(monkeypatch):
    monkeypatch.setattr("sigma.data.preview.MOST_RECORDS", 40)


def test_a_preview_without_network_says_what_is_unreachable_and_shows_the_bundled_texts(home, capsys, monkeypatch):
    with loopback_hub(documents=3) as hub:
        url = hub.url
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("COMMONCRAWL_ENDPOINT", url)
    assert main(["data", "preview", "--data-backend", "hybrid", "--documents", "2"]) == 0
    out = capsys.readouterr().out
    for source in ("fineweb", "cosmopedia", "commoncrawl"):
        assert re.search(rf"^{source}: unreachable: .*127\.0\.0\.1.*$", out, re.MULTILINE)
    assert "\ntokenizer bpe8k, encoded by tiktoken\n" in out
    shown = out[out.index("bundled: ") :]
    assert "tokens" in shown
    assert len(re.findall(r"^  \[.*\] ", shown, re.MULTILINE)) == 2
    assert all(re.search(rf"^  {stage} +[\d.]+$", shown, re.MULTILINE) for stage in ("language", "rules", "tokens"))


def test_a_preview_of_own_files_shows_drop_reasons(home, capsys):
    (home / "mine").mkdir()
    for number, text in enumerate(["One text of a few words here.", "One text of a few words here."]):
        (home / "mine" / f"{number}.txt").write_text(text)
    assert main(["data", "preview", "--data-backend=files", "--data-dir=mine", "--documents=1"]) == 0
    out = capsys.readouterr().out
    assert "near_duplicate" in out
    assert "] One text of a few words here." in out


def test_hashes_of_a_folder_guard_its_texts(home, capsys):
    (home / "held").mkdir()
    (home / "held" / "a.md").write_text(" ".join(f"word{n}" for n in range(20)))
    assert main(["data", "hashes", "--data-dir", "held", "--out", "out.hashes"]) == 0
    assert "8 hashes in " in capsys.readouterr().out
    assert len(np.array(open_hashes(home / "out.hashes"))) == 8


def test_a_tokenizer_is_trained_and_used(home, capsys):
    assert main(["tokenizer", "train", "--vocab-size", "300", "--sample-mb", "0.05", "--out", "mine"]) == 0
    out = capsys.readouterr().out
    assert "300 ids, sha256 " in out
    assert load_tokenizer(home / "mine" / "tokenizer.json").vocab_size == 300
    assert main(["explain-config", "--device=cpu", "--tokenizer", "mine/tokenizer.json"]) == 0
    assert str(home / "mine" / "tokenizer.json") in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [
        (["data"], "sigma data: say what to do; write sigma data preview or hashes"),
        (["data", "show"], "sigma data: 'show' is not known; write sigma data preview or hashes"),
        (["tokenizer"], "sigma tokenizer: say what to do; write sigma tokenizer train"),
        (["tokenizer", "train", "--vocab-size", "70000"], "--vocab-size: 70000 is above the largest value 65536"),
        (["tokenizer", "train", "--vocab-size"], "--vocab-size: has no value"),
        (["tokenizer", "train", "--vocab-sise", "5"], "--vocab-sise: unknown flag"),
        (["data", "preview", "--languages", "english"], "--languages english: 'english' is not a language code"),
        (["data", "preview", "--tokenizer", "./none.json"], "none.json: cannot read"),
        (["data", "hashes", "--data-dir", "."], "holds no text"),
        (["tokenizer", "train", "--sample-mb", "0.01", "--out", "taken/x"], "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_exit_2(argv, message, home, capsys):
    (home / "taken").write_text("a file")
    assert main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["data", "tokenizer"])
def test_help_of_a_command_names_its_options(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"sigma {command}: " in out
    assert all(name in out for name in {"data": ["--documents", "--out"], "tokenizer": ["--vocab-size"]}[command])
