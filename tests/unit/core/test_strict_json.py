import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma.core.strict_json import StrictJsonError, dumps, load_file, loads

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES)
@settings(max_examples=80, deadline=None)
def test_every_json_value_comes_back_exactly(value):
    assert loads(dumps(value, nonfinite="error")) == value
    assert "\n" not in dumps(value)


@dataclass
class Point:
    x: float
    at: Path


def test_dataclass_path_and_tuple_have_a_json_form():
    text = dumps({"p": Point(1.5, Path("a/b")), "t": (1, 2)})
    assert loads(text) == {"p": {"x": 1.5, "at": str(Path("a/b"))}, "t": [1, 2]}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_numbers_become_null_or_a_named_error(bad):
    assert dumps({"loss": bad}) == '{"loss":null}'
    with pytest.raises(StrictJsonError, match=r"\$\.a\[1\]"):
        dumps({"a": [0, bad]}, nonfinite="error")


def test_sorted_keys_give_one_text_for_equal_mappings():
    one, other = {"b": 1, "a": {"d": 2, "c": 3}}, {"a": {"c": 3, "d": 2}, "b": 1}
    assert dumps(one) != dumps(other)
    assert dumps(one, sort_keys=True) == dumps(other, sort_keys=True)


def test_what_has_no_exact_form_is_an_error_that_names_the_place():
    with pytest.raises(StrictJsonError, match=r"\$\.x: set"):
        dumps({"x": {1}})
    with pytest.raises(StrictJsonError, match="key 3"):
        dumps({3: 1})
    assert loads(dumps({3: {1}}, unknown=repr)) == {"3": "{1}"}


def test_a_cycle_is_an_error_and_not_a_recursion():
    cycle = []
    cycle.append(cycle)
    with pytest.raises(StrictJsonError, match="cycle"):
        dumps(cycle)


@pytest.mark.parametrize(
    "text, why",
    [
        pytest.param('{"a": NaN}', "NaN", id="nan"),
        pytest.param("[Infinity]", "Infinity", id="infinity"),
        pytest.param("[-Infinity]", "-Infinity", id="minus-infinity"),
        pytest.param("[1e999]", "out of range", id="overflow"),
        pytest.param('{"a": 1, "a": 2}', "duplicate key 'a'", id="duplicate"),
        pytest.param('{"b": {"a": 1, "a": 1}}', "duplicate key", id="inner-duplicate"),
        pytest.param("", "not JSON", id="empty"),
        pytest.param('{"a": 1', "not JSON", id="torn"),
        pytest.param('{"a": 1} x', "not JSON", id="trailing"),
        pytest.param(b"\xff\xfe{\x00}\x00", "not JSON", id="utf-16"),
        pytest.param(b"\xef\xbb\xbf{}", "not JSON", id="bom"),
        pytest.param("[" * 101 + "]" * 101, "deeper", id="too-deep"),
        pytest.param("[" * 200_000, "deeper", id="far-too-deep"),
        pytest.param('{"a":' * 150 + "1" + "}" * 150, "deeper", id="deep-objects"),
        pytest.param("1" * 5000, "not JSON", id="huge-integer"),
        pytest.param("{'a': 1}", "not JSON", id="single-quotes"),
    ],
)
def test_ambiguous_or_hostile_text_is_refused(text, why):
    with pytest.raises(StrictJsonError, match=why):
        loads(text)


def test_the_depth_limit_counts_levels_and_not_brackets():
    assert loads("[" * 100 + "]" * 100) is not None
    wide = [[0]] * 300
    assert loads(json.dumps(wide)) == wide
    assert loads(json.dumps("[{" * 300)) == "[{" * 300


def test_size_limit_holds_for_text_and_file_and_the_error_names_the_file(tmp_path):
    with pytest.raises(StrictJsonError, match="larger"):
        loads("[1,2,3]", max_bytes=6)
    (tmp_path / "state.json").write_text("[1,2,3]")
    assert load_file(tmp_path / "state.json", max_bytes=7) == [1, 2, 3]
    with pytest.raises(StrictJsonError, match=r"state\.json.*larger"):
        load_file(tmp_path / "state.json", max_bytes=6)
