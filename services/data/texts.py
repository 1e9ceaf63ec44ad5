"""Texts as rows of counts: hashed words, or a fixed vocabulary weighted by a fixed inverse document frequency.

scikit-learn finds and counts the words; nothing is learnt here, so every machine counts the same. What follows is integers:
``count * idf`` in thousandths, the sum of their squares, then for each value one square root and one division in IEEE doubles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from services.data.recipe import TextRule

__all__ = ["MAX_COUNT", "TextCounter", "terms_of"]

MAX_COUNT: Final = 255
"""A term counts at most so often: 255 * 30,000 squared, times 2^16 terms, stays below 2^63."""


class TextCounter:
    """Rows of euclidean length 1 (0 for a text without known words), float64 (texts, width). Raises ConfigError."""

    def __init__(self, rule: TextRule) -> None:
        text = _sklearn()
        self._rule = rule
        ngrams = (rule.ngrams[0], rule.ngrams[1])
        if rule.method == "hashing":
            self._counter = text.HashingVectorizer(
                n_features=rule.size, ngram_range=ngrams, norm=None, alternate_sign=True, dtype=np.float64
            )
        else:
            self._counter = text.CountVectorizer(vocabulary=list(rule.words), ngram_range=ngrams, dtype=np.int64)

    def rows(self, texts: Sequence[str]) -> NDArray[np.float64]:
        counts = np.clip(self._counter.transform(texts).toarray().astype(np.int64), -MAX_COUNT, MAX_COUNT)
        weighted = counts * np.array(self._rule.idf_milli, dtype=np.int64) if self._rule.idf_milli else counts
        squares = (weighted * weighted).sum(axis=1)
        lengths = np.sqrt(np.maximum(squares, 1).astype(np.float64))
        return np.asarray(weighted.astype(np.float64) / lengths[:, None])


def terms_of(texts: Sequence[str], size: int, ngrams: tuple[int, int]) -> TextRule:
    """A vocabulary of the ``size`` commonest terms of these texts with their weights: a rule to publish. Raises ConfigError."""
    counter = _sklearn().TfidfVectorizer(max_features=size, ngram_range=ngrams, stop_words=None)
    try:
        counter.fit(texts)
    except ValueError as error:
        raise ConfigError(f"no vocabulary: {error}") from None
    words = counter.get_feature_names_out().tolist()
    weights = [int(np.rint(1000 * weight)) for weight in counter.idf_]
    return TextRule("tfidf", words=tuple(str(word) for word in words), idf_milli=tuple(weights), ngrams=ngrams)


def _sklearn() -> Any:
    """Here, and not on top: only who reads texts needs it."""
    try:
        from sklearn.feature_extraction import text
    except ImportError:
        raise ConfigError("reading texts needs scikit-learn: pip install 'pofl[data]'") from None
    return text
