"""The table of this machine: what is saved is in force at the next start, and nothing else is."""

import json
import os
from pathlib import Path

import pytest

from sigma_kernels import tuned
from sigma_kernels.scan import triton_launch

TILE = {"BLOCK": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3, "DESCRIPTORS": False}


@pytest.fixture(autouse=True)
def empty(tmp_path):
    """No rows, before and after."""
    tuned.load(tmp_path / "none")
    yield
    tuned.load(tmp_path / "none")


def test_what_is_saved_is_in_force_after_a_load_and_other_rows_stay(tmp_path):
    path = tmp_path / "deep" / "tuned.json"
    tuned.save(path, {("scan", "sm_90 a"): {"rows": 64, "output": [4, None, 64]}})
    tuned.save(path, {("scan", "sm_90 b"): {"rows": 32}, ("orthogonalise", "x"): {"tile": TILE}})
    tuned.load(tmp_path / "none")
    assert tuned.settings("scan", "sm_90 a") is None
    assert tuned.load(path) == 3
    assert tuned.settings("scan", "sm_90 a") == {"rows": 64, "output": [4, None, 64]}
    assert tuned.settings("orthogonalise", "sm_90 a") is None


DEEP = pytest.param("[" * 100_000, id="deep")


@pytest.mark.parametrize("content", ["", "{", DEEP, "[]", '{"rows": {}}', '{"kernels": "x", "rows": 3}', "\x00\xff"])
def test_a_damaged_table_is_refused_and_replaced_by_the_next_one(content, tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text(content)
    with pytest.raises(tuned.TunedTableError, match="is damaged"):
        tuned.load(path)
    tuned.save(path, {("scan", "key"): {"rows": 32}})
    assert tuned.load(path) == 1


GOOD = {"rows": 64, "sum_rows": 4, "heads_phase": 16, "output": [8, None, 32], "phase": [1, 168]}
WRONG = [
    {"warps": 4}, {"rows": 48}, {"rows": "64"}, {"rows": True}, {"rows": 1 << 70}, {"sum_rows": 2.0},
    {"output": [8, None, 0]}, {"output": [8, None]}, {"phase": [1, 168, 32]},
    {"heads_phase": None}, {"output": 4}, {"output": [0, None]}, {"output": [3, None]}, {"output": [4]},
    {"output": [4, 1e3]}, {"output": [4, 0]}, {"phase": {"warps": 4}}, {"steps": [4, None]},
]  # fmt: skip


def saved(path, op, row):
    """A table of one row, in force nowhere."""
    tuned.save(path, {(op, "sm_90 P64 N64 R1 16 bits"): row})
    tuned.load(path.with_name("none"))
    return path


def test_a_row_that_a_launch_can_have_is_taken(tmp_path):
    assert tuned.load(saved(tmp_path / "tuned.json", "scan", GOOD)) == 1
    shape = triton_launch.ShapeClass("sm_90", 64, 64, 1, 16)
    assert triton_launch.tiles_of(shape).settings().items() >= GOOD.items()
    for tiles in triton_launch.TABLE.values():
        triton_launch.check_settings(tiles.settings())


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_row_that_no_launch_can_have_is_refused_with_its_table(wrong, tmp_path):
    path = saved(tmp_path / "tuned.json", "scan", GOOD | wrong)
    with pytest.raises(tuned.TunedTableError, match=f"is damaged .*{next(iter(wrong))} = .* is no launch of the scan"):
        tuned.load(path)
    assert tuned.settings("scan", "sm_90 P64 N64 R1 16 bits") is None
    assert tuned.load(saved(path, "scan", GOOD)) == 1, "such a row is not kept"


@pytest.mark.parametrize(
    "row", [{}, {"tile": None}, {"tile": {"BLOCK": 64}}, {"tile": TILE, "rows": 1}, {"tile": TILE | {"BLOCK": 96}},
            {"tile": TILE | {"num_warps": 0}}, {"tile": TILE | {"num_stages": 0}}, {"tile": TILE | {"maxnreg": 8}},
            {"tile": TILE | {"DESCRIPTORS": 0}}, {"tile": TILE | {"RATIO": 1}}, {"tile": TILE | {"DESCRIPTORS": True}},
            {"tile": TILE | {"DESCRIPTORS": True, "RATIO": 4}},
            {"tile": TILE | {"DESCRIPTORS": True, "RATIO": 2, "BLOCK": 256}}],
    ids=str,
)  # fmt: skip
def test_a_tile_that_no_product_can_have_is_refused_with_its_table(row, tmp_path):
    pytest.importorskip("triton")
    from sigma_kernels.orthogonalise.kernel import tile_of

    assert tuned.load(saved(tmp_path / "tuned.json", "orthogonalise", {"tile": TILE})) == 1
    tuned.load(tmp_path / "none")
    for tile in (tile_of(64, "sm_90"), tile_of(512, "sm_90"), tile_of(512, "sm_80")):
        assert tuned.load(saved(tmp_path / "tuned.json", "orthogonalise", {"tile": tile})) == 1
        tuned.load(tmp_path / "none")
    with pytest.raises(tuned.TunedTableError, match=r"is damaged .*orthogonalise"):
        tuned.load(saved(tmp_path / "tuned.json", "orthogonalise", row))


def test_a_table_in_a_folder_of_another_is_refused(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", forbidden)
    with pytest.raises(tuned.TunedTableError, match=r"is damaged.*Permission denied"):
        tuned.load(tmp_path / "tuned.json")


def test_two_processes_that_save_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    path, replace = tmp_path / "tuned.json", Path.replace

    def the_other_comes_between(part, target):
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        tuned.save(path, {("scan", "theirs"): {"rows": 32}})
        return replace(part, target)

    monkeypatch.setattr(Path, "replace", the_other_comes_between)
    tuned.save(path, {("scan", "ours"): {"rows": 64}})
    assert tuned.load(path) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["tuned.json"]


def test_a_table_of_other_kernels_is_refused_and_no_row_of_it_stays(tmp_path):
    path = tmp_path / "tuned.json"
    tuned.save(path, {("scan", "key"): {"rows": 32}})
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"kernels": "0" * 16}))
    with pytest.raises(tuned.TunedTableError, match="was measured with other kernels"):
        tuned.load(path)
    assert tuned.settings("scan", "key") is None


def test_settings_hold_inside_their_block_only():
    with tuned.using("scan", "key", {"rows": 32}):
        with tuned.using("scan", "key", {"rows": 64}):
            assert tuned.settings("scan", "key") == {"rows": 64}
        assert tuned.settings("scan", "key") == {"rows": 32}
    assert tuned.settings("scan", "key") is None


def test_a_launch_is_made_once_and_anew_when_its_row_changes(tmp_path):
    made = []

    def make(settings):
        made.append(settings["rows"])
        return made[-1]

    assert tuned.launch("scan", "key", make) is None
    with tuned.using("scan", "key", {"rows": 32}):
        assert [tuned.launch("scan", "key", make) for _ in range(3)] == [32, 32, 32]
        with tuned.using("scan", "key", {"rows": 64}):
            assert tuned.launch("scan", "key", make) == 64
        assert tuned.launch("scan", "key", make) == 32
    assert made == [32, 64, 32]
    assert tuned.launch("scan", "key", make) is None
