"""run_manifest.json: what made a run, and every start on it."""

import subprocess
from pathlib import Path

import pytest

from sigma.config.root import RunConfig
from sigma.core.errors import ConfigError
from sigma.core.strict_json import load_file
from sigma.train.manifest import git_commit, write_manifest


def test_the_manifest_names_versions_hashes_and_configuration(tmp_path: Path) -> None:
    write_manifest(tmp_path, RunConfig(), {"corpus": "abc"}, "2 CPU threads", 0)
    manifest = load_file(tmp_path / "run_manifest.json")
    assert manifest["hashes"] == {"corpus": "abc"}
    assert manifest["config"]["run"]["seed"] == RunConfig().run.seed
    (start,) = manifest["starts"]
    assert (start["step"], start["device"]) == (0, "2 CPU threads")
    assert {"sigma", "python", "torch"} <= start["versions"].keys()


def test_every_start_is_added(tmp_path: Path) -> None:
    for step in (0, 40, 80):
        write_manifest(tmp_path, RunConfig(), {}, "cpu", step)
    assert [start["step"] for start in load_file(tmp_path / "run_manifest.json")["starts"]] == [0, 40, 80]


def test_the_commit_of_a_repository_is_found_and_elsewhere_none(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", tmp_path, "init", "-q"], check=True)
    subprocess.run(["git", "-C", tmp_path, *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40


@pytest.mark.parametrize("text", ["{", "[]", '{"starts": 1}'], ids=["torn", "list", "starts"])
def test_a_damaged_manifest_says_what_to_delete(tmp_path: Path, text: str) -> None:
    (tmp_path / "run_manifest.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run_manifest\.json: damaged .*delete it"):
        write_manifest(tmp_path, RunConfig(), {}, "cpu", 0)
