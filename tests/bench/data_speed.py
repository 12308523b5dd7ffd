"""Tokenised throughput of hybrid data from a server on this machine, every gate on, and what each stage costs.

    PYTHONPATH=.:kernels:app taskset -c 0,1 python tests/bench/data_speed.py [--seconds 20] [--documents 2000]

Prints: each stage alone (tokens per second of one thread that does nothing else), the whole stream with 0, 1, 2 and 4
workers, and `datasets` streaming the same files through a batched map with the same tokenizer and no gate.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sigma.config.data import DataSection
from sigma.data.backends import build_stream
from sigma.data.packing import BatchBuilder, document_ids
from sigma.data.quality.duplicates import Duplicates
from sigma.data.quality.gate import build_gate, bundled_hashes
from sigma.data.record import Record
from sigma.data.sources import SourceName, text_source
from sigma.data.tokenizer import Tokenizer, load_tokenizer
from tests.unit.data.layouts import CRAWLS, FINEWEB, SMOLLM, everything

ROWS, LENGTH, SEED = 32, 1024, 1
NAMES: tuple[SourceName, ...] = ("fineweb", "cosmopedia", "commoncrawl")
DATA = DataSection(
    data_backend="hybrid",
    seq_len=LENGTH,
    fineweb_min_score=0.0,
    code_ratio=0.0,
    synthetic_ratio=0.0,
    bootstrap_seed_batches=0,
    source_read_timeout_sec=60.0,
    contamination_file="bundled",
)


def serve(documents: int, address: Any) -> None:
    """The loopback server, in a process of its own as a real one would be."""
    from tests.unit.data.loopback import Loopback

    with Loopback(everything(documents), None, 1000, None) as server:
        address.send((server.url, sorted(server.store)))
        address.recv()


def timed(what: str, tokens: Callable[[], int]) -> float:
    """Run it, print its speed, return tokens per second."""
    began = time.perf_counter()
    count = tokens()
    seconds = time.perf_counter() - began
    print(f"{what:42s} {count / seconds / 1e6:7.3f} M tokens/s  ({1e9 * seconds / count:7.1f} ns a token)", flush=True)
    return count / seconds


# ------------------------------------------------------------------ stages
def read(name: SourceName, count: int) -> list[Record]:
    source, records = text_source(name, DATA, SEED), []
    while len(records) < count:
        if source.ready(30):
            records.append(next(source))
    source.close()
    return records


def stages(tokenizer: Tokenizer, count: int) -> None:
    """Each stage alone on the same records. A stage's speed is the tokens of all records over its time."""
    read_s, records = {}, []
    for name in NAMES:
        began = time.perf_counter()
        records += read(name, count)
        read_s[name] = time.perf_counter() - began
    texts = [record.text for record in records]
    ids = tokenizer.encode_batch(texts)
    sizes = [len(row) for row in ids]
    total = sum(sizes)
    for i, name in enumerate(NAMES):
        part = sum(sizes[i * count : (i + 1) * count])
        print(f"{'read ' + name:42s} {part / read_s[name] / 1e6:7.3f} M tokens/s")
    gate = build_gate(DATA)
    gate.examine(records[0])
    for i, name in enumerate(NAMES):
        some = records[i * count : (i + 1) * count]
        part = sum(sizes[i * count : (i + 1) * count])
        timed(f"gate {name}, one thread", lambda some=some, part=part: len([gate.examine(r) for r in some]) and part)
    timed("tokenise one by one", lambda: sum(len(tokenizer.encode(text)) for text in texts))
    chunks = [texts[i : i + 64] for i in range(0, len(texts), 64)]
    timed(
        "tokenise in batches of 64", lambda: sum(len(row) for chunk in chunks for row in tokenizer.encode_batch(chunk))
    )
    signatures, duplicates = [gate.examine(record).signature for record in records], Duplicates(65536)
    timed("near-duplicates", lambda: len([duplicates.seen(signature) for signature in signatures]) and total)
    timed("pack", lambda: pack([document_ids(row) for row in ids], tokenizer))


def pack(documents: list[Any], tokenizer: Tokenizer) -> int:
    builder, tokens = BatchBuilder(ROWS, LENGTH), 0
    for ids in documents:
        offset = 0
        while offset < len(ids) - 1:
            offset = builder.add(ids, offset)
            if not builder.room:
                tokens += builder.finish(tokenizer.byte_length_V).tokens
                builder = BatchBuilder(ROWS, LENGTH)
    return tokens


# ------------------------------------------------------------------ the whole
def report(what: str, tokens: int, spent: float, cpu: float) -> None:
    """Speed by the clock, and what the processor time would allow on two idle cores."""
    allowed = f"{cpu / spent:.2f} cores got, {1e9 * cpu / tokens:.0f} ns of processor time a token"
    print(f"{what:42s} {tokens / spent / 1e6:7.3f} M tokens/s  ({allowed})", flush=True)


def hybrid(tokenizer: Tokenizer, workers: int, seconds: float) -> None:
    with TemporaryDirectory() as folder:
        data = replace(DATA, num_workers=workers)
        stream = build_stream(data, SEED, tokenizer, ROWS, run_dir=Path(folder))
        for _ in range(4):
            stream.next_batch()
        began, tokens = time.perf_counter(), 0
        cpu = time.process_time()
        while time.perf_counter() - began < seconds:
            tokens += stream.next_batch().tokens
        spent, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(f"  {stream.columns()}")
        stream.close()
    report(f"hybrid, every gate on, {workers} workers", tokens, spent, cpu)


def wet_texts(urls: list[str]) -> Iterator[dict[str, str]]:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    for url in urls:
        with urllib.request.urlopen(url) as answer:
            file = io.BytesIO(answer.read())  # it wants to seek
            for record in ArchiveIterator(file, record_types=WarcRecordType.conversion):
                yield {"text": record.reader.read().decode()}


def peer(tokenizer: Tokenizer, url: str, store: list[str], seconds: float) -> None:
    """`datasets`: the three sources interleaved, tokenised in a batched map."""
    import datasets

    datasets.disable_progress_bars()
    url = url.replace("127.0.0.1", "localhost")  # else it would be taken for the hub, which HF_ENDPOINT names

    def parquet(folder: str) -> Any:
        files = [f"{url}/cdn/{path}" for path in store if path.startswith(folder)]
        rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        return rows.select_columns(["text"])  # pyright: ignore

    wets = [f"{url}/{path}" for path in store if path.startswith(f"crawl-data/{CRAWLS[0]}") and "wet.paths" not in path]
    crawl = datasets.IterableDataset.from_generator(wet_texts, gen_kwargs={"urls": wets})
    parts = [parquet(f"datasets/{FINEWEB}/"), parquet(f"datasets/{SMOLLM}/"), crawl.repeat(None)]
    mixed = datasets.interleave_datasets(
        [parts[0].repeat(None), parts[1].repeat(None), parts[2]], probabilities=[0.21, 0.09, 0.7], seed=SEED
    )
    rows = mixed.map(
        lambda batch: {"ids": [row.ids for row in tokenizer._rust.encode_batch_fast(batch["text"])]},
        batched=True,
        batch_size=1000,
        remove_columns=["text"],
    )
    began, cpu, tokens = time.perf_counter(), time.process_time(), 0
    for row in rows:
        tokens += len(row["ids"])
        if time.perf_counter() - began > seconds:
            break
    report("datasets, streaming, batched map, no gate", tokens, time.perf_counter() - began, time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2, 4])
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(options.documents, theirs), daemon=True)
    server.start()
    url, paths = ours.recv()
    os.environ["HF_ENDPOINT"] = os.environ["COMMONCRAWL_ENDPOINT"] = url
    tokenizer = load_tokenizer("bpe8k")
    print(
        f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, held-out hashes {len(bundled_hashes())}"
    )
    stages(tokenizer, min(options.documents, 1500))
    for workers in options.workers:
        hybrid(tokenizer, workers, options.seconds)
    peer(tokenizer, url, paths, options.seconds)
    ours.send("end")


if __name__ == "__main__":
    main()
