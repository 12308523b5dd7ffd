"""Which source wins, where values come from, and what a value may look like."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from sigma.config.option import opt
from sigma.config.parse import parse, parse_options, split_options
from sigma.config.retired import ALIASES
from sigma.config.root import RunConfig
from sigma.config.table import run_flags
from sigma.core.errors import ConfigError


@pytest.fixture
def args_file(tmp_path: Path) -> Path:
    path = tmp_path / "conf" / "args.txt"
    path.parent.mkdir()
    return path


def test_without_arguments_everything_is_default(tmp_path: Path):
    parsed = parse(cwd=tmp_path)
    assert parsed.config.run.output_dir == tmp_path / "runs" / "sigma_main"
    assert parsed.config.model == RunConfig().model
    assert set(parsed.origins.values()) == {"default"}
    assert len(parsed.origins) == len(run_flags())
    assert parsed.given == {}


def test_command_line_wins_over_file_and_file_over_default(args_file: Path):
    args_file.write_text("# mine\n--seed 1\n--steps 10\n")
    parsed = parse(["--seed", "2"], args_file=args_file)
    assert (parsed.config.run.seed, parsed.config.train.steps, parsed.config.run.log_interval) == (2, 10, 10)
    names = ("seed", "steps", "log_interval")
    assert [parsed.origins[name] for name in names] == ["command line", "args.txt:3", "default"]
    assert parsed.given == {"seed": 2, "steps": 10}


def test_included_file_wins_over_what_stands_before_it(tmp_path: Path):
    (tmp_path / "a.txt").write_text("--seed 1\n@b.txt\n--steps 1\n")
    (tmp_path / "b.txt").write_text("--seed 2\n--steps 2\n")
    parsed = parse(["@a.txt"], cwd=tmp_path)
    assert (parsed.config.run.seed, parsed.config.train.steps) == (2, 1)


def test_last_of_a_repeated_flag_wins_on_the_command_line():
    assert parse(["--seed", "1", "--seed=3", "--resume", "--no-resume"]).config.run.seed == 3
    assert parse(["--no-resume", "--resume"]).config.run.resume is True


@pytest.mark.parametrize(
    "text", ["--seed\n7\n--no-resume\n--lr\n0.5", "--seed 7\n--no-resume\n--lr 0.5", "--seed=7\n--no-resume\n--lr=0.5"]
)
def test_three_ways_to_write_a_file_mean_the_same(args_file: Path, text: str):
    args_file.write_text(text)
    config = parse(args_file=args_file).config
    assert (config.run.seed, config.run.resume, config.train.lr) == (7, False, 0.5)


def test_relative_paths_start_at_the_file_or_at_the_working_directory(args_file: Path, tmp_path: Path):
    args_file.write_text("--output-dir ../out")
    assert parse(args_file=args_file, cwd=Path("/elsewhere")).config.run.output_dir == tmp_path / "out"
    assert parse(["--output-dir", "out"], cwd=tmp_path).config.run.output_dir == tmp_path / "out"
    assert parse(cwd=tmp_path, data_dir=tmp_path / "d").config.run.output_dir == tmp_path / "d/runs/sigma_main"


def test_home_folder_is_expanded_in_a_file(args_file: Path):
    args_file.write_text("--output-dir ~/x")
    assert parse(args_file=args_file).config.run.output_dir == Path.home() / "x"


def test_negative_number_is_a_value_not_a_flag():
    with pytest.raises(ConfigError, match=r"--weight-decay: -1\.0 is below the smallest value 0"):
        parse(["--weight-decay", "-1.0"])


def test_auto_gives_an_open_size_back_to_the_preset(args_file: Path):
    args_file.write_text("--d-model 64")
    parsed = parse(["--d-model", "auto"], args_file=args_file)
    assert parsed.config.model.d_model is None
    assert parsed.origins["d_model"] == "command line"


@pytest.mark.parametrize("text", ["1", "+2", "0003", "2.5", "1.", ".5", "1e-3", "1E+2"])
def test_finite_numbers_in_every_usual_form(text: str):
    assert parse(["--save-minutes", text]).config.run.save_minutes == float(text)


def test_error_on_the_command_line_says_so():
    with pytest.raises(ConfigError, match=r"^command line: --learing-rate: unknown flag; did you mean --lr\?$"):
        parse(["--learing-rate", "1"])


def test_contradiction_names_the_place_of_the_value_that_was_given(args_file: Path):
    args_file.write_text("\n--warmup-share 0.7\n")
    with pytest.raises(ConfigError, match=r"^args.txt:2: --warmup-share 0.7 and --decay-share 0.4 add up"):
        parse(args_file=args_file)


@pytest.mark.parametrize("old, new", ALIASES.items())
def test_alias_sets_the_flag_and_says_its_name(old: str, new: str):
    flag = run_flags()[new]
    parsed = parse([old, "1" if flag.kind is float else "16"])
    assert parsed.given == {flag.field: 1.0 if flag.kind is float else 16}
    assert parsed.warnings == (f"command line: {old}: now called {new}",)


@pytest.mark.parametrize("name", [flag.name for flag in run_flags().values() if flag.is_switch])
def test_every_switch_has_both_forms(name: str):
    field = run_flags()[name].field
    needed = ["--optimizer", "c3o"] if name == "--c3o-credit-enabled" else []
    assert parse([*needed, name]).given[field] is True
    assert parse(["--no-" + name[2:]]).given[field] is False


@dataclass(frozen=True)
class Small:
    """Options of a test."""

    run: Path = opt(Path("runs"), "A folder.")  # noqa: RUF009 - opt makes a field
    text: str = opt("", "A text.")
    count: int = opt(3, "A number.", low=1)


def test_options_of_a_small_command_take_any_text(tmp_path: Path):
    found = parse_options(Small, ["--text", "@a\n-- b #c", "--count=5"], tmp_path)
    assert found == Small(tmp_path / "runs", "@a\n-- b #c", 5)


def test_options_of_a_small_command_refuse_the_flags_of_training(tmp_path: Path):
    with pytest.raises(ConfigError, match="--steps: unknown flag"):
        parse_options(Small, ["--steps", "5"], tmp_path)


@dataclass(frozen=True)
class Own:
    """Options of a command that takes the flags of a training too."""

    count: int = opt(3, "Count.", low=0)
    loud: bool = opt(False, "Loud.")


@pytest.mark.parametrize(
    "argv, count, rest",
    [
        ([], 3, []),
        (["--count", "5", "--seed", "7"], 5, ["--seed", "7"]),
        (["--seed=7", "--count=5", "@file", "--resume"], 5, ["--seed=7", "@file", "--resume"]),
        (["--loud", "--seed", "7"], 3, ["--seed", "7"]),
    ],
    ids=["nothing", "with values", "with signs", "a switch"],
)
def test_options_of_a_command_are_told_from_the_flags_of_a_training(argv, count, rest):
    options, left = split_options(Own, argv)
    assert (options.count, options.loud, left) == (count, "--loud" in argv, rest)


def test_an_option_without_a_value_is_refused():
    with pytest.raises(ConfigError, match="--count: has no value"):
        split_options(Own, ["--seed", "7", "--count"])
