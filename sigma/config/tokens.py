"""One tokenizer for args files and the command line: text in, a flat list of tokens with their origin out."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sigma.core.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 4
MAX_FILES = 64
COMMAND_LINE = "command line"

DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_BAD_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
LATER_COMMENT = re.compile(r"(^|\s)[#;]")
"""What looks like a comment behind a value. It is refused, because a path may hold these characters."""


@dataclass(frozen=True)
class Source:
    """Where tokens come from: one reading of a file, or the command line."""

    name: str
    base: Path
    """Relative paths start here."""
    number: int
    """0 is the command line; each reading of a file has its own number."""

    @property
    def is_file(self) -> bool:
        """Whether this is a file, not the command line."""
        return self.number > 0


@dataclass(frozen=True)
class Token:
    """A flag (`--name`, with the value that stood on the same line or after `=`), or a bare value."""

    text: str
    raw: str
    """Everything that was written here: what this token is worth as the value of the flag before it."""
    source: Source
    line: int
    value: str | None = None

    @property
    def is_flag(self) -> bool:
        """Whether the text begins with a dash, typographic ones included."""
        return self.text[:1] in DASHES and len(self.text) > 1

    @property
    def where(self) -> str:
        """`file.txt:12`, or `command line`."""
        return f"{self.source.name}:{self.line}" if self.source.is_file else self.source.name


@dataclass
class Tokens:
    """The tokens of all sources in order, and what the reading had to warn about."""

    items: list[Token] = field(default_factory=list[Token])
    warnings: list[str] = field(default_factory=list[str])
    files_read: int = 0


def shown(text: str) -> str:
    """`text` in quotes, on one line, and no longer than a message should be."""
    quoted = repr(text)
    return quoted if len(quoted) <= 80 else quoted[:76] + "...'"


def label(text: str, longest: int = 60) -> str:
    """`text` as it is where that is short and harmless in a message, else `shown`."""
    return text if text.isprintable() and len(text) <= longest else shown(text)


def tokenize(argv: Sequence[str], cwd: Path, tokens: Tokens | None = None, *, includes: bool = True) -> Tokens:
    """Tokens of a command line, appended to `tokens`; an `@FILE` argument is replaced by the tokens of that file."""
    tokens = tokens or Tokens()
    source = Source(COMMAND_LINE, cwd, 0)
    for argument in argv:
        if argument.startswith("@") and includes:
            _include(argument[1:], source, 0, tokens, (), COMMAND_LINE)
            continue
        name, equals, value = argument.partition("=")
        if argument[:1] in DASHES and equals:
            tokens.items.append(Token(name, argument, source, 0, value))
        else:
            tokens.items.append(Token(argument, argument, source, 0))
    return tokens


def tokenize_file(path: Path, tokens: Tokens | None = None) -> Tokens:
    """Tokens of one args file. Raises ConfigError for a file that cannot be read as text."""
    tokens = tokens or Tokens()
    _read_into(path, tokens, ())
    return tokens


def split_line(line: str, where: str) -> tuple[str, str | None]:
    """(flag, value) of a line that begins with a flag, else (whole line, None); quotes around a whole value go."""
    if line[:1] not in DASHES:
        return _unquote(line, where), None
    match = re.fullmatch(r"([^\s=]*)(\s*=\s*|\s+)(.*)", line, re.DOTALL)
    if match is None:
        return line, None
    name, separator, value = match.groups()
    if "=" in separator and separator != "=":
        raise ConfigError(f"{where}: {name}: spaces around '='; write {name} {value}")
    return name, _unquote(value, where, name)


def _unquote(value: str, where: str, name: str = "") -> str:
    quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    if quoted:
        return value[1:-1]
    if LATER_COMMENT.search(value):
        flag = f"{name}: " if name else ""
        raise ConfigError(f"{where}: {flag}put the comment on a line of its own (or quote the whole value)")
    return value


def _read_into(path: Path, tokens: Tokens, parents: tuple[Path, ...]) -> None:
    tokens.files_read += 1
    path = Path(os.path.abspath(path))
    name = label(path.name)
    source = Source(name, path.parent, tokens.files_read)
    text = _decode(_read_bytes(path, name), name, tokens.warnings)
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        where = f"{name}:{number}"
        if bad := _BAD_CONTROL.search(line):
            raise ConfigError(f"{where}: control character {bad.group()!r}; save the file again as plain UTF-8 text")
        if line[0] == "@":
            _include(_unquote(line[1:].strip(), where), source, number, tokens, (*parents, path), where)
        else:
            word, value = split_line(line, where)
            tokens.items.append(Token(word, word if value is None else line, source, number, value))


def _include(text: str, source: Source, line: int, tokens: Tokens, parents: tuple[Path, ...], where: str) -> None:
    if not text:
        raise ConfigError(f"{where}: '@' without a file name; write @FILE")
    if "\0" in text:
        raise ConfigError(f"{where}: {shown(text)} is not a file name; write @FILE")
    asked = "@" + label(text)
    path = Path(os.path.abspath(source.base / os.path.expanduser(text)))
    if any(_same_file(path, parent) for parent in parents):
        raise ConfigError(f"{where}: {asked} includes itself; remove this line")
    if tokens.files_read >= MAX_FILES:
        raise ConfigError(f"{where}: {asked}: more than {MAX_FILES} files are included; merge them")
    if len(parents) >= MAX_DEPTH:
        raise ConfigError(f"{where}: {asked} is included {len(parents) + 1} deep; at most {MAX_DEPTH}, merge the files")
    try:
        _read_into(path, tokens, parents)
    except ConfigError as error:
        message = str(error)
        if line and message.startswith(f"{label(path.name)}: "):  # about the file as a whole: say also who asked
            raise ConfigError(f"{where}: {asked}: {message}") from None
        raise


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


def _read_bytes(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            raise ConfigError(f"{name}: this is a folder ({label(str(path), 200)}); name a text file")
        if not path.exists():
            raise ConfigError(f"{name}: no such file ({label(str(path), 200)}); check the name")
        if not path.is_file():
            raise ConfigError(f"{name}: not a regular file ({label(str(path), 200)}); name a text file")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name}: cannot be read ({reason}); check the name and the permissions") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name}: larger than 1 MB, so not an args file; name another file")
    return data


def _decode(data: bytes, name: str, warnings: list[str]) -> str:
    encoding = "utf-8-sig"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise ConfigError(f"{name}:{line}: binary content (a NUL byte); save the file as UTF-8 text")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise ConfigError(f"{name}: damaged UTF-16 text; save the file as UTF-8 text") from None
        first = data[: error.start].count(b"\n") + 1
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{name}:{line}: binary content; save the file as UTF-8 text") from None
    count = sum(byte > 127 for byte in data)
    warnings.append(f"{name}:{first}: not UTF-8; {count} characters read as Windows-1252, save the file as UTF-8")
    return text
