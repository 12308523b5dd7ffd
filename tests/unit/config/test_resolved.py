"""resolved_args.txt parses back to the same run, wherever its folder is moved, and a second start continues with it."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma.config.parse import Parsed, parse
from sigma.config.presets import PRESETS, resolve_parsed
from sigma.config.resolved import RESOLVED_NAME, changes, continue_run, load_resolved, write_resolved
from sigma.config.table import run_flags
from sigma.core.errors import ConfigError, MissingRequirementError


def start(run: Path, *argv: str, memory_gb: float | None = None) -> Parsed:
    """What a start does: parse, continue, resolve, write."""
    parsed = resolve_parsed(continue_run(parse(["--output-dir", str(run), *argv])), memory_gb)
    run.mkdir(parents=True, exist_ok=True)
    write_resolved(parsed)
    return parsed


def random_values() -> st.SearchStrategy[list[str]]:
    lines: list[st.SearchStrategy[str]] = []
    for flag in run_flags().values():
        if flag.is_switch:
            lines.append(st.sampled_from([flag.name, "--no-" + flag.name[2:]]))
        elif flag.choices:
            lines.append(
                st.sampled_from([c for c in flag.choices if c != "cuda"]).map(lambda c, f=flag: f"{f.name}={c}")
            )
        elif flag.kind is float:
            numbers = st.floats(flag.low, min(flag.high or 9.0, 9.0), exclude_min=True)
            lines.append(numbers.map(lambda x, f=flag: f"{f.name}={x!r}"))
    return st.lists(st.one_of(lines), max_size=10, unique_by=lambda line: line.split("=")[0].replace("--no-", "--"))


@given(random_values())
def test_every_configuration_comes_back(tmp_path_factory: pytest.TempPathFactory, argv: list[str]):
    try:
        parsed = start(tmp_path_factory.mktemp("r") / "run", *argv, memory_gb=8.0)
    except ConfigError:
        return  # a contradiction, which other tests name
    folder = parsed.config.run.output_dir
    assert load_resolved(folder / RESOLVED_NAME) == parsed.config


def test_file_holds_every_flag_once_with_its_origin(tmp_path: Path):
    start(tmp_path / "run", "--seed", "5")
    lines = (tmp_path / "run" / RESOLVED_NAME).read_text().splitlines()
    flags = [line.split()[0].replace("--no-", "--") for line in lines if line.startswith("--")]
    assert flags == list(run_flags())
    before = {line.split()[0]: lines[i - 1] for i, line in enumerate(lines) if line.startswith("--")}
    assert before["--seed"] == "# from: command line"
    assert before["--d-model"] == "# from: preset demo"
    assert before["--resume"] == "# from: default"
    assert before["--device"] == "# from: auto (no CUDA device in use)"


def test_hash_is_that_of_the_file(tmp_path: Path):
    parsed = start(tmp_path / "run")
    data = (tmp_path / "run" / RESOLVED_NAME).read_bytes()
    assert write_resolved(parsed) == hashlib.sha256(data).hexdigest()


def test_run_folder_can_be_moved(tmp_path: Path):
    before = start(tmp_path / "a b # c" / "run").config
    (tmp_path / "a b # c" / "run").rename(tmp_path / "moved")
    after = load_resolved(tmp_path / "moved" / RESOLVED_NAME)
    assert after.run.output_dir == tmp_path / "moved"
    assert [line for line in changes(before, after) if not line.startswith("--output-dir")] == []


def test_auto_is_never_decided_twice(tmp_path: Path):
    first = start(tmp_path / "run", "--device", "auto", memory_gb=16.0)
    assert first.config.run.preset == "base"
    again = start(tmp_path / "run", "--device", "auto", "--preset", "auto", memory_gb=80.0)
    assert again.config == first.config
    with pytest.raises(MissingRequirementError, match="--device cuda: no usable NVIDIA GPU"):
        start(tmp_path / "run", "--device", "auto", memory_gb=None)


def test_second_start_keeps_values_that_it_does_not_give(tmp_path: Path):
    start(tmp_path / "run", "--seed", "5", "--d-model", "64")
    again = start(tmp_path / "run", "--steps", "900")
    assert (again.config.run.seed, again.config.model.d_model, again.config.train.steps) == (5, 64, 900)
    assert again.origins["steps"] == "command line"
    assert again.origins["seed"].startswith("resolved_args.txt:")
    assert again.warnings == (f"this run continues with --steps: {PRESETS['demo']['steps']} -> 900",)


def test_file_is_left_alone_when_nothing_changed(tmp_path: Path):
    start(tmp_path / "run", "--seed", "5")
    before = (tmp_path / "run" / RESOLVED_NAME).read_text()
    start(tmp_path / "run")
    assert (tmp_path / "run" / RESOLVED_NAME).read_text() == before, "the origins of the first start stay"
    start(tmp_path / "run", "--seed", "6")
    assert (tmp_path / "run" / RESOLVED_NAME).read_text() != before


def test_no_resume_starts_from_the_defaults(tmp_path: Path):
    start(tmp_path / "run", "--seed", "5")
    assert start(tmp_path / "run", "--no-resume").config.run.seed == 1337


def test_another_preset_brings_its_own_sizes(tmp_path: Path):
    start(tmp_path / "run")
    again = start(tmp_path / "run", "--preset", "small", "--n-layers", "4")
    assert again.config.model.d_model == PRESETS["small"]["d_model"]
    assert again.config.model.n_layers == 4


def test_damaged_file_stops_a_resume_and_names_its_line(tmp_path: Path):
    start(tmp_path / "run")
    path = tmp_path / "run" / RESOLVED_NAME
    path.write_text(path.read_text().replace("--seed 1337", "--seed 13x37"))
    with pytest.raises(ConfigError, match=r"^resolved_args.txt:\d+: --seed: '13x37' is not an integer"):
        start(tmp_path / "run")
    start(tmp_path / "run", "--no-resume")
    assert load_resolved(path).run.seed == 1337


def test_changes_name_flag_and_both_values():
    old, new = parse([]).config, parse(["--seed", "2", "--no-resume"]).config
    assert changes(old, new) == ["--seed: 1337 -> 2", "--resume: True -> False"]
    assert changes(old, old) == []


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(36, "File name too long")], ids=["denied", "long"]
)
def test_a_run_folder_that_may_not_be_read_is_a_configuration_error(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path) -> bool:
        raise error

    parsed = parse(["--output-dir", str(tmp_path)])
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ConfigError, match=rf"resolved_args.txt: {error.strerror}; give another folder"):
        continue_run(parsed)
