"""An embedding function that needs no model, no network and no dependency: for demos and tests."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, overload

# Scripts without spaces, and attacks, make long runs; they are cut, so that no word has many pieces.
_WORD: Final = re.compile(r"\w{1,64}")

# What these words say about a text is little, but not nothing.
_STOP_WEIGHT: Final = 0.1
_STOP_TEXT: Final = """
    a about after again all also am an and any are as at be because been before being but by can could d did do does
    doing done for from get got had has have having he her here him his how i if in into is it its just ll m me more
    most my no not now of off on once one only or other our out over own re s same she should so some such t than that
    the their them then there these they this those through to too up us ve very was we were what when where which
    while who whom whose why will with would you your
"""
_STOP_WORDS: Final = frozenset(_WORD.findall(_STOP_TEXT))

# A word's character n-grams weigh so much beside it; they match compounds, names and typing errors.
_PIECES_WEIGHT: Final = 0.8
_PIECE_LENGTHS: Final = (3, 4)
_SUFFIXES: Final = (("sses", "ss"), ("edly", ""), ("ies", "y"), ("ing", ""), ("ed", ""), ("ly", ""), ("es", ""))


class LexicalEmbedder:
    """Texts as unit vectors in which texts that share words, or parts of words, are close.

    It compares letters, not meaning: it knows no synonyms, no grammar and no language but a little English. That is
    nothing for production, where a trained model belongs; but it works offline and at once, and gives a text the same
    vector on every machine and in every run.

    Words are stemmed lightly and hashed with their character n-grams into ``dimensions`` signed buckets (feature
    hashing: Weinberger et al., ICML 2009), damped when frequent in the text (``1 + log n``) or in English, and favoured
    when long, which stands in for the rarity that only a corpus could tell. Texts without words are all alike.

    It is an embedding function for every hook, for Chroma itself, and for what expects LangChain's ``Embeddings``.
    """

    def __init__(self, dimensions: int = 512) -> None:
        if dimensions < 2:
            raise ValueError(f"dimensions must be at least 2, not {dimensions!r}")
        self.dimensions = dimensions

    def __call__(self, input: Sequence[str]) -> list[list[float]]:  # noqa: A002 - the name that Chroma looks for
        return [self._embed(text) for text in input]

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        return self(texts)

    @overload
    def embed_query(self, input: str) -> list[float]: ...
    @overload
    def embed_query(self, input: list[str]) -> list[list[float]]: ...
    def embed_query(self, input: str | list[str]) -> list[float] | list[list[float]]:  # noqa: A002
        """One vector for a text, as LangChain asks, or a list of vectors for a list of texts, as Chroma does."""
        return self._embed(input) if isinstance(input, str) else self(input)

    def _embed(self, text: str) -> list[float]:
        vector = [0.0] * self.dimensions
        for word, count in Counter(_WORD.findall(text.casefold())).items():
            frequency = 1.0 + math.log(count)
            for bucket, weight in _features(word, self.dimensions):
                vector[bucket] += frequency * weight
        length = math.sqrt(math.fsum(value * value for value in vector))
        if not length:
            vector[0] = length = 1.0
        return [value / length for value in vector]

    # What follows is asked by Chroma when the function is given to a collection, which then remembers it.
    @staticmethod
    def name() -> str:
        return "memstate_lexical"

    def get_config(self) -> dict[str, Any]:
        return {"dimensions": self.dimensions}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> LexicalEmbedder:
        return LexicalEmbedder(**config)

    def is_legacy(self) -> bool:
        return False

    def default_space(self) -> str:
        return "cosine"

    def supported_spaces(self) -> list[str]:
        return ["cosine", "l2", "ip"]


@lru_cache(maxsize=65536)
def _features(word: str, dimensions: int) -> tuple[tuple[int, float], ...]:
    """The buckets of a word and of its pieces, with signed weights."""
    stem = _stem(word)
    weight = _STOP_WEIGHT if word in _STOP_WORDS else math.sqrt(min(len(word), 8))
    pieces = [f"<{stem}>"[start : start + n] for n in _PIECE_LENGTHS for start in range(len(stem) + 3 - n)]
    share = weight * _PIECES_WEIGHT / math.sqrt(len(pieces) or 1)
    weights = {stem: weight} | {f"~{piece}": share for piece in pieces}
    codes = ((zlib.crc32(feature.encode()), value) for feature, value in weights.items())
    return tuple(((code >> 1) % dimensions, value if code & 1 else -value) for code, value in codes)


def _stem(word: str) -> str:
    for suffix, replacement in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word.removesuffix(suffix) + replacement
            break
    else:
        if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
            word = word[:-1]
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "ls":
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("e") else word
