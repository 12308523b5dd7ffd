"""Lossless tokenizers with the same first ids: 0 pad, 1 bos, 2 eos, 3 + b for the byte b.

`bytes` has no more ids than these. `bpe8k` is byte-level BPE (Sennrich et al., 2016; Radford et al., 2019) of 8192
ids, trained from the training passages of the bundled corpus by `train_bpe`; equal texts give an equal file. Another
one comes from a `tokenizer.json` (`tokenizer_file`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from sigma.core.errors import ConfigError
from sigma.data.corpus import FOLDER, load_corpus, read_checked
from sigma.data.fast_encoding import FastEncoder, NotEqualError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, FIRST_BYTE = 0, 1, 2, 3
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>")
VOCABULARY = 8192


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (the table of GPT-2's encoder)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def assemble(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> RustTokenizer:
    """A byte-level tokenizer; a special token's name written in a text stays text."""
    tokenizer = RustTokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _first_ids() -> list[str]:
    return [*SPECIAL_TOKENS, *byte_characters()]


def train_bpe(texts: Iterable[str], vocabulary: int = VOCABULARY) -> str:
    """Train the BPE; returns the content of its JSON file. The ids of merged pieces follow the order of the merges."""
    tokenizer = assemble({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
    pieces = [*_first_ids(), *("".join(pair) for pair in merges)]
    return assemble({piece: index for index, piece in enumerate(pieces)}, merges).to_str(pretty=False)


class Tokenizer:
    """Text to ids and back. `byte_length_V[id]` is the number of UTF-8 bytes of a token, 0 for the special ones.

    `content` is the file of a tokenizer that is not bundled. `encoder` says what makes the ids: `tiktoken` where they
    are provably those of the file, else `tokenizers` and why.
    """

    def __init__(self, name: str, rust: RustTokenizer, fingerprint: str, content: str | None = None) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.content = content
        self.vocab_size = rust.get_vocab_size()
        self._rust = rust
        self._rust.encode_special_tokens = True  # not kept by serialisation, hence here
        pieces = sorted(rust.get_vocab().items(), key=lambda item: item[1])
        self.byte_length_V = np.array([0] * 3 + [len(piece) for piece, _ in pieces[3:]], dtype=np.int64)
        self._fast: FastEncoder | None = None
        self.encoder = "bytes"
        if name != "bytes":
            self._choose_encoder()

    def _choose_encoder(self) -> None:
        try:
            self._fast, self.encoder = FastEncoder(self._rust, byte_characters()), "tiktoken"
        except (NotEqualError, ImportError) as reason:  # the ids are the same without tiktoken
            self.encoder = f"tokenizers: {reason}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (load_tokenizer, (self.name,)) if self.content is None else (load_content, (self.content,))

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text` without special tokens, int32 [n]."""
        if self.name == "bytes":
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) + FIRST_BYTE
        if self._fast is not None:
            return self._fast.encode(text)
        return np.array(self._rust.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of several texts; `tokenizers` works on them in parallel over the cores."""
        if self.name == "bytes" or self._fast is not None:
            return [self.encode(text) for text in texts]
        return [
            np.array(row.ids, dtype=np.int32)
            for row in self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens vanish, bytes that are no UTF-8 become U+FFFD."""
        return self._rust.decode([int(token) for token in ids], skip_special_tokens=True)

    def as_transformers(self) -> PreTrainedTokenizerFast:
        """The same tokenizer as a transformers class, to be saved beside a model; `add_special_tokens` puts bos in
        front.
        """
        from transformers import PreTrainedTokenizerFast

        pad, bos, eos = SPECIAL_TOKENS
        rust = RustTokenizer.from_str(self._rust.to_str())
        rust.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, BOS)])  # pyright: ignore
        return PreTrainedTokenizerFast(
            tokenizer_object=rust,
            pad_token=pad,
            bos_token=bos,
            eos_token=eos,
            padding_side="left",
            split_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )


@cache
def load_tokenizer(name: Literal["bpe8k", "bytes"] | Path) -> Tokenizer:
    """A bundled tokenizer by name, or the one of a `tokenizer.json`.

    Raises DataError when the bundled file is damaged, ConfigError when another one cannot be read or used.
    """
    if isinstance(name, Path):
        return _of_file(name)
    if name == "bytes":
        return Tokenizer("bytes", assemble({piece: index for index, piece in enumerate(_first_ids())}, []), "bytes")
    row = load_corpus().provenance["tokenizer"]
    content = read_checked(FOLDER / row["file"], row["sha256"])
    return Tokenizer("bpe8k", RustTokenizer.from_str(content.decode()), row["sha256"][:16])


def _of_file(path: Path) -> Tokenizer:
    from sigma.data.tokenizer_file import MOST_BYTES, adopt

    try:
        found = path.stat()
        if not S_ISREG(found.st_mode):  # of a pipe or a device a start would wait for ever, and not hear Ctrl+C
            raise ConfigError("no regular file")
        if found.st_size > MOST_BYTES:
            raise ConfigError(f"larger than {MOST_BYTES >> 20} MB; that is no tokenizer.json")
        return load_content(adopt(path.read_bytes().decode()))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--tokenizer {path}: cannot read ({error})") from error
    except ConfigError as error:
        raise ConfigError(f"--tokenizer {path}: {error}") from None


def load_content(content: str) -> Tokenizer:
    """A tokenizer of our own form. Its name is its content, wherever the file lies."""
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Tokenizer(f"sha256:{fingerprint}", RustTokenizer.from_str(content), fingerprint, content)
