"""A list of files that is found once, at the first start, and kept from then on."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from sigma.data.record import DataError, FileRef
from sigma.data.remote.client import HttpClient

Opened = TypeVar("Opened")  # what a collection keeps of the file that it reads


class PinnedFiles(ABC, Generic[Opened]):
    """The part of a Collection that all remote ones share. The pin is where the list came from, and its hash."""

    name: str

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._pin: dict[str, Any] | None = None
        self._files: list[FileRef] | None = None
        self._open: tuple[int, Opened] | None = None

    @abstractmethod
    def _find(self, pin: dict[str, Any] | None) -> tuple[dict[str, Any], list[FileRef]]:
        """Where the files are (the newest, or as in `pin`), and which. Raises Unavailable, DataError."""

    @property
    def pin(self) -> str | None:
        return None if self._pin is None else json.dumps(self._pin, sort_keys=True)

    def pin_to(self, pin: str) -> None:
        self._pin, self._files, self._open = json.loads(pin), None, None

    def close(self) -> None:
        self._client.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def files(self) -> Sequence[FileRef]:
        if self._files is None:
            origin, files = self._find(self._pin)
            listing = "\n".join(file.path if file.size is None else f"{file.path} {file.size}" for file in files)
            pin = origin | {"files": hashlib.sha256(listing.encode()).hexdigest()[:16]}
            if self._pin not in (None, pin):
                raise DataError(f"{self.name}: {json.dumps(origin)} no longer has the files of this run.")
            self._pin, self._files = pin, files
        return self._files
