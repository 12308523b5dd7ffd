"""The commands beside training: what they print, and how they refuse."""

from pathlib import Path

import pytest

from sigma.config.parse import parse
from sigma.config.presets import resolve_parsed
from sigma.config.resolved import write_resolved
from sigma_app.__main__ import main


@pytest.mark.parametrize(
    "argv, message",
    [
        (["trainn"], "sigma: command line: 'trainn': unknown command; did you mean train?"),
        (["xyzzy"], "sigma: command line: 'xyzzy': unknown command; see sigma --help"),
        (["generate", "--tokns", "5"], "sigma: command line: --tokns: unknown flag; did you mean --tokens?"),
        (["generate", "--temperature", "-1"], "sigma: command line: --temperature: -1.0 is below the smallest value 0"),
        (["report", "--run"], "sigma: command line: --run: has no value; write --run VALUE"),
        (["generate", "--run", "."], "no resolved_args.txt there; give the output folder of a run"),
    ],
)
def test_wrong_command_line_is_exit_2(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"], ["train", "--help"], ["doctor", "-h"]], ids=" ".join)
def test_help_names_commands_and_flags(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "sigma explain-config" in out
    assert "--[no-]resume" in out


def test_help_of_a_small_command_names_its_own_options_only(capsys):
    assert main(["generate", "--help"]) == 0
    out = capsys.readouterr().out
    assert "sigma generate: Complete a prompt" in out
    for name in (
        "--run PATH",
        "--prompt TEXT",
        "--tokens",
        "--temperature",
        "--top-k",
        "--seed",
        "--device auto|cuda|cpu",
    ):
        assert name in out
    assert "--d-model" not in out
    assert main(["report", "-h"]) == 0
    assert "--run" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_version(word, capsys):
    assert main([word]) == 0
    assert capsys.readouterr().out == "sigma 0.1.0\n"


def test_explain_config_trains_and_writes_nothing(home, capsys):
    assert main(["explain-config", "--device", "cpu", "--seed", "4"]) == 0
    out = capsys.readouterr().out
    assert "--seed" in out
    assert "command line" in out
    assert list(home.iterdir()) == []


def test_explain_config_shows_the_values_that_a_run_continues_with(home, capsys):
    (home / "run").mkdir()
    write_resolved(resolve_parsed(parse(["--output-dir", "run", "--seed", "77"]), None))
    assert main(["explain-config", "--output-dir", "run"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("--seed"))
    assert row.split()[1] == "77"


def test_report_command_writes_the_page(home, capsys):
    (home / "run").mkdir()
    assert main(["report", "--run", "run"]) == 2
    assert "has no metrics.jsonl" in capsys.readouterr().err
    (home / "run" / "metrics.jsonl").write_text("")
    assert main(["report", "--run", "run"]) == 0
    assert Path(capsys.readouterr().out.strip()).read_text().startswith("<!")
