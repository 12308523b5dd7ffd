"""From tokens to RunConfig: later sources win, every value knows where it came from, every mistake is one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sigma.config.retired import ALIASES, VALUE_CHANGES, Retired, retired_flags
from sigma.config.root import RunConfig
from sigma.config.table import Flag, build_config, nearest, run_flags, section_flags
from sigma.config.tokens import DASHES, Token, Tokens, label, shown, tokenize, tokenize_file
from sigma.core.errors import ConfigError

DEFAULT = "default"
Options = TypeVar("Options")


@dataclass(frozen=True)
class Parsed:
    """A configuration and its history."""

    config: RunConfig
    given: dict[str, Any] = field(default_factory=dict[str, Any])
    """Field name -> value, for what a file or the command line said."""
    origins: dict[str, str] = field(default_factory=dict[str, str])
    """Field name -> `default`, `file:line`, `command line` or the preset that chose it; every field has one."""
    warnings: tuple[str, ...] = ()
    """One line each, with file and line; the caller prints them."""


@dataclass
class Assignments:
    """What the tokens say: the last value of each field, where it stood, and the notes on old flags."""

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    origins: dict[str, str] = field(default_factory=dict[str, str])
    _notes: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    _lines: dict[tuple[int, str], int] = field(default_factory=dict[tuple[int, str], int])

    def set(self, flag: Flag, value: Any, token: Token) -> None:
        """Store a value; a later one replaces it."""
        self.values[flag.field], self.origins[flag.field] = value, token.where

    def note(self, name: str, message: str, token: Token) -> None:
        """One warning a name, with the number of times it was met."""
        first, count = self._notes.get(name, (f"{token.where}: {message}", 0))
        self._notes[name] = first, count + 1

    def refuse_duplicate(self, key: str, token: Token) -> None:
        """Raise when one file sets the same thing twice; between sources the later wins."""
        first = self._lines.setdefault((token.source.number, key), token.line)
        if token.source.is_file and first != token.line:
            raise ConfigError(f"{token.where}: {token.text}: already on line {first}; remove one of the two lines")

    def warnings(self) -> list[str]:
        """The notes, in the order of their first appearance."""
        return [text if count == 1 else f"{text} (met {count} times)" for text, count in self._notes.values()]


def parse(
    argv: Sequence[str] = (), *, args_file: Path | None = None, cwd: Path | None = None, data_dir: Path | None = None
) -> Parsed:
    """RunConfig of an args file and a command line; sizes stay None until `presets.resolve`.

    `args_file` comes first, then `argv`, in which `@FILE` includes another file; later values win. Relative paths
    start at their file's folder, on the command line at `cwd`, and a relative default at `data_dir`.
    Raises ConfigError, whose message names file and line, the flag, and what to do.
    """
    cwd = cwd or Path.cwd()
    tokens = Tokens() if args_file is None else tokenize_file(args_file)
    tokenize(argv, cwd, tokens)
    found = assign(tokens, run_flags(), retired_flags())
    values = _absolute_defaults(run_flags(), data_dir or cwd) | found.values
    origins = {flag.field: found.origins.get(flag.field, DEFAULT) for flag in run_flags().values()}
    config = build_located(values, origins)
    return Parsed(config, found.values, origins, (*tokens.warnings, *found.warnings()))


def parse_options(kind: type[Options], argv: Sequence[str], cwd: Path | None = None) -> Options:
    """The options of a small command as an instance of the dataclass `kind`. Raises ConfigError."""
    cwd = cwd or Path.cwd()
    table = section_flags("", kind)
    found = assign(tokenize(argv, cwd, includes=False), table, {})
    return kind(**{**_absolute_defaults(table, cwd), **found.values})


def split_options(kind: type[Options], argv: Sequence[str]) -> tuple[Options, list[str]]:
    """The options of `kind` among the words of a command line, and the words that are left. Raises ConfigError."""
    table = section_flags("", kind)
    own: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        flag = table.get(word.partition("=")[0])
        if flag is None:
            rest.append(word)
            continue
        own.append(word)
        if "=" not in word and not flag.is_switch:
            own += (value for value in (next(words, None),) if value is not None)
    return parse_options(kind, own), rest


def build_located(values: dict[str, Any], origins: dict[str, str]) -> RunConfig:
    """`build_config`, with the place of the flags that contradict each other put before the message."""
    try:
        return build_config(values)
    except ConfigError as error:
        raise located(str(error), origins) from None


def located(message: str, origins: dict[str, str]) -> ConfigError:
    """A ConfigError that begins with where the flags in `message` were written."""
    fields = [name[2:].replace("-", "_") for name in re.findall(r"--[a-z0-9-]+", message)]
    places = dict.fromkeys(origins.get(name, DEFAULT) for name in fields)
    written = " and ".join(place for place in places if place != DEFAULT)
    return ConfigError(f"{written}: {message}" if written else message)


def assign(tokens: Tokens, table: dict[str, Flag], retired: dict[str, Retired]) -> Assignments:
    """Turn tokens into values of `table`. Raises ConfigError for anything that is not a flag with its value."""
    found = Assignments()
    items = iter_pairs(tokens.items, table, retired)
    for token, name, value in items:
        old = _find_retired(name, retired)
        if old is not None:
            found.refuse_duplicate(old.name, token)
            found.note(old.name, f"{old.name}: {old.message}", token)
            continue
        if name in ALIASES and name not in table:
            found.note(name, f"{name}: now called {ALIASES[name]}", token)
        flag, negated = _find(name, table)
        found.refuse_duplicate(flag.field, token)
        found.set(flag, (not negated) if flag.is_switch else _value(flag, value or "", token, found), token)
    return found


def iter_pairs(
    items: list[Token], table: dict[str, Flag], retired: dict[str, Retired]
) -> list[tuple[Token, str, str | None]]:
    """(token, flag name, value or None) triples. A value may stand on the flag's line, after `=`, or come next."""
    pairs: list[tuple[Token, str, str | None]] = []
    position = 0
    while position < len(items):
        token = items[position]
        position += 1
        name = _checked_name(token, table, retired)
        value = token.value
        if _takes_value(name, table, retired):
            if value is None:
                follower = items[position] if position < len(items) else None
                if follower is None or follower.source != token.source or _is_known(follower.text, table, retired):
                    raise ConfigError(f"{token.where}: {name}: has no value; write {name} VALUE")
                value = follower.raw
                position += 1
        elif value is not None:
            bare = name.removeprefix("--no-").removeprefix("--")
            raise ConfigError(f"{token.where}: {name}: takes no value; write --{bare} or --no-{bare} alone")
        pairs.append((token, name, value))
    return pairs


def _value(flag: Flag, text: str, token: Token, found: Assignments) -> Any:
    change = VALUE_CHANGES.get((flag.field, text))
    if change is not None:
        found.note(f"{flag.name} {text}", f"{flag.name} {text}: {change.message}", token)
        text = change.replacement
    try:
        return flag.convert(text, token.source.base)
    except ValueError as error:
        raise ConfigError(f"{token.where}: {flag.name}: {error}") from None


def _find(name: str, table: dict[str, Flag]) -> tuple[Flag, bool]:
    name = name if name in table else ALIASES.get(name, name)
    if name in table:
        return table[name], False
    return table["--" + name[len("--no-") :]], True


def _find_retired(name: str, retired: dict[str, Retired]) -> Retired | None:
    if name in retired:
        return retired[name]
    positive = retired.get("--" + name[len("--no-") :]) if name.startswith("--no-") else None
    return positive if positive is not None and positive.is_switch else None


def _takes_value(name: str, table: dict[str, Flag], retired: dict[str, Retired]) -> bool:
    old = _find_retired(name, retired)
    return not (old.is_switch if old else _find(name, table)[0].is_switch)


def _is_known(name: str, table: dict[str, Flag], retired: dict[str, Retired]) -> bool:
    if name in table or (name in ALIASES and ALIASES[name] in table) or _find_retired(name, retired) is not None:
        return True
    positive = table.get("--" + name[len("--no-") :]) if name.startswith("--no-") else None
    return positive is not None and positive.is_switch


def _checked_name(token: Token, table: dict[str, Flag], retired: dict[str, Retired]) -> str:
    """The flag that `token` names, or ConfigError with the most helpful next step."""
    name = token.text
    if _is_known(name, table, retired):
        return name
    written = label(name) if name.isascii() else shown(name)
    if not token.is_flag:
        guess = _suggest("--" + (name.split(maxsplit=1) or [""])[0], table)
        raise ConfigError(f"{token.where}: {shown(name)}: a value without a flag; {guess or 'write --flag value'}")
    typographic = next((c for c in name if c in DASHES[1:]), None)
    if typographic is not None:
        plain = "--" + "".join("-" if c in DASHES else c for c in name).lstrip("-")
        remedy = f"write {plain}" if plain.isascii() and len(plain) < 60 else "use the minus sign of the keyboard"
        raise ConfigError(f"{token.where}: {written}: typographic dash U+{ord(typographic):04X}; {remedy}")
    positive = table.get("--" + name[len("--no-") :]) if name.startswith("--no-") else None
    if positive is not None:
        raise ConfigError(f"{token.where}: {written}: {positive.name} is not a switch; write {positive.name} VALUE")
    raise ConfigError(f"{token.where}: {written}: unknown flag; {_suggest(name, table) or 'see sigma --help'}")


def _suggest(name: str, table: dict[str, Flag]) -> str | None:
    """`did you mean --x?` for the flag or alias closest to `name`."""
    word = "--" + name.lstrip(DASHES).split("=")[0].replace("_", "-")[:60]
    negated = "--no-" if word.startswith("--no-") else ""
    if negated:
        names = {"--no-" + flag.name[2:]: "--no-" + flag.name[2:] for flag in table.values() if flag.is_switch}
    else:
        names = {flag: flag for flag in table} | {old: new for old, new in ALIASES.items() if new in table}
    close = nearest(word, names) if word != "--" else None
    return f"did you mean {names[close]}?" if close else None


def _absolute_defaults(table: dict[str, Flag], base: Path) -> dict[str, Any]:
    return {flag.field: flag.convert(str(flag.default), base) for flag in table.values() if flag.kind is Path}
