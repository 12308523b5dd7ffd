"""Small files in the layouts of the hub's data sets and of Common Crawl, made from the bundled corpus."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import uuid
from functools import cache

from sigma.data.corpus import load_corpus

EDU, FINEWEB = "HuggingFaceFW/fineweb-edu", "HuggingFaceFW/fineweb"
SMOLLM, COSMOPEDIA = "HuggingFaceTB/smollm-corpus", "HuggingFaceTB/cosmopedia"
CRAWLS = ("CC-MAIN-2025-33", "CC-MAIN-2025-30")


@cache
def _english() -> str:
    return "\n\n".join(record.text for record in load_corpus().records("natural", validation=False))


def english(count: int, first: int = 0, characters: int = 3000) -> list[str]:
    """Different passages of real text, of about `characters` each. 9,000 exist before they repeat."""
    text = _english()
    starts = [(first + i) * characters % (len(text) - 2 * characters) for i in range(count)]
    return [text[start : start + characters - 97 * (start // characters % 11)] for start in starts]


def parquet(columns: dict[str, list], *, row_group: int = 20, **options) -> bytes:
    """A parquet file; compressed with snappy, like the hub's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=row_group, **options)
    return out.getvalue()


def fineweb_columns(texts: list[str], *, edu: bool) -> dict[str, list]:
    """The columns of FineWeb, with the scores of FineWeb-Edu (3.00, 3.25 ... 4.75 in turn) if wanted."""
    ids = [f"<urn:uuid:{uuid.UUID(bytes=hashlib.md5(text.encode()).digest())}>" for text in texts]
    columns: dict[str, list] = {
        "text": texts,
        "id": ids,
        "dump": ["CC-MAIN-2025-30"] * len(texts),
        "url": [f"https://example.org/{i}" for i in range(len(texts))],
        "file_path": ["s3://commoncrawl/x.warc.gz"] * len(texts),
        "language": ["en"] * len(texts),
        "language_score": [0.95] * len(texts),
        "token_count": [len(text) // 4 for text in texts],
    }
    if edu:
        columns["score"] = [3 + i % 8 / 4 for i in range(len(texts))]
        columns["int_score"] = [round(score) for score in columns["score"]]
    return columns


def cosmopedia_columns(texts: list[str]) -> dict[str, list]:
    same = {"prompt": "Write.", "token_length": 700, "audience": "general", "format": "blogpost", "seed_data": "web"}
    return {"text": texts} | {name: [value] * len(texts) for name, value in same.items()}


def wet_record(text: str | bytes, number: int = 0, *, length: str | None = None, kind: str = "conversion") -> bytes:
    """One record of a WET file, not compressed; `length` lies in its Content-Length."""
    body = text.encode() if isinstance(text, str) else text
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: https://example.org/{number}\r\n"
        f"WARC-Date: 2025-07-08T05:04:24Z\r\nWARC-Record-ID: <urn:uuid:{uuid.UUID(int=number)}>\r\n"
        f"WARC-Block-Digest: sha1:3I42H3S6NNFQ2MSVX7XZKYAYSCX5QBYJ\r\nWARC-Identified-Content-Language: eng\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def member(content: bytes) -> bytes:
    """A gzip member, as of a crawl's writer: no name, no time."""
    return gzip.compress(content, 6, mtime=0)


def wet(texts: list[str], first: int = 0) -> bytes:
    """A WET file: a member with its description, then a member per record."""
    info = b"Software-Info: ia-web-commons\r\nPublisher: Common Crawl\r\n"
    return member(wet_record(info, kind="warcinfo")) + b"".join(
        member(wet_record(text, first + i)) for i, text in enumerate(texts, 1)
    )


def crawl_files(crawl: str, wets: list[bytes]) -> dict[str, bytes]:
    """The files of a crawl under their real paths, with its list."""
    folder = f"crawl-data/{crawl}/segments/1751905933612.63/wet"
    stamp = crawl.replace("CC-MAIN-", "").replace("-", "") + "07183638"
    paths = [f"{folder}/CC-MAIN-{stamp}-20250707213638-{i:05}.warc.wet.gz" for i in range(len(wets))]
    listing = gzip.compress("".join(path + "\n" for path in paths).encode(), mtime=0)
    return {f"crawl-data/{crawl}/wet.paths.gz": listing, **dict(zip(paths, wets, strict=True))}


@cache
def everything(documents: int = 60, files: int = 3, row_group: int = 20, characters: int = 3000) -> dict[str, bytes]:
    """All sources, each of `documents` different documents in `files` files, keyed by path on the server."""
    store: dict[str, bytes] = {}
    size = -(-documents // files)

    def texts(source: int, i: int) -> list[str]:
        count = min(size, documents - i * size)
        return english(count, source * documents + i * size, characters)

    for i in range(files):
        name, of = f"{i:03}_00000.parquet", f"train-{i:05}-of-{files:05}.parquet"
        for source, (repo, edu) in enumerate([(EDU, True), (FINEWEB, False)]):
            columns = fineweb_columns(texts(source, i), edu=edu)
            store[f"datasets/{repo}/sample/10BT/{name}"] = parquet(columns, row_group=row_group)
        for source, folder in enumerate([f"{SMOLLM}/cosmopedia-v2", f"{COSMOPEDIA}/data/web_samples_v2"], 2):
            store[f"datasets/{folder}/{of}"] = parquet(cosmopedia_columns(texts(source, i)), row_group=row_group)
    for source, crawl in enumerate(CRAWLS, 4):
        store |= crawl_files(crawl, [wet(texts(source, i), i * size) for i in range(files)])
    store["collinfo.json"] = json.dumps([{"id": crawl, "name": crawl} for crawl in CRAWLS]).encode()
    return store
