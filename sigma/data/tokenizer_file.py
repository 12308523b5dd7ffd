"""A `tokenizer.json` of another program, made one of ours: a byte-level BPE with our first ids.

Ours begins with 0 pad, 1 bos, 2 eos and the 256 bytes from 3 on; the other pieces follow in the order of their old
ids. Models here start from random weights, so no old id means anything. The file's own special tokens are dropped:
their names in a text are text. What is accepted gives every text back byte for byte; everything else is refused.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from sigma.core.errors import ConfigError
from sigma.data.tokenizer import SPECIAL_TOKENS, assemble, byte_characters

MOST_BYTES = 64 << 20
MOST_PIECES = 1 << 18

# Regular expressions are executed, and a foreign one may take forever on some text: only those of known tokenizers.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
KNOWN_PATTERNS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}",  # GPT-4, Llama 3
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}",  # Qwen 2
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|"
    rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # GPT-4o
)
KEEPS_ALL = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
SAMPLES = (
    "",
    "a",
    " a  b\n\n\tc ",
    "Ünïcödé é ﬁ ½",
    "漢字かな한국어🙂\u200d🙂",
    "\x00\x7f\u2028\uffff",
    "123,456 it's",
)


def adopt(content: str) -> str:
    """The file content of the same tokenizer as one of ours; one of ours comes back as it is.

    Raises ConfigError that says why a text would not come back from it, or what is not known here.
    """
    try:
        return _adopt(_read(content))
    except ConfigError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"not a tokenizer.json: a part of it has another form ({error})") from error


def _adopt(tree: dict[str, Any]) -> str:
    model = tree["model"]
    _check_model(model)
    if _parts(tree.get("normalizer"), "normalizers"):
        raise ConfigError("its normalizer changes the text, so the text would not come back from the tokens")
    splitter = _checked_splitter(tree.get("pre_tokenizer"))
    merges = [_pair(merge) for merge in model["merges"]]
    vocabulary = _renumbered(model["vocab"], merges, {str(token.get("content")) for token in tree["added_tokens"]})
    try:
        made = json.loads(assemble(vocabulary, merges).to_str())
        made["pre_tokenizer"] = splitter
        made["model"]["ignore_merges"] = bool(model.get("ignore_merges"))
        rust = RustTokenizer.from_str(json.dumps(made))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"its vocabulary and merges do not fit together ({error})") from error
    rust.encode_special_tokens = True
    for text in (*SAMPLES, *SPECIAL_TOKENS):
        if rust.decode(rust.encode(text, add_special_tokens=False).ids, skip_special_tokens=True) != text:
            raise ConfigError(f"the text {text!r} does not come back from its tokens")
    return rust.to_str(pretty=False)


def _read(content: str) -> dict[str, Any]:
    """The parts of the file, of the types that they should have."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not a tokenizer.json ({error})") from error
    model = tree.get("model") if isinstance(tree, dict) else None
    if not isinstance(model, dict):
        raise ConfigError("not a tokenizer.json: it has no model")
    kind = model.get("type", "BPE")
    if kind != "BPE" or not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise ConfigError(f"its model is {kind}; only byte-level BPE is known here to give every text back")
    tree["added_tokens"] = [token for token in tree.get("added_tokens") or [] if isinstance(token, dict)]
    return tree


def _check_model(model: dict[str, Any]) -> None:
    if model.get("dropout"):
        raise ConfigError("its merges are dropped at random, so the same text would not give the same tokens")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ConfigError("it marks the beginnings or ends of words in its pieces; only byte-level BPE is known here")
    if len(model["vocab"]) > MOST_PIECES:
        raise ConfigError(f"it has {len(model['vocab'])} pieces, more than {MOST_PIECES}")


def _parts(step: Any, field: str) -> list[dict[str, Any]]:
    """The steps of a sequence of sequences, in order."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [part for inner in step[field] for part in _parts(inner, field)]


def _checked_splitter(step: Any) -> Any:
    """The splitting of a text before its merges, when it keeps every character and ends with the bytes."""
    parts = _parts(step, "pretokenizers")
    if [part["type"] for part in parts].count("ByteLevel") != 1 or parts[-1]["type"] != "ByteLevel":
        raise ConfigError("it does not end with splitting into bytes; only byte-level BPE is known here")
    if parts[-1].get("add_prefix_space", True):
        raise ConfigError("it puts a space before every text, so the text would not come back from the tokens")
    for part in parts[:-1]:
        _check_split(part)
    return step


def _check_split(part: dict[str, Any]) -> None:
    if part.get("type") == "Digits":
        return
    if part.get("type") != "Split" or part.get("behavior") not in KEEPS_ALL:
        raise ConfigError(f"its step {part.get('type')} {part.get('behavior', '')} may leave out characters".rstrip())
    pattern = part.get("pattern") or {}
    if "String" not in pattern and pattern.get("Regex") not in KNOWN_PATTERNS:
        raise ConfigError(
            f"it splits by a regular expression of no known tokenizer, {str(pattern)[:80]}; a foreign one is not "
            "executed here"
        )


def _pair(merge: Any) -> tuple[str, str]:
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise ConfigError(f"{str(merge)[:40]!r} is no merge of two pieces")
    return pair[0], pair[1]


def _renumbered(old: dict[str, Any], merges: list[tuple[str, str]], added: set[str]) -> dict[str, int]:
    """Our first ids, then the other pieces in their old order, without added tokens that no merge makes."""
    alphabet = byte_characters()
    first = [*SPECIAL_TOKENS, *alphabet]
    made = {left + right for left, right in merges}
    rest = sorted(
        (piece for piece in old if piece not in added or piece in made), key=lambda piece: (old[piece], piece)
    )
    rest = [piece for piece in rest if piece not in set(first)]
    letters = set(alphabet)
    for piece in rest:
        if not piece or not letters.issuperset(piece):
            raise ConfigError(f"its piece {piece[:40]!r} is not made of bytes; only byte-level BPE is known here")
    return {piece: index for index, piece in enumerate((*first, *rest))}
