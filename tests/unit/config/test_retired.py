"""A complete args file of the predecessor starts, and each thing that changed is said once."""

import csv
from pathlib import Path

import pytest

from sigma.config.parse import parse
from sigma.config.retired import ALIASES, VALUE_CHANGES, retired_flags
from sigma.config.table import run_flags

DATA = Path(__file__).parents[2] / "data"
OLD_FLAGS = list(csv.DictReader((DATA / "predecessor_flags.tsv").open(), delimiter="\t"))


def is_switch(row: dict[str, str]) -> bool:
    return "bool" in row["type"] or row["type"] == "flag"


def test_table_of_old_flags_is_complete():
    assert len({row["flag"] for row in OLD_FLAGS}) == 236


@pytest.mark.parametrize("row", OLD_FLAGS, ids=lambda row: row["flag"])
def test_every_old_flag_is_accepted_with_its_arity(row: dict[str, str]):
    name = "--" + row["flag"]
    value = row["profile"] if row["profile"] != "·" else row["default"]
    needed = ["--optimizer", "c3o"] if name == "--c3o-credit-enabled" else []
    parsed = parse(needed + ([name] if is_switch(row) else [name, value.strip('"')]))
    mentions = [text for text in parsed.warnings if name in text]
    lives = name in run_flags() or name == "--no-resume"
    assert len(mentions) == len(parsed.warnings) <= 1
    assert lives or len(mentions) == 1
    assert lives or parsed.given == {}


@pytest.mark.parametrize("row", [row for row in OLD_FLAGS if "±" in row["type"]], ids=lambda row: row["flag"])
def test_every_old_switch_can_be_negated(row: dict[str, str]):
    assert len(parse([f"--no-{row['flag']}"]).warnings) <= 1


def test_complete_old_file_starts_with_one_warning_for_each_change():
    parsed = parse(args_file=DATA / "predecessor_args.txt")
    lines = (DATA / "predecessor_args.txt").read_text().splitlines()
    names = [line.replace("--no-", "--") if line.startswith("--no-") else line for line in lines if line[:2] == "--"]
    assert len(names) == len(set(names)) == 230, "all 236 but the six that are only given to change the default"
    gone = [name for name in names if name in retired_flags()]
    changed: list[str] = []
    assert [text.split(": ")[1] for text in parsed.warnings] == sorted(
        [*gone, *changed], key=lambda n: names.index(n.split()[0])
    )
    assert all(text.startswith("predecessor_args.txt:") for text in parsed.warnings)
    assert parsed.config.train.optimizer == "c3o"
    assert parsed.config.c3o.c3o_credit_enabled
    assert parsed.config.data.data_backend == "hybrid"
    assert (parsed.config.model.d_model, parsed.config.train.steps, parsed.config.train.torch_compile) == (
        768,
        20000,
        False,
    )


def test_the_seeds_profile_file_wins_over_old_defaults_without_hiding_mistakes(tmp_path: Path):
    path = tmp_path / "args.txt"
    path.write_text((DATA / "predecessor_args.txt").read_text() + "--c3o-credit-enabledd\n")
    with pytest.raises(ValueError, match=r"args.txt:430: --c3o-credit-enabledd: unknown flag"):
        parse(args_file=path)


def test_flag_met_twice_is_warned_about_once_with_its_count(tmp_path: Path):
    path = tmp_path / "args.txt"
    path.write_text("--gn-eps 1e-8")
    parsed = parse(["--gn-eps=1", "--gn-eps", "2"], args_file=path)
    assert parsed.warnings == (
        "args.txt:1: --gn-eps: retired, ignored: the new gnprox divides exactly, in the eigenbasis of its curvature"
        " (met 3 times)",
    )


@pytest.mark.parametrize("field, old", VALUE_CHANGES, ids=str)
def test_old_value_is_replaced_and_said(field: str, old: str):
    flag = next(flag for flag in run_flags().values() if flag.field == field)
    parsed = parse([flag.name, old])
    assert parsed.given == {field: VALUE_CHANGES[field, old].replacement}
    assert len(parsed.warnings) == 1
    assert f"{flag.name} {old}: " in parsed.warnings[0]
    assert old not in flag.choices, "a value that works is not replaced"


def test_no_name_is_both_alive_and_gone():
    old = retired_flags()
    assert not set(old) & set(run_flags())
    assert not set(ALIASES) & (set(run_flags()) | set(old))
    assert set(ALIASES.values()) <= set(run_flags())


def test_flags_that_messages_recommend_exist():
    words = " ".join(entry.message for entry in retired_flags().values()).replace(",", " ").replace(";", " ").split()
    named = {word for word in words if word.startswith("--")}
    assert named
    assert {name.replace("--no-", "--") for name in named} <= set(run_flags())


def test_secret_in_a_retired_flag_is_not_repeated():
    parsed = parse(["--hf-token", "hf_abcdefghijklmnop"])
    assert "hf_abc" not in repr(parsed)
