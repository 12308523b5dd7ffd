"""Common Crawl's extracted text (WET): the lists of a few crawls, and gzip members by ranges of their files.

Over HTTPS no account is needed. 403 means that too much was asked for; the client then waits long.
Layout: https://commoncrawl.org/get-started (collinfo.json, crawl-data/<crawl>/wet.paths.gz).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from typing import Any

from sigma.core.errors import ConfigError
from sigma.data.corpus import keyed_order
from sigma.data.limits import RecordLimits, decoded
from sigma.data.record import Block, Damaged, FileRef, Record, Unavailable
from sigma.data.remote.client import Answer, HttpClient
from sigma.data.remote.connection import HttpLimits, checked_address
from sigma.data.remote.pinned import PinnedFiles
from sigma.data.remote.ranges import RangeFile
from sigma.data.remote.warc import SlowError, frames, parse_record, read_member

DATA_URL = "https://data.commoncrawl.org"
INDEX_URL = "https://index.commoncrawl.org"
INDEX_BYTES = 2 << 20
LIST_BYTES = 4 << 20  # packed; real lists have up to 1 MB
LIST_UNPACKED = 32 << 20
SUSPECT = ("broken gzip", "cut off")  # may be bytes that were lost on the way: they are asked for again
KEPT_PLACES = 8
EXAMPLE = "CC-MAIN-2025-33,CC-MAIN-2025-30"


class CommonCrawl(PinnedFiles[RangeFile]):
    """WET files of the `latest` crawls, or of those named in `crawls`; `paths_per_crawl` of each, drawn by `seed`."""

    name = "commoncrawl"

    def __init__(
        self,
        *,
        seed: int,
        crawls: Sequence[str] = (),
        latest: int = 2,
        paths_per_crawl: int = 256,
        data_url: str = DATA_URL,
        index_url: str = INDEX_URL,
        limits: RecordLimits = RecordLimits(),  # noqa: B008 - frozen
        http: HttpLimits | None = None,
    ) -> None:
        self._seed, self._wanted, self._latest, self._count = seed, tuple(crawls), latest, paths_per_crawl
        self._data_url, self._index_url = (
            checked_address("COMMONCRAWL_ENDPOINT", url) for url in (data_url, index_url)
        )
        if wrong := [crawl for crawl in crawls if not re.fullmatch(r"CC-MAIN-\d{4}-\d{2}", crawl)]:
            raise ConfigError(f"--commoncrawl-crawls: {wrong[0]!r} is no crawl; write latest or names like {EXAMPLE}")
        self._limits = limits
        super().__init__(HttpClient(self.name, http))

    @property
    def fingerprint(self) -> str:
        return f"{self.name} {','.join(self._wanted) or self._latest} {self._count} {self._client.limits.range_bytes}"

    def _find(self, pin: dict[str, Any] | None) -> tuple[dict[str, Any], list[FileRef]]:
        crawls = pin["crawls"] if pin else list(self._wanted) or self._newest()
        return {"crawls": crawls}, [FileRef(path) for crawl in crawls for path in self._paths(crawl)]

    def _newest(self) -> list[str]:
        """The ids of the newest crawls."""

        def ids(answer: Answer) -> list[str]:
            rows = json.loads(answer.body)
            names = sorted({str(row["id"]) for row in rows if str(row["id"]).startswith("CC-MAIN-")}, reverse=True)
            if not names:
                raise ValueError("no crawl in the list")
            return names

        return self._client.get(f"{self._index_url}/collinfo.json", INDEX_BYTES, ids)[: self._latest]

    def _paths(self, crawl: str) -> list[str]:
        """The chosen paths of a crawl."""
        url = f"{self._data_url}/crawl-data/{crawl}/wet.paths.gz"
        paths = self._client.get(url, LIST_BYTES, lambda answer: _unpacked_paths(answer.body))
        order = keyed_order(len(paths), f"paths {crawl} {self._seed}")[: self._count]
        return [paths[i] for i in sorted(order)]

    def read(self, file: int, position: int) -> Block:
        path = self.files()[file].path
        if self._open is None or self._open[0] != file:
            self._open = (file, RangeFile(self._client, f"{self._data_url}/{path}"))
        source = self._open[1]
        step = self._client.limits.range_bytes
        data = source.read_at(position, position + step)
        while True:
            assert source.size is not None
            last = position + len(data) >= source.size
            block, used = self._block(path, position, data, last)
            if used or last:
                break
            data += source.read_at(position + len(data), position + len(data) + step)  # a member larger than a range
        if any(block.skipped[reason] for reason in SUSPECT) and source.read_at(position, position + len(data)) != data:
            raise Unavailable(self.name, f"{path}: two answers for the same bytes differ")
        block.next = None if last and used == len(data) else position + used
        return block

    def _block(self, path: str, position: int, data: bytes, last: bool) -> tuple[Block, int]:
        """The records of the members that end in `data`, and how many bytes those are."""
        block, at, view = Block([], None), 0, memoryview(data)
        while at < len(data):
            try:
                member = read_member(view, at, last, self._limits)
            except SlowError:
                if at:
                    return block, at
                reason = f"a record that takes more than {self._limits.seconds:g} s"
                raise Damaged(path, position, reason, position + 1) from None
            if member is None:
                return block, at
            if member.reason:
                _skip(block, member.reason, path, position + at)
            else:
                self._add(block, path, position + at, member.content)
            at = member.end
        return block, at

    def _add(self, block: Block, path: str, offset: int, content: bytes) -> None:
        """Add the text records of a member."""
        name = path.rpartition("/")[2]
        for number, frame in enumerate(frames(content, self._limits)):
            found = None if frame is None else parse_record(frame)
            if found is None:
                _skip(block, "broken record", path, offset)
                continue
            kind, body = found
            if kind != "conversion":
                continue  # the description at the beginning of a file
            text, reason = decoded(body, self._limits)
            if text is None:
                _skip(block, reason, path, offset)
            else:
                block.records.append(Record(self.name, f"{name}:{offset}" + (f".{number}" if number else ""), text))


def _skip(block: Block, reason: str, path: str, offset: int) -> None:
    block.skipped[reason] += 1
    if len(block.places) < KEPT_PLACES:
        block.places.append(f"{path}, byte {offset}: {reason}")


def _unpacked_paths(packed: bytes) -> list[str]:
    """The lines of wet.paths.gz. Raises ValueError."""
    inflate = zlib.decompressobj(31)
    try:
        text = inflate.decompress(packed, LIST_UNPACKED).decode("ascii")
    except (zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"no list of paths: {error}") from error
    paths = text.split()
    good = [path for path in paths if path.startswith("crawl-data/") and path.endswith(".warc.wet.gz")]
    if not inflate.eof or not paths or len(good) != len(paths) or any(".." in path for path in paths):
        raise ValueError("no list of WET files")
    return paths
