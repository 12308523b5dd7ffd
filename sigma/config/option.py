"""How one option is declared: a dataclass field that carries its help and its bounds."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def opt(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    """Declare one option: default value, one line of help, inclusive bounds.

    The field name with `_` written `-` is the flag (`d_model` is `--d-model`). Kinds that the parser knows:
    bool (`--x` / `--no-x`), int, float, str, Path, Literal[...], `Literal[...] | Path` (a word or a path), and
    `X | None` with the word `auto` for None.
    """
    return field(default=default, metadata={"help": help, "low": low, "high": high})
