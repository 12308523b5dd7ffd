"""The generated texts are the current ones, and the fresh args file changes nothing but what it says."""

from pathlib import Path

import pytest

from sigma.config.explain import ARGS_FILE_NAME, args_template, explain, flags_help, flags_markdown
from sigma.config.parse import parse
from sigma.config.presets import resolve_parsed
from sigma.config.table import Flag, run_flags

ROOT = Path(__file__).parents[3]
REMEDY = "regenerate: python -m sigma.config.explain"


def test_flag_document_is_fresh():
    assert (ROOT / "docs" / "flags.md").read_text("utf-8") == flags_markdown(), REMEDY


def test_shipped_args_file_is_fresh():
    assert (ROOT / ARGS_FILE_NAME).read_text("utf-8") == args_template(), REMEDY


def test_fresh_args_file_sets_only_the_profile():
    parsed = parse(args_file=ROOT / ARGS_FILE_NAME)
    assert parsed.given == {"device": "auto", "optimizer": "c3o", "c3o_credit_enabled": True, "data_backend": "hybrid"}
    assert parsed.warnings == ()
    assert "\n# --require-cuda\n" in args_template()


@pytest.mark.parametrize("flag", run_flags().values(), ids=lambda flag: flag.name)
def test_every_flag_is_in_every_text_with_its_help(flag: Flag):
    for text in (flags_help(), flags_markdown(), args_template()):
        assert flag.help in text
    assert f"`{flag.name}`" in flags_markdown()
    assert f"\n# {flag.help} (" in args_template()


def test_every_line_of_the_args_file_works_when_its_comment_sign_goes(tmp_path: Path):
    lines = [line.removeprefix("# ") for line in args_template().splitlines() if line.startswith(("# --", "--"))]
    path = tmp_path / ARGS_FILE_NAME
    path.write_text("\n".join(line for line in lines if line != "--require-cuda"))
    parsed = parse(args_file=path)
    assert len(parsed.given) == len(run_flags()) - 1
    assert parsed.config.run.resume is False, "a switch in the file is the one that changes something"


def test_explanation_shows_every_value_and_where_it_came_from():
    text = explain(resolve_parsed(parse(["--seed", "9", "--no-resume"]), None)).splitlines()
    rows = {line.split()[0]: line.split(None, 2)[1:] for line in text[1:]}
    assert list(rows) == list(run_flags())
    assert rows["--seed"] == ["9", "command line"]
    assert rows["--resume"] == ["off", "command line"]
    assert rows["--d-model"] == ["192", "preset demo"]
    assert rows["--log-interval"] == ["10", "default"]
