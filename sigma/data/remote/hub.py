"""Parquet files of a data set on the Hugging Face hub, pinned to a revision.

The hub's public API is used directly: api/datasets/<repo>/revision/<name>, .../tree/<sha>/<folder>, and
datasets/<repo>/resolve/<sha>/<path>, which redirects to where the bytes are. The environment may set HF_ENDPOINT (a
mirror) and HF_TOKEN (sent to the endpoint only).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin

from sigma.core.errors import ConfigError
from sigma.data.limits import RecordLimits
from sigma.data.parquet import ParquetTexts, ScoreFilter
from sigma.data.record import Block, DataError, FileRef
from sigma.data.remote.client import Answer, HttpClient
from sigma.data.remote.connection import HttpLimits, checked_address
from sigma.data.remote.pinned import PinnedFiles
from sigma.data.remote.ranges import RangeFile

ENDPOINT = "https://huggingface.co"
PAGE_BYTES = 2 << 20
MOST_PAGES = 200


@dataclass(frozen=True)
class DataSet:
    """A folder of parquet files in a repository of the hub."""

    repository: str
    folder: str


def fineweb(config: str, *, scored: bool) -> DataSet:
    """FineWeb-Edu when its scores are wanted, else FineWeb; `sample-10BT` and the like, or a crawl `CC-MAIN-...`."""
    folder = config.replace("sample-", "sample/", 1) if config.startswith("sample-") else f"data/{config}"
    return DataSet("HuggingFaceFW/fineweb-edu" if scored else "HuggingFaceFW/fineweb", folder)


def cosmopedia(config: str) -> DataSet:
    """`cosmopedia-v2` stands in smollm-corpus, all other parts in the first Cosmopedia."""
    if config == "cosmopedia-v2":
        return DataSet("HuggingFaceTB/smollm-corpus", config)
    return DataSet("HuggingFaceTB/cosmopedia", f"data/{config}")


class HubDataSet(PinnedFiles[ParquetTexts]):
    """A collection of the rows of a DataSet. The newest revision is taken at the first start and kept from then on."""

    def __init__(
        self,
        name: str,
        data_set: DataSet,
        *,
        least_score: float = 0.0,
        endpoint: str | None = None,
        limits: RecordLimits = RecordLimits(),  # noqa: B008 - frozen
        http: HttpLimits | None = None,
    ) -> None:
        self.name, self._data_set, self._limits = name, data_set, limits
        self._filter = ScoreFilter("score", least_score) if least_score > 0 else None
        self._endpoint = checked_address("HF_ENDPOINT", endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT)
        token = os.environ.get("HF_TOKEN", "").strip() or None
        if token and re.search(r"[^!-~]", token):
            raise ConfigError("HF_TOKEN holds characters that no token has; set it again, or not at all.")
        super().__init__(HttpClient(name, http, token=token, token_url=self._endpoint))

    @property
    def fingerprint(self) -> str:
        return f"{self._data_set.repository}/{self._data_set.folder} {self._filter}"

    def _find(self, pin: dict[str, Any] | None) -> tuple[dict[str, Any], list[FileRef]]:
        revision = pin["revision"] if pin else self._newest()
        files = self._tree(revision)
        if not files:
            raise DataError(
                f"{self.name}: {self._data_set.repository} has no parquet file in {self._data_set.folder}; "
                "is the name of the configuration right?"
            )
        return {"revision": revision}, files

    def read(self, file: int, position: int) -> Block:
        if self._open is None or self._open[0] != file:
            self._open = None
            self._open = (file, self._texts(self.files()[file]))
        return self._open[1].read(position)

    def _texts(self, file: FileRef) -> ParquetTexts:
        revision = self._pin["revision"] if self._pin else "main"
        url = f"{self._endpoint}/datasets/{self._data_set.repository}/resolve/{revision}/{quote(file.path)}"
        assert file.size is not None
        access = RangeFile(self._client, url, file.size)
        return ParquetTexts(access.read_at, file.size, self.name, file.path, self._filter, self._limits)

    def _api(self, what: str) -> str:
        return f"{self._endpoint}/api/datasets/{self._data_set.repository}/{what}"

    def _newest(self) -> str:
        """The commit that `main` stands on."""

        def sha(answer: Answer) -> str:
            found = json.loads(answer.body)["sha"]
            if not re.fullmatch(r"[0-9a-f]{40}", found):
                raise ValueError("no commit id")
            return found

        return self._client.get(self._api("revision/main"), PAGE_BYTES, sha)

    def _tree(self, revision: str) -> list[FileRef]:
        """The parquet files of the folder, page after page."""
        url: str | None = self._api(f"tree/{revision}/{quote(self._data_set.folder)}?recursive=true")
        files: list[FileRef] = []
        for _ in range(MOST_PAGES):
            rows, url = self._client.get(url, PAGE_BYTES, _page)
            files += rows
            if url is None:
                return sorted(files, key=lambda file: file.path)
            url = urljoin(self._endpoint, url)
        raise DataError(f"{self.name}: the list of files has more than {MOST_PAGES} pages.")


def _page(answer: Answer) -> tuple[list[FileRef], str | None]:
    """The parquet files of one page of a tree, and where the next page is."""
    rows = json.loads(answer.body)
    files = []
    for row in rows:
        if row["type"] == "file" and row["path"].endswith(".parquet"):
            size = int((row.get("lfs") or row)["size"])
            if size < 0 or ".." in row["path"]:
                raise ValueError("an impossible entry")
            files.append(FileRef(row["path"], size))
    following = re.search(r'<([^>]+)>\s*;\s*rel="next"', answer.headers.get("Link") or "")
    return files, following[1] if following else None
