"""Streams over collections in memory that can die and come back, and what a checkpoint holds of a stream."""

import json
import random
from collections import Counter
from dataclasses import asdict

import torch
from safetensors.torch import load, save

from sigma.data.background import Pause
from sigma.data.corpus import CorpusSource
from sigma.data.feed import Feed
from sigma.data.generators import GeneratorSource
from sigma.data.mixture import Group
from sigma.data.outages import Limits
from sigma.data.quality.duplicates import signature
from sigma.data.quality.gate import Verdict
from sigma.data.quality.words import Words
from sigma.data.record import Block, Damaged, FileRef, Record, Unavailable
from sigma.data.stream import BatchStream
from sigma.data.stream_settings import StreamSettings
from sigma.data.window import WindowSize
from sigma.data.window_source import WindowSource

SOON = Pause(first_s=0.005, most_s=0.01)
SIZE = WindowSize(records=9, blocks=3)
QUICK = Limits(deadline_s=0.3, resume_s=20.0)


def plain(batch):
    return {key: value.tolist() if torch.is_tensor(value) else value for key, value in asdict(batch).items()}


def take(stream, n):
    return [plain(stream.next_batch()) for _ in range(n)]


def snapshot(stream):
    """What a checkpoint holds: the JSON item and the file of tensors."""
    return json.dumps(stream.state_dict()), save(stream.tensors())


def go_to(stream, held):
    stream.load_tensors(load(held[1]))
    stream.load_state_dict(json.loads(held[0]))
    return stream


class Memory:
    """A collection: files of blocks of records. Dead, it raises Unavailable; `rotten` blocks are damaged."""

    def __init__(self, name, files=4, blocks=3, per_block=4):
        self.name = self.fingerprint = name
        self.sizes = (files, blocks, per_block)
        self.pin = None
        self.dead = False
        self.rotten = set()
        self.reads = 0

    def pin_to(self, pin):
        self.pin = pin

    def files(self):
        if self.dead:
            raise Unavailable(self.name, "no route")
        self.pin = "pinned"
        return [FileRef(f"f{i}") for i in range(self.sizes[0])]

    def read(self, file, position):
        self.reads += 1
        if self.dead:
            raise Unavailable(self.name, "no route")
        after = position + 1 if position + 1 < self.sizes[1] else None
        if (file, position) in self.rotten:
            raise Damaged(f"f{file}", position, "rotten", after)
        return Block([self.record(file, position, i) for i in range(self.sizes[2])], after)

    def record(self, file, position, i):
        name = f"f{file}#{position}.{i}"
        draws = random.Random(f"{self.name} {name}")
        kind = draws.choice(["spam ", "", "", "", "twin "])
        text = kind + (f"number {draws.randrange(3)}" if kind == "twin " else name * draws.randrange(1, 9))
        return Record(self.name, name, text)

    def all(self):
        files, blocks, records = self.sizes
        return [self.record(f, b, i) for f in range(files) for b in range(blocks) for i in range(records)]

    def close(self):
        pass


class NoSpam:
    """A gate; equal texts have equal signatures."""

    fingerprint = "no spam"

    def examine(self, record):
        if record.text.startswith("spam"):
            return Verdict("spam")
        return Verdict(None, signature(record.source, record.id, Words(record.text + " and so on to the end"), 4096))


def local_groups(corpus, tokenizer, seed, natural=0.7):
    return [
        Group(natural, (Feed(CorpusSource("natural", corpus, seed), tokenizer),)),
        Group(0.2, (Feed(CorpusSource("code", corpus, seed), tokenizer),)),
        Group(0.1, (Feed(GeneratorSource("recall", seed), tokenizer),)),
    ]


def remote_stream(corpus, tokenizer, memories, *, gate=None, seed=0, shares=(0.5, 0.3, 0.2), **settings):
    """Natural text from remote sources with the bundled corpus as standby, and the local groups."""
    natural, *others = local_groups(corpus, tokenizer, seed)
    feeds = tuple(Feed(WindowSource(memory, seed, size=SIZE, pause=SOON), tokenizer, gate) for memory in memories)
    group = Group(natural.share, feeds, shares[: len(feeds)], standby=natural.feeds[0])
    defaults = {"rows": 2, "length": 40, "limits": QUICK}
    return BatchStream([group, *others], tokenizer, StreamSettings(**defaults | settings), identity=str(seed))


def trio():
    return [Memory("red"), Memory("green", 3, 2, 5), Memory("blue", 2, 4, 3)]


def records_of(batches, source):
    """Ids of the records of one source that end in these batches, in order."""
    return [name for batch in batches for origin, name in batch["records"] if origin == source]


def tallied(stream):
    return Counter({key: value for key, value in stream.columns().items() if value})
