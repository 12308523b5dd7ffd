"""A server on this machine with the addresses of the hub and of Common Crawl, and faults by a seeded plan.

    with loopback_hub(documents=60, plan=Plan.seeded(7, rate=0.3)) as hub:
        ...HF_ENDPOINT = hub.url...
        hub.plan = Plan(["503", None, "reset"])   # the next three answers
        hub.die(); hub.revive()                   # connection refused; back at the same address

Files are served with ranges and ETags, the hub's behind the redirect that it really has.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.unit.data.layouts import everything

SHA = "0123456789abcdef0123456789abcdef01234567"
STATUS = ("403", "404", "408", "416", "429", "500", "502", "503", "504")
BROKEN = (
    "short",  # the connection ends before the promised length
    "length",  # a length that belongs to less than was asked for
    "range",  # other bytes than were asked for
    "whole",  # 200 with everything
    "etag",  # another version of the file
    "size",  # another total size
    "reset",  # RST after some bytes
    "empty",  # the connection ends without an answer
    "garbage",  # not HTTP
    "headers",  # headers without end
    "gzip",  # content that says it is gzip and is not
    "loop",  # a redirect to itself
    "endless",  # a body without length that does not end
    "nolength",  # a body that ends with the connection, after half of it
)
OF_FILES = ("range", "whole", "etag", "size")  # what only a file has; a list answers 502 in their place
SLOW = ("slow", "slow-header", "hang", "hang-body")
ALL = (*STATUS, "503+date", *BROKEN, *SLOW)  # and "429+1": come back in a second


class Plan:
    """Which fault an answer has: the next of a list, then none; or, seeded, a draw for each request number."""

    def __init__(self, faults: Iterable[str | None] = (), only: str = "") -> None:
        self._faults, self._only = list(faults), re.compile(only)
        self._number = 0
        self._lock = threading.Lock()
        self.given: Counter[str] = Counter()

    @classmethod
    def seeded(cls, seed: int, rate: float, kinds: Iterable[str] = (*STATUS, *BROKEN), only: str = "") -> Plan:
        plan = cls(only=only)
        kinds = tuple(kinds)

        def draw(number: int) -> str | None:
            draws = random.Random(f"{seed} {number}")
            return draws.choice(kinds) if draws.random() < rate else None

        plan._draw = draw
        return plan

    def _draw(self, number: int) -> str | None:
        return self._faults[number] if number < len(self._faults) else None

    def fault(self, path: str) -> str | None:
        """The fault of the answer to the next request, which asks for `path`."""
        if not self._only.search(path):
            return None
        with self._lock:
            fault = self._draw(self._number)
            self._number += 1
            if fault:
                self.given[fault] += 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    hub: Loopback

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class Loopback:
    """The server; `store` maps a path to its bytes, `requests` lists what was asked for."""

    def __init__(self, store: Mapping[str, bytes], plan: Plan | None, page: int, rate: float | None) -> None:
        self.store, self.plan, self.page, self.rate = dict(store), plan or Plan(), page, rate
        self.requests: list[tuple[str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.over = threading.Event()
        self._open: set[socket.socket] = set()
        self._server: _Server | None = None
        self._port = 0
        self.revive()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def revive(self) -> None:
        """Listen again at the same address."""
        self.over.clear()
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.hub = self
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def die(self) -> None:
        """Refuse connections and break off those that are open."""
        if self._server is None:
            return
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        for connection in list(self._open):
            _reset(connection)

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()


def loopback_hub(
    documents: int = 60,
    files: Mapping[str, bytes] | None = None,
    plan: Plan | None = None,
    *,
    row_group: int = 20,
    characters: int = 3000,
    page: int = 1000,
    rate: float | None = None,
) -> Loopback:
    """A running server. `documents` of each source in three files each; `files` (path -> bytes) are added or replace
    them; `page` is the number of entries in one page of a tree, `rate` bytes per second if answers are to be slow.
    """
    store = everything(documents, row_group=row_group, characters=characters) if documents else {}
    return Loopback({**store, **(files or {})}, plan, page, rate)


def _reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    except OSError:
        return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True  # or every answer waits 40 ms between its headers and its body
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.hub._open.add(self.connection)

    def finish(self) -> None:
        self.server.hub._open.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path).lstrip("/")
        hub.requests.append((path, self.headers.get("Range")))
        hub.headers.append(dict(self.headers))
        fault = hub.plan.fault(path)
        if fault and _before_answer(self, fault):
            return
        if match := re.fullmatch(r"api/datasets/([^/]+/[^/]+)/revision/(\w+)", path):
            self._revision(match[1], match[2], fault)
        elif match := re.fullmatch(r"api/datasets/([^/]+/[^/]+)/tree/(\w+)/?(.*)", path):
            self._tree(match[1], match[2], match[3], fault)
        elif match := re.fullmatch(r"datasets/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
            self._resolve(f"datasets/{match[1]}/{match[3]}", match[2])
        else:
            self._file(path.removeprefix("cdn/"), fault)

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        rate = self.server.hub.rate
        for start in range(0, len(body), 65536):
            self.wfile.write(body[start : start + 65536])
            if rate:
                time.sleep(65536 / rate)

    def _revision(self, repo: str, revision: str, fault: str | None) -> None:
        known = any(path.startswith(f"datasets/{repo}/") for path in self.server.hub.store)
        if not known or revision not in ("main", SHA):
            self.answer(404, b'{"error":"Repository not found"}')
        else:
            self._body(json.dumps({"id": repo, "sha": SHA}).encode(), fault)

    def _tree(self, repo: str, revision: str, folder: str, fault: str | None) -> None:
        """The files below a folder, in pages that a Link header joins."""
        hub, head = self.server.hub, f"datasets/{repo}/"
        paths = sorted(path.removeprefix(head) for path in hub.store if path.startswith(head + folder))
        if not paths or revision not in ("main", SHA):
            self.answer(404, b'{"error":"Entry not found"}')
            return
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        rows = []
        for path in paths[start : start + hub.page]:
            content = hub.store[head + path]
            oid = hashlib.sha256(content).hexdigest()
            row = {"type": "file", "oid": oid[:40], "size": len(content), "path": path}
            rows.append(row | {"lfs": {"oid": oid, "size": len(content), "pointerSize": 135}})
        headers = {}
        if start + hub.page < len(paths):
            url = f"{hub.url}/api/datasets/{repo}/tree/{revision}/{folder}?recursive=true&cursor={start + hub.page}"
            headers["Link"] = f'<{url}>; rel="next"'
        self._body(json.dumps(rows).encode(), fault, headers)

    def _resolve(self, path: str, revision: str) -> None:
        if path not in self.server.hub.store or revision not in ("main", SHA):
            self.answer(404, b"Entry not found")
        else:
            self.answer(302, b"Found", {"Location": f"/cdn/{quote(path)}?Expires=1&Signature=x"})

    def _file(self, path: str, fault: str | None) -> None:
        content = self.server.hub.store.get(path)
        if content is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        etag = '"' + hashlib.md5(content).hexdigest() + '"'
        wanted, same = self.headers.get("Range"), self.headers.get("If-Range")
        if fault == "whole" or not wanted or same not in (None, etag):
            self._body(content, fault, {"ETag": etag})
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        start, end = (int(match[1]), min(int(match[2]) + 1, len(content))) if match else (0, 0)
        if start >= end:
            self.answer(416, headers={"Content-Range": f"bytes */{len(content)}"})
            return
        shift, total = (start + 1 if fault == "range" else start), len(content) + 7 * (fault == "size")
        headers = {
            "ETag": '"other"' if fault == "etag" else etag,
            "Content-Range": f"bytes {shift}-{shift + end - start - 1}/{total}",
        }
        self._body(content[start:end], fault, headers, 206)

    def _body(
        self, body: bytes, fault: str | None, headers: Mapping[str, str] | None = None, status: int = 200
    ) -> None:
        """An answer with the fault in its body, or without one."""
        headers = dict(headers or {})
        if fault in ("short", "nolength", "endless", "reset", "hang-body", "slow"):
            self.close_connection = True
            length = {} if fault in ("nolength", "endless") else {"Content-Length": str(len(body))}
            self.send_response(status)
            for name, value in (length | headers | {"Connection": "close"}).items():
                self.send_header(name, value)
            self.end_headers()
            _broken_body(self, body, fault)
        elif fault == "length":
            self.answer(status, body[: len(body) // 2], headers)
        elif fault == "gzip":
            self.answer(status, body, headers | {"Content-Encoding": "gzip"})
        elif fault in OF_FILES and "ETag" not in headers:
            self.answer(502)
        else:
            self.answer(status, body, headers)


def _before_answer(handler: _Handler, fault: str) -> bool:
    """Faults that need no content; whether the request is over."""
    hub = handler.server.hub
    if fault[:3].isdigit():
        after = {"1": "1", "date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() - 86400))}
        extra = fault.partition("+")[2]
        handler.answer(int(fault[:3]), b"fault", {"Retry-After": after[extra]} if extra else {})
    elif fault == "loop":
        handler.answer(302, b"", {"Location": handler.path})
    elif fault == "empty":
        handler.close_connection = True
    elif fault == "garbage":
        handler.wfile.write(b"\x00\xff SSH-2.0 nonsense\r\n\r\n")
        handler.close_connection = True
    elif fault == "hang":
        hub.over.wait(30)
        handler.close_connection = True
    elif fault in ("headers", "slow-header"):
        handler.close_connection = True
        _drip(handler, b"HTTP/1.1 200 OK\r\n" + b"X-Padding: 0123456789\r\n" * 20000, 0.05 * (fault == "slow-header"))
    else:
        return False
    return True


def _broken_body(handler: _Handler, body: bytes, fault: str) -> None:
    half = body[: len(body) // 2]
    if fault == "endless":
        while not handler.server.hub.over.is_set():
            handler.wfile.write(b"\0" * 65536)
    elif fault == "slow":
        _drip(handler, body, 0.05)
    elif fault == "hang-body":
        handler.wfile.write(half)
        handler.server.hub.over.wait(30)
    else:
        handler.wfile.write(half)
        if fault == "reset":
            _reset(handler.connection)


def _drip(handler: _Handler, content: bytes, pause: float) -> None:
    """Send a few bytes at a time."""
    step = 3 if pause else 4096
    for start in range(0, len(content), step):
        handler.wfile.write(content[start : start + step])
        if pause and handler.server.hub.over.wait(pause):
            return
