"""The language of a text, by py3langid (Lui and Baldwin, 2012; BSD licence, the model is part of the package)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

SAMPLE = 256  # characters from the middle, where a web page has its text and not its menu
UNKNOWN = "und"
LEAST_CONFIDENCE = 0.2  # under it nobody knows
# English of some length holds most of these, other languages hardly any; then the model (ten times slower) rests.
ENGLISH = (
    " the ", " and ", " of ", " to ", " is ", " that ", " with ", " for ", " this ", " from ", " have ", " which ",
)  # fmt: skip
ENGLISH_SAMPLE, ENGLISH_WORDS = 2048, 7


@cache
def _identifier() -> LanguageIdentifier:
    """The model, read once per process: about half a second and 110 MB."""
    from py3langid.langid import MODEL_FILE
    from py3langid.langid import LanguageIdentifier as Identifier

    stored = Identifier.from_model_file(MODEL_FILE)
    weights = stored.nb_ptc.astype(np.float32)  # half as much time as with the stored float16
    parts = (stored.nb_pc, stored.nb_classes, stored.tk_nextmove, stored.tk_output)
    return Identifier(weights, *parts, norm_probs=True, min_confidence=LEAST_CONFIDENCE, tk_row=stored.tk_row)


def language_of(text: str) -> str:
    """ISO 639 code of the text's language, `und` when that is not clear."""
    middle = _middle(text, ENGLISH_SAMPLE)
    if sum(word in middle for word in ENGLISH) >= ENGLISH_WORDS:
        return "en"
    return _identifier().classify(_middle(middle, SAMPLE))[0]


def _middle(text: str, characters: int) -> str:
    start = max(0, (len(text) - characters) // 2)
    return text[start : start + characters]


def known_languages() -> frozenset[str]:
    """Every code that `language_of` can give, without `und`."""
    return frozenset(_identifier().labels)
