"""A remote file read by ranges of a few megabytes."""

from __future__ import annotations

from sigma.data.record import Unavailable
from sigma.data.remote.client import HttpClient, Version


class RangeFile:
    """Bytes of one file. All of them belong to one version of it; `size` is None until it is known."""

    def __init__(self, client: HttpClient, url: str, size: int | None = None) -> None:
        self._client, self._url, self._pinned = client, url, size
        self._version = None if size is None else Version(None, size)

    @property
    def size(self) -> int | None:
        return None if self._version is None else self._version.size

    def read_at(self, start: int, end: int) -> bytes:
        """The bytes [start, end), fewer when the file ends before. Raises Unavailable."""
        parts, step = [], self._client.limits.range_bytes
        while start < (end if self.size is None else min(end, self.size)):
            part, version = self._range(start, min(end, start + step))
            self._version = version
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def _range(self, start: int, end: int) -> tuple[bytes, Version]:
        try:
            return self._client.get_range(self._url, start, end, self._version)
        except Unavailable:
            # Whoever comes back begins anew, and meets whichever version is then there.
            self._version = None if self._pinned is None else Version(None, self._pinned)
            raise
