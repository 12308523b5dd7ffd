"""The flag table: read from the section dataclasses, used by the parser, --help, the documents and resolved args."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sigma.config.root import RunConfig
from sigma.config.tokens import LATER_COMMENT, label, shown

AUTO = "auto"
"""The word for None where a field may be None."""

_INT = re.compile(r"[+-]?[0-9]+", re.ASCII)
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Flag:
    """One option. `convert` reads text, `render` writes it; each is the inverse of the other."""

    name: str
    section: str
    field: str
    kind: type
    choices: tuple[str, ...]
    optional: bool
    default: Any
    help: str
    low: float | None
    high: float | None

    @property
    def is_switch(self) -> bool:
        """Whether it is written `--x` / `--no-x`, without a value."""
        return self.kind is bool

    @property
    def may_be_path(self) -> bool:
        """Whether a value is a path: one of its own, or in the place of a choice."""
        return self.kind is Path

    @property
    def kind_words(self) -> str:
        """What a value looks like, for help and tables."""
        if self.is_switch:
            return "on / off"
        kind = {int: "integer", float: "number", Path: "path"}.get(self.kind, "text")
        words = " / ".join((*self.choices, *([kind] if self.may_be_path or not self.choices else [])))
        return f"{words} / {AUTO}" if self.optional else words

    def convert(self, text: str, base: Path) -> Any:
        """The value of `text`; relative paths start at `base`. Raises ValueError that says how to mend it."""
        if self.kind is str and not self.choices:
            return text
        if _CONTROL.search(text):
            raise ValueError(f"{shown(text)} holds a control character; type the value again")
        if not text:
            raise ValueError(f"the value is empty; give {self._article()}")
        if self.optional and text == AUTO:
            return None
        if self.choices and not (self.may_be_path and _looks_like_path(text)):
            return self._choice(text)
        if self.may_be_path:
            return _absolute(text, base)
        return self._bounded(self._number(text))

    def render(self, value: Any, base: Path | None = None) -> str:
        """The text that `convert` reads back as `value`; a path inside `base` is written relative to it."""
        if value is None:
            return AUTO
        if isinstance(value, float):
            return repr(int(value)) if value.is_integer() and abs(value) < 1e6 else repr(value)
        if isinstance(value, Path) and base is not None and value.is_relative_to(base):
            inside = value.relative_to(base).as_posix()
            return f"./{inside}" if inside[0] == "~" or (self.choices and not _looks_like_path(inside)) else inside
        return str(value)

    def line(self, value: Any, base: Path | None = None) -> str:
        """The line of an args file that sets this flag to `value`."""
        if self.is_switch:
            return self.name if value else "--no-" + self.name[2:]
        text = self.render(value, base)
        plain = text == text.strip() and not LATER_COMMENT.search(text) and text[0] not in "\"'="
        return f"{self.name} {text}" if plain else f'{self.name} "{text}"'

    def _article(self) -> str:
        return f"one of {', '.join(self.choices)}" if self.choices else f"a {self.kind_words}".replace("a i", "an i")

    def _choice(self, text: str) -> str:
        if text in self.choices:
            return text
        close = nearest(text, self.choices)
        hint = f"; did you mean {close}?" if close else ""
        if self.may_be_path:
            hint += f"; a path has a / in it, like ./{label(text)}" if not hint else " (a path has a / in it)"
        raise ValueError(f"{shown(text)} is not one of {', '.join(self.choices)}{hint}")

    def _number(self, text: str) -> int | float:
        if self.kind is int:
            if not _INT.fullmatch(text) or len(text) > 30:
                raise ValueError(f"{shown(text)} is not an integer; write digits only{_number_hint(text)}")
            return int(text)
        if not _FLOAT.fullmatch(text) or not math.isfinite(float(text)):
            raise ValueError(f"{shown(text)} is not a finite number; write it like 0.5 or 3e-4{_number_hint(text)}")
        return float(text)

    def _bounded(self, value: int | float) -> int | float:
        if self.low is not None and value < self.low:
            raise ValueError(f"{value} is below the smallest value {self.low}; raise it")
        if self.high is not None and value > self.high:
            raise ValueError(f"{value} is above the largest value {self.high}; lower it")
        return value


def _number_hint(text: str) -> str:
    if re.fullmatch(r"[^#;]+\s[#;].*", text):
        return " and put the comment on a line of its own"
    if re.search("[\u2010-\u2015\u2212\uff0d]", text):
        return " with the minus sign of the keyboard"
    if " --" in text:
        return " and put each flag on a line of its own"
    if "," in text:
        return " with a point, not a comma"
    return ""


def _looks_like_path(text: str) -> bool:
    """What tells a path from a word where both may stand: `./x`, `x.json`, `~/x`, `C:\\x`."""
    return any(sign in text for sign in "/\\.~")


def _absolute(text: str, base: Path) -> Path:
    expanded = os.path.expanduser(text) if text == "~" or text.startswith(("~/", "~\\")) else text
    path = os.path.abspath(base / expanded)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{shown(path)} is not valid Unicode; rename the folder") from None
    if _CONTROL.search(path):
        raise ValueError(f"{shown(path)} holds a control character; rename the folder")
    return Path(path)


def nearest(text: str, names: Iterable[str]) -> str | None:
    """The name that `text` most likely stood for, or None."""
    close = difflib.get_close_matches(text.lower(), list(names), n=1, cutoff=0.6)
    return close[0] if close else None


def section_flags(section: str, section_type: type) -> dict[str, Flag]:
    """The flags of one dataclass, by name."""
    hints = get_type_hints(section_type)
    found: dict[str, Flag] = {}
    for field in dataclasses.fields(section_type):
        kind, choices, optional = _kind(hints[field.name])
        name = "--" + field.name.replace("_", "-")
        meta = field.metadata
        found[name] = Flag(
            name, section, field.name, kind, choices, optional, field.default, meta["help"], meta["low"], meta["high"]
        )
    return found


def sections() -> dict[str, type]:
    """Name and dataclass of every section of RunConfig, in order."""
    return dict(get_type_hints(RunConfig))


@cache
def run_flags() -> dict[str, Flag]:
    """Every flag of RunConfig. A name declared in two sections is a programming error (ValueError)."""
    table: dict[str, Flag] = {}
    for section, section_type in sections().items():
        for name, flag in section_flags(section, section_type).items():
            if name in table:
                raise ValueError(f"{name} is declared in {table[name].section} and in {section}")
            table[name] = flag
    return table


def get_value(config: RunConfig, flag: Flag) -> Any:
    """The value of `flag` in `config`."""
    return getattr(getattr(config, flag.section), flag.field)


def build_config(values: dict[str, Any]) -> RunConfig:
    """RunConfig with `values` (field name -> value) over the defaults. Raises ConfigError on a contradiction."""
    by_section: dict[str, dict[str, Any]] = {name: {} for name in sections()}
    for flag in run_flags().values():
        if flag.field in values:
            by_section[flag.section][flag.field] = values[flag.field]
    return RunConfig(**{name: section(**by_section[name]) for name, section in sections().items()})


def _kind(hint: Any) -> tuple[type, tuple[str, ...], bool]:
    """(kind, choices, may be None) of a field's type hint."""
    if get_origin(hint) in (Union, UnionType):
        inner = [_kind(a) for a in get_args(hint) if a is not NoneType]
        choices = tuple(choice for _, found, _ in inner for choice in found)
        return inner[-1][0], choices, NoneType in get_args(hint)
    if get_origin(hint) is Literal:
        return str, get_args(hint), False
    return hint, (), False
