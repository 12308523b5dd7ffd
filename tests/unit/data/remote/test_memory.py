"""All bombs together cost less than 300 MB and none of them two seconds, with the default limits."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.data.layouts import crawl_files, member, parquet, wet_record
from tests.unit.data.loopback import loopback_hub
from tests.unit.data.parquet_writer import parquet_file
from tests.unit.data.remote.warc_cases import cases
from tests.unit.data.test_malformed_parquet import BAD_FILES, BAD_GROUPS, FIRST, LAST

ROOT = Path(__file__).parents[4]


def write_local_bombs(folder):
    """What a folder of the user's may hold by accident."""
    (folder / "line.jsonl").write_bytes(b'{"text": "' + b"ab " * (34 << 20) + b'"}\n{"text": "after"}\n')
    (folder / "brackets.jsonl").write_bytes(b'{"text": [' + b"[]," * (5 << 20) + b']}\n{"text": "after"}\n')
    (folder / "deep.jsonl").write_bytes(b"[" * (1 << 20) + b'\n{"text": "after"}\n')
    (folder / "bomb.jsonl.gz").write_bytes(gzip.compress(b'{"text": "sound"}\n' + bytes(64 << 20), 1))
    (folder / "long.txt").write_bytes(b"a" * (10 << 20))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_all_bombs_stay_within_300_mb_and_two_seconds(tmp_path):
    write_local_bombs(tmp_path)
    wets = [member(wet_record("good"))]
    wets += [case.between + member(wet_record("after")) for case in cases().values()]
    groups = [parquet_file([FIRST, group, LAST]) for group in BAD_GROUPS.values()]
    files = crawl_files("CC-MAIN-2025-33", wets)
    files |= {
        f"datasets/a/bad/data/{i:03}.parquet": file for i, file in enumerate([*groups, *BAD_FILES.values()]) if file
    }
    files["datasets/a/good/data/0.parquet"] = parquet({"text": ["good"] * 100})
    with loopback_hub(0, files) as hub:
        command = [sys.executable, str(Path(__file__).with_name("memory_child.py")), hub.url, str(tmp_path)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["skipped"] >= 180
    assert found["records"] >= len(wets) + 3 * len(groups)
    assert found["growth"] < 300, found
    assert found["slowest"] < 2, "CPU seconds of a whole block"
