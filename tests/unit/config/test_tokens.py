"""Args files as people and editors write them, and any other bytes: tokens or one ConfigError."""

import codecs
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sigma.config.parse import parse
from sigma.config.table import run_flags
from sigma.config.tokens import tokenize, tokenize_file
from sigma.core.errors import ConfigError

GOOD = "# comment\n; another\n\n--steps 5\n--seed\n7\n--lr=0.5\n  --no-resume  \n"


def pairs(path: Path) -> list[tuple[str, str | None]]:
    return [(token.text, token.value) for token in tokenize_file(path).items]


@pytest.mark.parametrize(
    "data",
    [
        GOOD.encode(),
        GOOD.encode("utf-8-sig"),
        GOOD.encode("utf-16"),
        codecs.BOM_UTF16_BE + GOOD.encode("utf-16-be"),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r").encode(),
        GOOD.replace(" ", "\t").encode(),
        GOOD.replace(" ", "\u00a0").encode(),
        GOOD.rstrip("\n").encode(),
    ],
    ids=["utf-8", "utf-8-bom", "utf-16-le", "utf-16-be", "crlf", "cr", "tabs", "no-break-spaces", "no-last-newline"],
)
def test_every_text_encoding_gives_the_same_tokens(tmp_path: Path, data: bytes):
    path = tmp_path / "args.txt"
    path.write_bytes(data)
    assert pairs(path) == [("--steps", "5"), ("--seed", None), ("7", None), ("--lr", "0.5"), ("--no-resume", None)]
    assert tokenize_file(path).warnings == []


def test_empty_file_has_no_tokens(tmp_path: Path):
    path = tmp_path / "args.txt"
    path.write_bytes(b"")
    assert pairs(path) == []


def test_windows_1252_is_read_with_one_warning_that_counts_the_characters(tmp_path: Path):
    path = tmp_path / "args.txt"
    path.write_bytes("--seed 1\n--output-dir \u00e9t\u00e9\n".encode("cp1252"))
    tokens = tokenize_file(path)
    assert tokens.items[1].value == "\u00e9t\u00e9"
    assert tokens.warnings == ["args.txt:2: not UTF-8; 2 characters read as Windows-1252, save the file as UTF-8"]


@pytest.mark.parametrize(
    "line, value",
    [
        (r"--output-dir C:\new\train run", r"C:\new\train run"),
        ('--output-dir "a b"', "a b"),
        ("--output-dir 'a # b'", "a # b"),
        ('--output-dir="a b"', "a b"),
        ('--output-dir a "b"', 'a "b"'),
        ("--output-dir it's", "it's"),
        ("--output-dir a=b", "a=b"),
        ("--output-dir=a=b", "a=b"),
        ("--output-dir a#b;c", "a#b;c"),
        ('--output-dir "', '"'),
    ],
)
def test_value_is_the_rest_of_the_line_and_only_whole_quotes_go(tmp_path: Path, line: str, value: str):
    path = tmp_path / "args.txt"
    path.write_text(line)
    assert pairs(path) == [("--output-dir", value)]


def test_origin_of_a_token_is_file_and_line_and_relative_paths_start_at_the_file(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("\n@sub/b.txt\n--seed 1\n")
    (tmp_path / "sub" / "b.txt").write_text("--output-dir here\n")
    found = tokenize(["@a.txt", "--steps", "3"], tmp_path).items
    assert [token.where for token in found] == ["b.txt:1", "a.txt:3", "command line", "command line"]
    assert found[0].source.base == tmp_path / "sub"
    assert found[2].source.base == tmp_path


def refusal(argv: list[str], args_file: Path | None, cwd: Path) -> str | None:
    """The message of the ConfigError, which is one line, or None when everything parses; nothing else may be raised."""
    try:
        parse(argv, args_file=args_file, cwd=cwd)
    except ConfigError as error:
        message = str(error)
    else:
        return None
    assert len(message.splitlines()) == 1
    return message


FLAGS = [*run_flags(), "--no-resume", "--gn-eps", "--nope", "@args.txt", "-1", "0.5", "x", "--lr=1"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_parse_or_raise_one_line(tmp_path: Path, data: bytes):
    path = tmp_path / "args.txt"
    path.write_bytes(data)
    message = refusal([], path, tmp_path)
    assert message is None or "args.txt" in message


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.sampled_from(FLAGS), st.text(max_size=8)), max_size=8))
def test_any_mixture_of_flags_and_words_parses_or_raises_one_line(tmp_path: Path, words: list[str]):
    (tmp_path / "args.txt").write_text("\n".join(words), encoding="utf-8", errors="replace", newline="")
    for argv in (words, ["@args.txt"]):
        refusal(argv, None, tmp_path)
