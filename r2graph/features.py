"""A text as numbers, by rule alone: hashed word n-grams, and what a reader sees at a glance.

Nothing is learned here and nothing downloaded, so the same text gives the same numbers anywhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import log1p
from zlib import crc32

N_BUCKETS = 2**16

_TOKEN = re.compile(r"[^\W\d_]{2,}|\d+(?:[.,]\d+)*|[-+*/^=<>$%]")
_SENTENCE = re.compile(r"(?<=[.?!])\s+")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_COUNTED = {
    name: re.compile(pattern)
    for name, pattern in {
        "decimals": r"\d\.\d",
        "round decimals": r"\d\.0+\b",
        "fractions": r"\d/\d",
        "percentages": r"\d\s?%|\bper ?cent\b",
        "money": r"[$€£¥]",
        "commas": r",",
        "lines": r"\n",
        "code": r"[{}<>=;_\\]",
        "operators": r"[-+*/^=]",
        "choices": r"^\s*\(?[A-Ea-e][.)]\s",
        "names": r"(?<=[a-z,] )[A-Z][a-z]+",
        "multiples": r"\b(?:twice|half|thirds?|times|quarters?|doubled?|tripled?|dozens?)\b",
        "comparisons": r"\b(?:than|more|less|fewer|most|least)\b",
        "rates": r"\b(?:each|every|per)\b",
        "number words": r"\b(?:one|two|three|four|five|six|seven|eight|nine|ten)\b",
        "conditions": r"\b(?:if|unless|when|until|except)\b",
        "how many": r"(?i)\bhow many\b",
        "how much": r"(?i)\bhow much\b",
        "whys": r"(?i)\b(?:why|explain|prove|show|describe|compare)\b",
    }.items()
}
TRAITS = (
    *("characters", "tokens", "sentences", "numbers", "different numbers", "largest number"),
    *("mean number", "fractional numbers", "characters asked", "numbers asked"),
    *("variety", "token length", *_COUNTED),
)


def grams(text: str) -> dict[int, float]:
    """Bucket to log(1 + count): words, pairs and triples, those of the last sentence once more."""
    tokens = _TOKEN.findall(text.lower())
    last = _TOKEN.findall(_SENTENCE.split(text.strip())[-1].lower())
    counts = Counter(
        crc32(gram.encode()) % N_BUCKETS
        for gram in (*_ngrams(tokens), *(f"? {gram}" for gram in _ngrams(last)))
    )
    return {bucket: log1p(count) for bucket, count in counts.items()}


def _ngrams(tokens: Sequence[str]) -> Iterable[str]:
    yield from tokens
    yield from map(" ".join, pairwise(tokens))
    yield from map(" ".join, zip(tokens, tokens[1:], tokens[2:], strict=False))


def traits(text: str) -> list[float]:
    """Lengths, numbers, operators and the like; `TRAITS` names them.

    Counts are left as they are: a logarithm would hide the odd text that has many.
    """
    tokens = _TOKEN.findall(text)
    sentences = _SENTENCE.split(text.strip())
    numbers = _numbers(text)
    return [
        log1p(len(text)),
        len(tokens),
        len(sentences),
        len(numbers),
        len(set(numbers)),
        log1p(max(numbers, default=0.0)),
        log1p(sum(numbers) / max(1, len(numbers))),
        sum(number % 1 != 0 for number in numbers),
        log1p(len(sentences[-1])),
        len(_numbers(sentences[-1])),
        len({token.lower() for token in tokens}) / max(1, len(tokens)),
        sum(map(len, tokens)) / max(1, len(tokens)),
        *(len(pattern.findall(text)) for pattern in _COUNTED.values()),
    ]


def _numbers(text: str) -> list[float]:
    """Up to 18 digits of each: a longer one is no quantity, and may be too large for a float."""
    return [float(found.replace(",", "")[:18]) for found in _NUMBER.findall(text)]
