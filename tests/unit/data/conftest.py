import hashlib
import importlib.util
import json
import lzma
import sys
from pathlib import Path

import pytest

from sigma.data.corpus import Corpus, load_corpus
from sigma.data.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[3]


def script(name):
    """A module of `packaging/`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "packaging" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write_corpus(folder, training, validation):
    """A corpus folder with one natural and one code archive; the same texts in both."""
    archives = []
    for kind in ("natural", "code"):
        rows = [{"id": f"{kind}{i}#0", "text": text} for i, text in enumerate(training + validation)]
        packed = lzma.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        (folder / f"{kind}.jsonl.xz").write_bytes(packed)
        archives.append(
            {
                "name": f"tiny-{kind}",
                "kind": kind,
                "file": f"{kind}.jsonl.xz",
                "sha256": hashlib.sha256(packed).hexdigest(),
                "passages": len(training),
                "validation_passages": len(validation),
            }
        )
    (folder / "provenance.json").write_text(json.dumps({"archives": archives}))
    return folder


@pytest.fixture(scope="session")
def build():
    return script("build_corpus")


@pytest.fixture(scope="session")
def texts():
    return script("corpus_texts")


@pytest.fixture(scope="session")
def corpus():
    return load_corpus()


@pytest.fixture(scope="session")
def bpe():
    return load_tokenizer("bpe8k")


@pytest.fixture(scope="session")
def byte_tokenizer():
    return load_tokenizer("bytes")


@pytest.fixture
def tiny_corpus(tmp_path):
    texts = [f"document {i} " + "é" * i + "x" * (7 * i % 31) for i in range(9)]
    return Corpus(write_corpus(tmp_path, texts, ["held out one", "held out two, longer"]))
