"""A question of a benchmark, and what free text gives as the answer to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256

from pydantic import JsonValue


@dataclass(frozen=True)
class Question:
    """What a model is asked, and what its grader compares the answer with."""

    benchmark: str
    id: str
    """Unique within the benchmark, and the same in every copy of its data."""
    query: str
    """With the choices, if there are any, and the form that the answer should have."""
    gold: JsonValue


def text_id(text: str) -> str:
    """The id of a question that has none."""
    return sha256(text.encode()).hexdigest()[:16]


_LINE = re.compile(r"^[^\w\n]*(?:final +)?answer[^\w\n]*?:\s*(\S.*)", re.I | re.M)
_WITHIN = re.compile(r"\banswer(?: is:?|:)\s*(\S.*)", re.I)


def stated(text: str) -> str | None:
    """What the last line `answer: …` says, else the last `answer: …` or `answer is …` in a line."""
    found = _LINE.findall(text) or _WITHIN.findall(text)
    return plain(found[-1]) if found else None


def plain(text: str) -> str:
    """Without Markdown and the full stop around it."""
    return text.strip("*`_ \t\r\n").removesuffix(".").rstrip("*`_ ")
