"""HTTP for data: whole small files and ranges of large ones, with everything that can go wrong on the way.

It stands on the standard library. A client that is already there (httpx, by way of transformers) bounds each receive
but not an answer, and its retries, redirects and decompression would have to be switched off and written again.

What may help is tried again a few times, with backoff and jitter: lost connections, timeouts, 408, 425, 429, 5xx, a
length, range or version that is not the one asked for. Then, and at once for everything else, Unavailable is raised
(Missing for 404, 410 and 416).
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from sigma.core.redact import redact_text
from sigma.core.version import VERSION
from sigma.data.record import Missing, Unavailable
from sigma.data.remote.connection import HttpLimits, Route

T = TypeVar("T")
MOST_REDIRECTS = 5
REDIRECT_S = 600.0  # signed addresses of the hub live longer
KEPT_REDIRECTS = 64
SMALL = 64 << 10  # bytes of an answer that are read only to keep the connection
SHORT_WAIT_S = 5.0  # longer ones are left to whoever asks for the source again
LONGEST_WAIT_S = 3600.0
AGAIN = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Version:
    """Which content an answer belongs to."""

    etag: str | None
    size: int


@dataclass
class Answer:
    status: int
    headers: Message
    body: bytes


class _Failed(Exception):  # noqa: N818 - an outcome, handled in this file
    """An attempt that gave nothing."""

    def __init__(self, reason: str, *, again: bool = True, wait_s: float = 0.0, missing: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.again, self.wait_s, self.missing = reason, again, wait_s, missing


class HttpClient:
    """Requests of one source, one after another. `token` goes to the origin of `token_url` and nowhere else."""

    def __init__(
        self, source: str, limits: HttpLimits | None = None, *, token: str | None = None, token_url: str = ""
    ) -> None:
        self.source, self.limits = source, limits or HttpLimits()
        self._token, self._token_origin = token, _origin(token_url)
        self._draws = random.Random(source)
        self._idle: dict[Route, http.client.HTTPConnection] = {}
        self._busy: http.client.HTTPConnection | None = None
        self._moved: dict[str, tuple[str, float]] = {}
        self._stop = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_idle": {}, "_busy": None, "_moved": {}, "_stop": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._stop = threading.Event()

    def close(self) -> None:
        """Break off a request in another thread and drop all connections. Later requests connect again."""
        stop, self._stop = self._stop, threading.Event()
        stop.set()
        busy, idle = self._busy, list(self._idle.values())
        self._idle.clear()
        if busy is not None and busy.sock is not None:
            busy.sock.shutdown()  # pyright: ignore - a _WatchedSocket
        for connection in idle:
            connection.close()

    def get(self, url: str, limit: int, parse: Callable[[Answer], T]) -> T:
        """A whole file of at most `limit` bytes through `parse`; when that fails the answer was broken."""
        return self._insist(url, lambda: _parsed(self._follow(url, {}, limit), parse))

    def get_range(self, url: str, start: int, end: int, version: Version | None) -> tuple[bytes, Version]:
        """The bytes [start, end) of a file (fewer at its end). They are of `version`, if one is given."""
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if version is not None and version.etag and not version.etag.startswith("W/"):
            headers["If-Range"] = version.etag
        return self._insist(url, lambda: self._range(url, headers, start, end, version))

    def _insist(self, url: str, attempt: Callable[[], T]) -> T:
        """Try, and try again when that may help."""
        stop, limits = self._stop, self.limits
        for number in range(1, limits.attempts + 1):
            if stop.is_set():
                break
            try:
                return attempt()
            except _Failed as failed:
                backoff = min(limits.most_backoff_s, limits.backoff_s * 2.0 ** (number - 1))
                wait = max(failed.wait_s, backoff * (0.5 + self._draws.random() / 2))
                if not failed.again or number == limits.attempts or wait > max(SHORT_WAIT_S, backoff):
                    reason = redact_text(f"{_without_query(url)}: {failed.reason}")
                    kind = Missing if failed.missing else Unavailable
                    raise kind(self.source, reason, min(failed.wait_s, LONGEST_WAIT_S)) from failed
                stop.wait(wait)
        raise Unavailable(self.source, "closed")

    def _range(
        self, url: str, headers: dict[str, str], start: int, end: int, version: Version | None
    ) -> tuple[bytes, Version]:
        answer = self._follow(url, headers, end - start)
        if answer.status != 206:
            raise _Failed("sent the whole file in place of a part")
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
        if found is None:
            raise _Failed("a part without a readable Content-Range")
        first, last, size = (int(number) for number in found.groups())
        if (first, last + 1) != (start, min(end, size)) or len(answer.body) != last + 1 - first:
            raise _Failed(f"bytes {first}-{last} of {size} ({len(answer.body)} came) in place of {start}-{end - 1}")
        now = Version(answer.headers.get("ETag"), size)
        if version is not None and (size != version.size or version.etag not in (None, now.etag)):
            raise _Failed("the file changed while it was read")
        return answer.body, now

    # ------------------------------------------------------------------ one attempt
    def _follow(self, url: str, headers: dict[str, str], limit: int) -> Answer:
        """The answer behind all redirects."""
        at, until = self._moved.pop(url, (url, 0.0))
        if until < time.monotonic():
            at = url
        shortcut = at != url
        for _ in range(MOST_REDIRECTS + 1):
            answer = self._exchange(at, headers, limit)
            if answer.status not in (301, 302, 303, 307, 308):
                break
            at = _redirect(at, answer.headers.get("Location", ""))
        else:
            raise _Failed(f"more than {MOST_REDIRECTS} redirects", again=False)
        if shortcut and answer.status in (401, 403, 404, 410):  # a signed address has its time
            return self._follow(url, headers, limit)
        _check_status(answer, self.limits.banned_s)
        if at != url:
            if len(self._moved) >= KEPT_REDIRECTS:
                self._moved.clear()
            self._moved[url] = (at, time.monotonic() + REDIRECT_S)
        return answer

    def _exchange(self, url: str, headers: dict[str, str], limit: int) -> Answer:
        """Send one request and read the answer, over an idle connection if there is one."""
        route = Route.to(url)
        used = self._idle.pop(route, None)
        if used is not None:
            try:
                return self._send(used, route, url, headers, limit)
            except (_Failed, OSError, http.client.HTTPException) as error:
                used.close()
                if not isinstance(error, (ConnectionError, http.client.RemoteDisconnected)):
                    raise _as_failed(error) from error  # else: it was closed while it was idle
        try:
            connection = route.open(self.limits)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a proxy that is no address
            raise _as_failed(error) from error
        try:
            return self._send(connection, route, url, headers, limit)
        except (_Failed, OSError, http.client.HTTPException) as error:
            connection.close()
            raise _as_failed(error) from error

    def _send(
        self, connection: http.client.HTTPConnection, route: Route, url: str, headers: dict[str, str], limit: int
    ) -> Answer:
        stop, self._busy = self._stop, connection
        try:
            target, for_proxy = route.target(url)
            own = {"User-Agent": f"sigma-trainer/{VERSION}", "Accept-Encoding": "identity", "Accept": "*/*"}
            if self._token and _origin(url) == self._token_origin:
                own["Authorization"] = f"Bearer {self._token}"
            connection.request("GET", target, headers=own | headers | for_proxy)
            response = connection.getresponse()
            whole_for_part = "Range" in headers and response.status == 200
            body = b"" if whole_for_part else _read(response, limit if response.status < 300 else SMALL)
            if response.will_close or whole_for_part or stop.is_set():
                connection.close()
            else:
                self._idle[route] = connection
            return Answer(response.status, response.headers, body)
        finally:
            self._busy = None


def _read(response: http.client.HTTPResponse, limit: int) -> bytes:
    """The body, of at most `limit` bytes and of the length that was promised."""
    if (response.getheader("Content-Encoding") or "identity").lower() != "identity":
        raise _Failed("compressed, though that was not allowed")
    if response.length is not None and response.length > limit:
        raise _Failed(f"{response.length} bytes, more than the {limit} allowed")
    parts, size = [], 0
    while part := response.read(1 << 16):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _Failed(f"more than the {limit} bytes allowed")
    if response.length:
        raise _Failed(f"ended {response.length} bytes early")
    return b"".join(parts)


def _parsed(answer: Answer, parse: Callable[[Answer], T]) -> T:
    try:
        return parse(answer)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise _Failed(f"cannot be understood ({type(error).__name__}: {error})") from error


def _check_status(answer: Answer, banned_s: float) -> None:
    """Raise for everything but success."""
    status = answer.status
    if status in (200, 206):
        return
    wait = _retry_after(answer.headers)
    if status in AGAIN or status == 416:
        raise _Failed(f"HTTP {status}", wait_s=wait, missing=status == 416)
    if status in (401, 403):
        reason = f"HTTP {status}: not allowed, or asked too often (a token may be given in HF_TOKEN)"
        raise _Failed(reason, again=False, wait_s=max(wait, banned_s))
    raise _Failed(f"HTTP {status}", again=False, wait_s=wait, missing=status in (404, 410))


def _retry_after(headers: Message) -> float:
    """Seconds that the server asks for. A date counts from the server's own clock, if it shows it."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), LONGEST_WAIT_S)
    try:
        until = parsedate_to_datetime(text).timestamp()
        now = parsedate_to_datetime(headers["Date"]).timestamp() if headers.get("Date") else time.time()
    except (ValueError, OverflowError, TypeError):
        return 0.0
    return min(max(0.0, until - now), LONGEST_WAIT_S)


def _redirect(url: str, location: str) -> str:
    """Where a redirect leads. https never becomes http."""
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        secure = parts.scheme == "https" or (parts.scheme == "http" and urlsplit(url).scheme == "http")
        if not location or not parts.hostname or not secure or target == url or not target.isascii():
            raise _Failed("a redirect that leads nowhere", again=False)
        _ = parts.port
    except ValueError:
        raise _Failed("a redirect that leads nowhere", again=False) from None
    return target


def _as_failed(error: Exception) -> _Failed:
    """An error of a connection in words."""
    if isinstance(error, _Failed):
        return error
    if isinstance(error, ssl.SSLError):
        return _Failed(f"no trusted connection ({error.reason or error})", again=False)
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return _Failed("its address cannot be found (is there a network?)")
    return _Failed(f"{type(error).__name__}: {error}")


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _without_query(url: str) -> str:
    return url.partition("?")[0]  # signatures are secrets
