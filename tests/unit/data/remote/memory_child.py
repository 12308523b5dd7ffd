"""Read every malformed file in a process of its own: `python memory_child.py URL FOLDER` prints what it cost."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

from sigma.data.local import LocalFiles
from sigma.data.record import Block, Damaged
from sigma.data.remote.common_crawl import CommonCrawl
from sigma.data.remote.hub import DataSet, HubDataSet


def status(name):
    """A value of /proc/self/status in MB."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[name].split()[0]) / 1024


def read_all(collection, kept, files=None):
    """Read the files to their ends; the CPU seconds of the slowest block."""
    slowest = 0.0
    for file in range(len(collection.files()) if files is None else files):
        position = 0
        while position is not None:
            start = time.process_time()
            try:
                block = collection.read(file, position)
            except Damaged as damage:
                block = Block([], damage.resume, Counter(damaged=1))
            slowest = max(slowest, time.process_time() - start)
            kept["records"] += len(block.records)
            kept["skipped"] += block.skipped.total()
            position = block.next
    return slowest


def main(url, folder):
    collections = [
        CommonCrawl(seed=1, crawls=["CC-MAIN-2025-33"], data_url=url, index_url=url),
        HubDataSet("fineweb", DataSet("a/bad", "data"), endpoint=url),
        LocalFiles(Path(folder)),
    ]
    read_all(HubDataSet("fineweb", DataSet("a/good", "data"), endpoint=url), Counter())  # loads the libraries
    read_all(collections[0], Counter(), files=1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, kept = status("VmRSS"), Counter()
    slowest = max(read_all(collection, kept) for collection in collections)
    print(json.dumps({"growth": status("VmHWM") - before, "slowest": slowest, **kept}))


if __name__ == "__main__":
    main(*sys.argv[1:])
