"""A build takes the place of the one before; what a person put there stays, and a failure changes nothing."""

import json
from pathlib import Path

import pytest

from bundle import publish
from bundle.checksums import ARGS_FILE, sha256
from bundle.errors import BuildError


def make_build(folder, text, args="--steps 1\n"):
    """A `dist` folder as build.py makes it."""
    program = folder / "sigma"
    (program / "_internal").mkdir(parents=True)
    (program / "sigma").write_text(text)
    (program / ARGS_FILE).write_text(args)
    facts = {"args_file_sha256": sha256(program / ARGS_FILE), "top_level": ["_internal", "sigma", ARGS_FILE]}
    (program / "_internal" / "build.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def places(tmp_path):
    """(the new build, dist with an older one, where the older one waits)."""
    return make_build(tmp_path / "new", "new"), make_build(tmp_path / "dist", "old"), tmp_path / "previous"


def test_a_first_build_is_put_in_place(tmp_path):
    publish.publish(make_build(tmp_path / "new", "new"), tmp_path / "dist", tmp_path / "previous")
    assert (tmp_path / "dist" / "sigma" / "sigma").read_text() == "new"
    assert not (tmp_path / "new").exists()


def test_the_next_build_replaces_it_and_keeps_runs_and_data(places):
    new, dist, previous = places
    (dist / "sigma" / "runs" / "sigma_main").mkdir(parents=True)
    (dist / "sigma" / "runs" / "sigma_main" / "metrics.jsonl").write_text("{}")
    publish.publish(new, dist, previous)
    assert (dist / "sigma" / "sigma").read_text() == "new"
    assert (dist / "sigma" / "runs" / "sigma_main" / "metrics.jsonl").read_text() == "{}"
    assert not previous.exists()


def test_what_no_build_made_stays_in_the_folder(places):
    new, dist, previous = places
    (dist / "photos").mkdir()
    (dist / "photos" / "a.png").write_text("a")
    (dist / "wheel.whl").write_text("w")
    publish.publish(new, dist, previous)
    assert (dist / "photos" / "a.png").read_text() == "a"
    assert (dist / "wheel.whl").read_text() == "w"
    assert not previous.exists()


def test_an_edited_args_file_is_kept_and_the_new_one_lies_beside_it(places):
    new, dist, previous = places
    (dist / "sigma" / ARGS_FILE).write_text("--steps 7\n")
    (new / "sigma" / ARGS_FILE).write_text("--steps 2\n")
    publish.publish(new, dist, previous)
    assert (dist / "sigma" / ARGS_FILE).read_text() == "--steps 7\n"
    assert (dist / "sigma" / publish.NEW_ARGS_FILE).read_text() == "--steps 2\n"


def test_an_args_file_that_nobody_edited_is_replaced(places):
    new, dist, previous = places
    (new / "sigma" / ARGS_FILE).write_text("--steps 2\n")
    publish.publish(new, dist, previous)
    assert (dist / "sigma" / ARGS_FILE).read_text() == "--steps 2\n"
    assert not (dist / "sigma" / publish.NEW_ARGS_FILE).exists()


def test_files_of_the_old_build_that_the_new_one_lacks_do_not_stay(places):
    new, dist, previous = places
    facts = json.loads((dist / publish.PROGRAM / publish.FACTS).read_text())
    facts["top_level"].append("gone.txt")
    (dist / publish.PROGRAM / publish.FACTS).write_text(json.dumps(facts))
    (dist / "sigma" / "gone.txt").write_text("")
    publish.publish(new, dist, previous)
    assert not (dist / "sigma" / "gone.txt").exists()


def test_a_failed_move_puts_the_old_build_back(places, monkeypatch):
    new, dist, previous = places
    rename = Path.rename

    def failing(self, target):
        if self == new:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(BuildError, match="close the program"):
        publish.publish(new, dist, previous)
    assert (dist / "sigma" / "sigma").read_text() == "old"
    assert not previous.exists()


def test_a_swap_that_was_killed_after_its_first_rename_is_taken_back_first(places):
    new, dist, previous = places
    (dist / "sigma" / "runs").mkdir()
    dist.rename(previous)
    publish.publish(new, dist, previous)
    assert (dist / "sigma" / "sigma").read_text() == "new"
    assert (dist / "sigma" / "runs").is_dir()
    assert not previous.exists()


def test_a_swap_that_was_killed_after_its_second_rename_still_brings_the_runs(tmp_path):
    dist, previous = make_build(tmp_path / "dist", "first"), make_build(tmp_path / "previous", "older")
    (previous / "sigma" / "runs").mkdir()
    publish.publish(make_build(tmp_path / "new", "second"), dist, previous)
    assert (dist / "sigma" / "sigma").read_text() == "second"
    assert (dist / "sigma" / "runs").is_dir()
