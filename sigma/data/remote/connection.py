"""Connections whose every read is bounded: by a pause, by a total time, and by a smallest rate.

The common clients bound each receive alone, so a server that sends one byte a second holds them for hours. Here the
response reads through `_WatchedReader`, which knows how long the whole answer may take.
"""

from __future__ import annotations

import base64
import http.client
import io
import re
import socket
import ssl
import time
import urllib.request
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

from sigma.core.errors import ConfigError


@dataclass(frozen=True)
class HttpLimits:
    """Seconds and bytes that an exchange may take. See `client` for what happens at them."""

    connect_s: float = 10.0
    read_s: float = 15.0  # without a byte
    total_s: float = 300.0  # one answer
    least_rate: float = 8192.0  # bytes per second, after `rate_grace_s`
    rate_grace_s: float = 10.0
    attempts: int = 4
    backoff_s: float = 0.5
    most_backoff_s: float = 20.0
    range_bytes: int = 4 << 20
    banned_s: float = 900.0  # Common Crawl answers 403 to who asks too often, and goes on while they do


class TooSlowError(TimeoutError):
    """An answer took longer than it may."""


class _WatchedReader(io.RawIOBase):
    """The bytes of a socket until the time is up."""

    def __init__(self, raw: Any, sock: socket.socket, limits: HttpLimits) -> None:
        self._raw, self._socket, self._limits = raw, sock, limits
        self._start = time.monotonic()
        self._received = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        limits, elapsed = self._limits, time.monotonic() - self._start
        if elapsed >= limits.total_s:
            raise TooSlowError(f"no complete answer after {limits.total_s:g} s")
        if elapsed >= limits.rate_grace_s and self._received < limits.least_rate * elapsed:
            raise TooSlowError(f"slower than {limits.least_rate:g} bytes per second")
        self._socket.settimeout(min(limits.read_s, limits.total_s - elapsed))
        received = self._raw.readinto(buffer)
        self._received += received or 0
        return received

    def close(self) -> None:
        self._raw.close()
        super().close()


class _WatchedSocket:
    """What `http.client` needs of a socket."""

    def __init__(self, sock: socket.socket, limits: HttpLimits) -> None:
        self._socket, self._limits = sock, limits

    def makefile(self, mode: str) -> io.BufferedReader:
        raw = self._socket.makefile(mode, buffering=0)  # pyright: ignore
        return io.BufferedReader(_WatchedReader(raw, self._socket, self._limits), 1 << 16)

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(self._limits.read_s)
        self._socket.sendall(data)

    def shutdown(self) -> None:
        """Make reads in other threads end at once."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # already gone

    def close(self) -> None:
        self._socket.close()


@cache
def tls_context() -> ssl.SSLContext:
    """The certificates of the operating system (SSL_CERT_FILE and SSL_CERT_DIR are honoured).

    truststore finds them where the OpenSSL of a packaged program looks in vain.
    """
    import truststore

    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def checked_address(name: str, url: str) -> str:
    """The address of a server without a slash at its end. Raises ConfigError, which says where it was given."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or re.search(r"[^!-~]", url):
        raise ConfigError(f"{name}={url}: is no address of a server; write it like https://example.org")
    return url.rstrip("/")


@dataclass(frozen=True)
class Route:
    """Where a connection leads: the server, and the proxy on the way (its URL, or None)."""

    scheme: str
    host: str
    port: int
    proxy: str | None

    @classmethod
    def to(cls, url: str) -> Route:
        """The way to a URL, by `http_proxy`, `https_proxy`, `no_proxy` or the system's settings."""
        parts = urlsplit(url)
        scheme, host = parts.scheme, parts.hostname or ""
        port = parts.port or {"http": 80, "https": 443}[scheme]
        proxies = urllib.request.getproxies()
        proxy = proxies.get(scheme) or proxies.get("all")
        if proxy and urllib.request.proxy_bypass(f"{host}:{port}"):
            proxy = None
        return cls(scheme, host, port, proxy)

    def _proxy_parts(self) -> tuple[str, int, dict[str, str]]:
        """Host, port and credentials of the proxy."""
        assert self.proxy is not None
        parts = urlsplit(self.proxy if "://" in self.proxy else f"http://{self.proxy}")
        if parts.scheme != "http" or not parts.hostname:
            raise OSError(f"proxies with {parts.scheme}:// are not supported, only http://")
        headers = {}
        if parts.username:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Proxy-Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        return parts.hostname, parts.port or 80, headers

    def open(self, limits: HttpLimits) -> http.client.HTTPConnection:
        """Connect. Raises OSError (ssl.SSLError, socket.gaierror among them) and http.client.HTTPException."""
        host, port = (self.host, self.port) if self.proxy is None else self._proxy_parts()[:2]
        if self.scheme == "https":
            connection = http.client.HTTPSConnection(host, port, timeout=limits.connect_s, context=tls_context())
            if self.proxy is not None:
                connection.set_tunnel(self.host, self.port, self._proxy_parts()[2])
        else:
            connection = http.client.HTTPConnection(host, port, timeout=limits.connect_s)
        try:
            connection.connect()
        except (OSError, http.client.HTTPException):  # a socket that is open but not yet encrypted, for one
            connection.close()
            raise
        connection.sock = _WatchedSocket(connection.sock, limits)  # pyright: ignore
        return connection

    def target(self, url: str) -> tuple[str, dict[str, str]]:
        """What the request line asks for, and headers for the proxy."""
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if self.proxy is None or self.scheme == "https":
            return path, {}
        return f"http://{parts.netloc}{path}", self._proxy_parts()[2]
