"""Remove secrets from text, JSON values and command lines before they are written where others may read them.

Two nets: the name beside a value (`--hf-token X`, `{"api_key": X}`), and the shape of the value itself (`hf_...`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

REDACTED = "[redacted]"

# A name is secret when one of its words is: `hf_token` and `apiKey` are, `sample_tokens` and `tokenizer` are not.
_CREDENTIAL_WORDS = ("auth", "authorization", "credential", "credentials", "cookie", "bearer")
_SECRET_WORDS = {"token", "secret", "password", "passwd", "passphrase", "pwd", "key", "apikey", *_CREDENTIAL_WORDS}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#@\"']+@")
_AUTH_SCHEME = re.compile(r"\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)
_VALUE_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}"  # Hugging Face
    r"|sk-[A-Za-z0-9_-]{16,}"  # OpenAI and others
    r"|gh[opusr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # JSON web token
    r"|(?:local-)?[0-9a-f]{40})(?![0-9A-Za-z])"  # Weights & Biases
)
_SECRET_NAME = r"(?:token|secret|passw(?:or)?d|passphrase|credentials?|authorization|cookie|api-?key|[a-z0-9]+[_-]key)"
_NAMED_VALUE = re.compile(  # name=value, name: value, "name": "value", --name value
    rf"(?P<name>(?:\b|_|-){_SECRET_NAME}\b[\"']?(?:\s*[=:]\s*))(?!\[redacted\])(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&)\]}}]+)"
    rf"|(?P<flag>--[a-z0-9-]*?{_SECRET_NAME}\s+)(?P<word>[^\s-]\S*)",
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Whether a flag, key or environment variable of this name holds a secret (one of its words says so)."""
    return any(word.lower() in _SECRET_WORDS for word in _WORD.findall(name))


def redact_text(text: str) -> str:
    """Free text without tokens, keys, authorisation headers, URL credentials; the home folder becomes `~`."""
    text = _PRIVATE_KEY.sub(REDACTED, text)
    text = _URL_CREDENTIALS.sub(REDACTED + "@", text)
    text = _AUTH_SCHEME.sub(rf"\1\2{REDACTED}", text)
    text = _VALUE_SHAPES.sub(REDACTED, text)
    text = _NAMED_VALUE.sub(_hide_value, text)
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?=[/\\\s\"':,)]|$)", "~", text) if len(home) > 1 else text


def _hide_value(match: re.Match[str]) -> str:
    if match["flag"]:
        return match["flag"] + REDACTED
    scheme = re.match(r"(?:bearer|basic)$", match["value"], re.IGNORECASE)  # its credential is already hidden
    return match[0] if scheme else match["name"] + REDACTED


def redact(value: Any) -> Any:
    """A copy of a JSON-like value in which every secret text is replaced; numbers and structure stay."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {key: _redact_entry(str(key), entry) for key, entry in items}
    if isinstance(value, (list, tuple)):
        return [redact(entry) for entry in cast("list[Any]", value)]
    return value


def _redact_entry(name: str, value: Any) -> Any:
    hidden = is_secret_name(name) and value is not None and not isinstance(value, (bool, int, float))
    return REDACTED if hidden and value != "" else redact(value)


def redact_argv(argv: Sequence[str]) -> list[str]:
    """A command line in which the value after (or joined by `=` to) a secret flag is replaced."""
    result: list[str] = []
    hide_next = False
    for word in argv:
        flag, equals, _ = word.partition("=")
        is_flag = word.startswith("-")
        if hide_next and not is_flag:
            result.append(REDACTED)
        elif is_flag and equals and is_secret_name(flag):
            result.append(f"{flag}={REDACTED}")
        else:
            result.append(redact_text(word))
        hide_next = is_flag and not equals and is_secret_name(flag)
    return result
