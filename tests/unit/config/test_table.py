"""Flags read and write their values without loss, and every declaration is complete."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sigma.config.root import RunConfig
from sigma.config.table import Flag, build_config, nearest, run_flags
from sigma.config.tokens import tokenize_file

FLAGS = list(run_flags().values())


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_declaration_is_complete(flag: Flag):
    assert flag.kind in (bool, int, float, str, Path)
    assert flag.help.endswith("."), "one sentence"
    assert len(flag.help) <= 100
    if flag.default is None:
        assert flag.optional
    elif not flag.is_switch and flag.kind is not Path:
        assert flag.convert(flag.render(flag.default), Path.cwd()) == flag.default, "the default is within the bounds"
    if flag.kind in (int, float):
        assert flag.low is not None, "a number has a smallest value"


def test_names_are_the_fields():
    fields = [
        f.name
        for section in dataclasses.fields(RunConfig)
        for f in dataclasses.fields(getattr(RunConfig(), section.name))
    ]
    assert [flag.field for flag in FLAGS] == fields
    assert [flag.name for flag in FLAGS] == ["--" + name.replace("_", "-") for name in fields]


@given(st.floats(min_value=0, max_value=10))
def test_float_comes_back_exactly(value: float):
    flag = run_flags()["--lr"]
    assert flag.convert(flag.render(value), Path()) == value


NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\"), min_size=1, max_size=12
).filter(lambda name: name not in (".", ".."))


@example(name="~", inside=True)
@example(name="a # b", inside=True)
@example(name="; b", inside=True)
@example(name="'q'", inside=True)
@example(name="=x", inside=True)
@example(name=" x ", inside=True)
@given(name=NAMES, inside=st.booleans())
def test_path_comes_back_from_a_line_of_a_file(tmp_path_factory: pytest.TempPathFactory, name: str, inside: bool):
    folder = tmp_path_factory.mktemp("p")
    flag = run_flags()["--output-dir"]
    value = (folder if inside else folder.parent) / name
    (folder / "args.txt").write_bytes(flag.line(value, folder).encode())
    token = tokenize_file(folder / "args.txt").items[0]
    assert flag.convert(token.value or "", folder) == value


def test_unknown_fields_do_not_reach_the_sections():
    assert build_config({"seed": 5}).run.seed == 5


def test_nearest_ignores_what_is_too_different():
    assert nearest("--stepss", run_flags()) == "--steps"
    assert nearest("--zzz", run_flags()) is None


TOKENIZER = run_flags()["--tokenizer"]


@pytest.mark.parametrize(
    "value", ["bpe8k", "bytes", Path("/a/tokenizer.json"), Path("/base/x/bytes"), Path("/base/bpe8k")]
)
def test_a_word_or_a_path_comes_back(value):
    base = Path("/base")
    assert TOKENIZER.convert(TOKENIZER.render(value, base), base) == value
    assert TOKENIZER.convert(TOKENIZER.render(value), Path("/elsewhere")) == value


@pytest.mark.parametrize("text, hint", [("bpe9k", "did you mean bpe8k"), ("mine", "a path has a / in it")])
def test_a_word_that_is_no_choice_is_not_taken_for_a_path(text, hint):
    with pytest.raises(ValueError, match=hint):
        TOKENIZER.convert(text, Path("/base"))


def test_a_word_or_a_path_shows_both():
    assert (TOKENIZER.kind_words, TOKENIZER.choices) == ("bpe8k / bytes / path", ("bpe8k", "bytes"))
