"""Strict JSON: what is written parses everywhere, and what is read is refused unless it is unambiguous (RFC 8259)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from sigma.core.errors import SigmaError

MAX_BYTES = 256 * 1024 * 1024
MAX_DEPTH = 100


class StrictJsonError(SigmaError, ValueError):
    """Text that is not strict JSON, or a value that has no exact JSON form."""


def dumps(
    value: Any,
    *,
    nonfinite: Literal["null", "error"] = "null",
    unknown: Callable[[Any], str] | None = None,
    indent: int | None = None,
    sort_keys: bool = False,
) -> str:
    """Serialise to one line (or indented) ASCII JSON; key order is kept, or sorted for a stable hash.

    Accepts dataclasses (as objects) and Path (as text) besides the JSON types. NaN and infinities become null, or an
    error where the value must come back (`nonfinite="error"`). Other types are an error unless `unknown` names them.
    Raises StrictJsonError naming where in the value the problem is.
    """
    plain = _plain(value, nonfinite, unknown, "$", 0)
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(plain, allow_nan=False, indent=indent, sort_keys=sort_keys, separators=separators)


def _plain(value: Any, nonfinite: str, unknown: Callable[[Any], str] | None, where: str, depth: int) -> Any:
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return _plain_float(value, nonfinite, where)
    if depth >= MAX_DEPTH:
        raise StrictJsonError(f"{where}: nested deeper than {MAX_DEPTH} levels (or a cycle)")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {_key(k, where, unknown): _plain(v, nonfinite, unknown, f"{where}.{k}", depth + 1) for k, v in items}
    if isinstance(value, (list, tuple)):
        entries = enumerate(cast("list[Any]", value))
        return [_plain(v, nonfinite, unknown, f"{where}[{i}]", depth + 1) for i, v in entries]
    if isinstance(value, Path):
        return str(value)
    if unknown is None:
        raise StrictJsonError(f"{where}: {type(value).__name__} has no JSON form")
    return unknown(value)


def _plain_float(value: float, nonfinite: str, where: str) -> float | None:
    if math.isfinite(value):
        return value
    if nonfinite == "error":
        raise StrictJsonError(f"{where}: {value} has no JSON form and must not be lost")
    return None


def _key(key: Any, where: str, unknown: Callable[[Any], str] | None) -> str:
    if isinstance(key, str):
        return key
    if unknown is None:
        raise StrictJsonError(f"{where}: key {key!r} is not text")  # it would come back as another type
    return unknown(key)


def loads(text: str | bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Parse strict JSON; refuse NaN, infinities and overflowing numbers, duplicate keys, bad UTF-8, depth and size.

    Raises StrictJsonError saying what is wrong and where.
    """
    if len(text) > max_bytes:
        raise StrictJsonError(f"JSON of {len(text)} bytes is larger than the limit of {max_bytes}")
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(decoded, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant)
    except StrictJsonError:
        raise
    except RecursionError as error:
        raise StrictJsonError(f"JSON nested deeper than {max_depth} levels") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of thousands of digits
        raise StrictJsonError(f"not JSON: {error}") from error
    if decoded.count("[") + decoded.count("{") > max_depth:
        _check_depth(value, max_depth)
    return value


def load_file(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """`loads` of a file; the error names the file. Raises OSError, StrictJsonError."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    try:
        return loads(data, max_bytes=max_bytes)
    except StrictJsonError as error:
        raise StrictJsonError(f"{path}: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise StrictJsonError(f"duplicate key {key!r}")
        result[key] = value
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise StrictJsonError(f"number {text[:40]} is out of range")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise StrictJsonError(f"{name} is not JSON")


def _check_depth(value: Any, max_depth: int) -> None:
    level: list[Any] = [value]
    for _ in range(max_depth + 1):
        if not any(isinstance(v, (dict, list)) for v in level):
            return
        level = [child for v in level for child in _children(v)]
    raise StrictJsonError(f"JSON nested deeper than {max_depth} levels")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(cast("dict[str, Any]", value).values())
    return cast("list[Any]", value) if isinstance(value, list) else []
