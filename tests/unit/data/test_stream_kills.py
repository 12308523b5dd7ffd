"""Whatever dies, the process or the sources: the batches go on bit for bit, and no record is lost or repeated."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from sigma.data.journal import FILE_NAME
from sigma.data.outages import Limits
from sigma.data.window_source import WindowSource
from tests.unit.data.streams import (
    SIZE,
    SOON,
    NoSpam,
    go_to,
    records_of,
    remote_stream,
    snapshot,
    take,
    tallied,
    trio,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """So that little is prepared ahead, and outages are felt soon."""
    monkeypatch.setattr("sigma.data.feed.CHUNK_RECORDS", 3)


def sha(batches):
    return hashlib.sha256(json.dumps(batches).encode()).hexdigest()


@pytest.fixture
def build(tiny_corpus, byte_tokenizer, tmp_path):
    """Streams whose journals are in folders of the test; they are closed at its end."""
    made = []

    def make(folder="run", memories=None, **settings):
        (tmp_path / folder).mkdir(exist_ok=True)
        journal = tmp_path / folder / FILE_NAME
        gates = {"gate": NoSpam(), "dedup_window": 7, "length": 300, "journal": journal}
        made.append(remote_stream(tiny_corpus, byte_tokenizer, memories or trio(), **gates | settings))
        return made[-1]

    yield make
    for stream in made:
        stream.close()


def consumed(memory, n, seed=0):
    """The first n records of a memory that the gate keeps, by a source of its own."""
    source, gate, kept = WindowSource(memory, seed, size=SIZE, pause=SOON), NoSpam(), []
    while len(kept) < n:
        if source.ready(5):
            record = next(source)
            if gate.examine(record).reason is None:
                kept.append(record.id)
    source.close()
    return kept


def life(build, held, chooser, memories, known, **settings):
    """One start: some batches, checkpoints and deaths of sources among them, then the end without a word. Sources die
    behind batch `known` only: before it they have to answer as they did.
    """
    stream = build(memories=memories, **settings)
    if held is not None:
        go_to(stream, held[1])
    begin = held[0] if held is not None else 0
    seen = {}
    for number in range(begin, begin + chooser.randrange(5, 22)):
        if memories is not None and number > known and chooser.random() < 0.4:
            victim = chooser.choice(memories)
            victim.dead = not victim.dead
            time.sleep(0.02)
        seen[number] = take(stream, 1)[0]
        if chooser.random() < 0.4:
            held = (number + 1, snapshot(stream))
    stream.close()
    return seen, held


def chain(build, journal, kills, seed, **settings):
    """Kill after kill; every batch of that number must be the first one's. What was handed out at last, in order."""
    chooser, held, all_seen = random.Random(seed), None, {}
    for _ in range(kills):
        for memory in settings.get("memories") or ():
            memory.dead = False
        known = max(all_seen, default=-1) + settings["prefetch"] + 1
        seen, held = life(build, held, chooser, known=known, **settings)
        for number, batch in seen.items():
            assert all_seen.setdefault(number, batch) == batch, f"batch {number} was another one"
        with journal.open("ab") as file:
            file.write(chooser.choice([b"", b'{"kind":"batch","at":', b'{"kind":"up","at":3,"source":"re']))
    return [all_seen[number] for number in sorted(all_seen)]


@pytest.mark.parametrize("workers, prefetch", [(0, 0), (1, 2), (4, 3)])
def test_kills_and_resumes_change_no_batch(build, tmp_path, workers, prefetch):
    settings = {"memories": None, "limits": Limits(60.0, 60.0), "workers": workers, "prefetch": prefetch}
    seen = chain(build, tmp_path / "run" / FILE_NAME, 9, workers, **settings)
    assert len(seen) >= 20
    assert sha(seen) == sha(take(build("whole", limits=Limits(60.0, 60.0)), len(seen)))


@pytest.mark.parametrize("workers, prefetch", [(0, 0), (1, 2), (4, 3)])
def test_kills_with_sources_that_die_and_come_back_repeat_every_decision(build, tmp_path, workers, prefetch):
    run = tmp_path / "run" / FILE_NAME
    seen = chain(build, run, 9, workers, memories=trio(), workers=workers, prefetch=prefetch)
    kinds = Counter(json.loads(line)["kind"] for line in run.read_bytes().splitlines() if line.endswith(b"}"))
    assert kinds["down"] >= 3
    assert kinds["up"] >= 1
    assert kinds["divergence"] == 0
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay" / FILE_NAME).write_bytes(run.read_bytes())
    again = build("replay")
    assert sha(take(again, len(seen))) == sha(seen), "the journal alone, with all sources alive, gives the same batches"


def test_no_record_of_a_source_is_lost_or_repeated_by_outages_and_kills(build, tmp_path):
    memories = trio()
    seen = chain(build, tmp_path / "run" / FILE_NAME, 12, 5, memories=memories, dedup_window=0, workers=1, prefetch=2)
    for memory in trio():
        ids = records_of(seen, memory.name)
        assert len(ids) > len(memory.all()), "more than an epoch"
        assert ids == consumed(memory, len(ids))
    recalls = [int(name) for name in records_of(seen, "recall")]
    assert recalls == list(range(len(recalls)))


@pytest.mark.parametrize("workers", [0, 4])
def test_two_ranks_share_the_batches_of_one(build, workers):
    memories = trio()
    one = build("one", memories, rows=4, workers=workers)
    batches, columns = [], None
    for number in range(40):
        memories[number % 3].dead = number % 5 == 2
        batches += take(one, 1)
    columns = tallied(one)
    assert columns["data_substitutions"] > 0
    journal = one._settings.journal
    leader = build("one", rows=4, workers=workers, rank=0, world=2, journal=journal)
    mine = take(leader, 40)
    follower = build("one", rows=4, workers=1, prefetch=2, rank=1, world=2, journal=journal)
    others = take(follower, 40)
    assert [a["labels_BT"] + b["labels_BT"] for a, b in zip(mine, others, strict=True)] == [
        batch["labels_BT"] for batch in batches
    ]
    assert [a["records"] + b["records"] for a, b in zip(mine, others, strict=True)] == [b["records"] for b in batches]
    assert tallied(leader) == tallied(follower) == columns
    leader.close()


def test_a_follower_makes_no_batch_before_rank_0_has(build):
    leader = build(rows=4, rank=0, world=2)
    held = take(leader, 2)
    follower = build(rows=4, rank=1, world=2, prefetch=1)
    take(follower, 2)
    time.sleep(0.3)
    assert follower._prefetcher._ready.empty()
    held += take(leader, 2)
    assert len(take(follower, 2)) == 2


CHILD = """
import json, os, random, signal, sys, time
from pathlib import Path
from sigma.core.files import append_line, write_atomic
from sigma.data.tokenizer import load_tokenizer
from sigma.data.corpus import Corpus
from sigma.data import feed
from tests.unit.data.streams import NoSpam, go_to, remote_stream, snapshot, take, trio
from tests.unit.data.test_stream_kills import sha
feed.CHUNK_RECORDS = 3
folder, corpus, seed = Path(sys.argv[1]), Corpus(Path(sys.argv[2])), int(sys.argv[3])

def live(number):
    chooser, memories = random.Random(f"{seed} {number}"), trio()
    known = [json.loads(line)[0] for line in (folder / "batches").read_text().splitlines()] if written() else [-9]
    stream = remote_stream(corpus, load_tokenizer("bytes"), memories, gate=NoSpam(), dedup_window=7, length=300,
                           journal=folder / "data_journal.jsonl", workers=number % 3, prefetch=number % 4)
    at = 0
    if (folder / "held.json").exists():
        at, state, tensors = json.loads((folder / "held.json").read_text())
        go_to(stream, (state, bytes.fromhex(tensors)))
    while True:
        if at > max(known) + 5 and chooser.random() < 0.2:
            victim = chooser.choice(memories)
            victim.dead = not victim.dead
        append_line(folder / "batches", json.dumps([at, sha(take(stream, 1))]))
        at += 1
        if chooser.random() < 0.3:
            state, tensors = snapshot(stream)
            write_atomic(folder / "held.json", json.dumps([at, state, tensors.hex()]).encode())

def written():
    return (folder / "batches").stat().st_size if (folder / "batches").exists() else 0

draws = random.Random(seed)
for number in range(int(sys.argv[4])):
    lines = written()
    pid = os.fork()
    if pid == 0:
        try:
            live(number)
        finally:
            os._exit(1)
    until = time.monotonic() + 20
    while time.monotonic() < until and written() == lines:
        time.sleep(0.005)
    time.sleep(draws.random() * 0.4)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts children by fork")
def test_processes_that_are_killed_repeat_every_batch(build, tiny_corpus, tmp_path):
    folder, kills = tmp_path / "run", 10
    folder.mkdir()
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(str(ROOT / p) for p in ("", "kernels", "app")))
    command = [sys.executable, "-c", CHILD, str(folder), str(tiny_corpus.folder), "3", str(kills)]
    subprocess.run(command, check=True, env=environment, timeout=120)
    seen = {}
    for line in (folder / "batches").read_text().splitlines():
        number, digest = json.loads(line)
        assert seen.setdefault(number, digest) == digest
    assert sorted(seen) == list(range(len(seen)))
    assert len(seen) > 2 * kills
    again = build()
    assert [sha(take(again, 1)) for _ in range(len(seen))] == [seen[number] for number in sorted(seen)]
    assert tallied(again)["data_divergences"] == 0
    assert (folder / FILE_NAME).read_text().count('"resume"') >= kills - 1
