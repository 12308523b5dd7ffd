"""The table of this machine: what is saved is in force at the next start, and nothing else is."""

import json

import pytest

from sigma_kernels import tuned


@pytest.fixture(autouse=True)
def empty(tmp_path):
    """No rows, before and after."""
    tuned.load(tmp_path / "none")
    yield
    tuned.load(tmp_path / "none")


def test_what_is_saved_is_in_force_after_a_load_and_other_rows_stay(tmp_path):
    path = tmp_path / "deep" / "tuned.json"
    tuned.save(path, {("scan", "sm_90 a"): {"rows": 64, "output": [4, None]}})
    tuned.save(path, {("scan", "sm_90 b"): {"rows": 32}, ("orthogonalise", "x"): {"tile": {"BLOCK": 64}}})
    tuned.load(tmp_path / "none")
    assert tuned.settings("scan", "sm_90 a") is None
    assert tuned.load(path) == 3
    assert tuned.settings("scan", "sm_90 a") == {"rows": 64, "output": [4, None]}
    assert tuned.settings("orthogonalise", "sm_90 a") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": {}}', '{"kernels": "x", "rows": 3}', "\x00\xff"])
def test_a_damaged_table_is_refused_and_replaced_by_the_next_one(content, tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text(content)
    with pytest.raises(tuned.TunedTableError, match="is damaged"):
        tuned.load(path)
    tuned.save(path, {("scan", "key"): {"rows": 32}})
    assert tuned.load(path) == 1


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
