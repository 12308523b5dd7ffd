"""A flag that nothing reads is a lie to its user."""

import re
from functools import cache
from pathlib import Path

import pytest

from sigma.config.presets import PRESETS
from sigma.config.table import run_flags

ROOT = Path(__file__).parents[3]


@cache
def readers() -> str:
    files = [*(ROOT / "sigma").rglob("*.py"), *(ROOT / "app").rglob("*.py")]
    return "\n".join(path.read_text("utf-8") for path in files if path.parent.name != "config")


@pytest.mark.parametrize("field", [flag.field for flag in run_flags().values()])
def test_field_is_read_outside_the_configuration(field: str):
    pattern = rf"\.{field}\b|[\"']{field}[\"']"
    assert re.search(pattern, readers()), f"nothing reads {field}: wire it or remove the flag"


def test_presets_name_only_fields():
    fields = {flag.field for flag in run_flags().values()}
    assert all(set(preset) <= fields for preset in PRESETS.values())
