"""Recorded outcomes as a table: which models were asked what, how well they did, what it cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from r2graph.errors import ConfigError

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
FOLDS = 5
RESAMPLES = 1_000  # for intervals


@dataclass(frozen=True)
class Replay:
    """Texts x models, cheapest model first."""

    texts: tuple[str, ...]
    questions: tuple[str, ...]
    """What each text belongs to: itself, or the query of which it is a step."""
    tasks: tuple[str, ...]
    """The kind of each text, such as its benchmark."""
    models: tuple[str, ...]
    scores: Floats
    """0 to 1; nan where the model was not asked."""
    costs: Floats
    """Dollars, or any other unit; nan where unknown."""

    def __post_init__(self) -> None:
        shape = (len(self.texts), len(self.models))
        if not self.texts:
            raise ConfigError("there are no recorded outcomes in it")
        if len(self.questions) != len(self.texts) or len(self.tasks) != len(self.texts):
            raise ConfigError("recorded outcomes need a question and a task for each text")
        if self.scores.shape != shape or self.costs.shape != shape:
            raise ConfigError(f"recorded outcomes of {shape} need scores and costs of that shape")
        known = self.scores[~np.isnan(self.scores)]
        if ((known < 0) | (known > 1)).any() or (self.costs < 0).any():
            raise ConfigError("scores are 0 to 1, and costs not negative")

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, rows: Sequence[int] | Rows) -> Replay:
        """Some of the texts."""
        texts, questions, tasks = (
            tuple(column[row] for row in rows)
            for column in (self.texts, self.questions, self.tasks)
        )
        return replace(
            self,
            texts=texts,
            questions=questions,
            tasks=tasks,
            scores=self.scores[rows],
            costs=self.costs[rows],
        )

    def merged(self) -> tuple[Replay, Rows]:
        """Texts that are alike as one row of their mean outcomes, and the first row of each."""
        keys = [key(text) or text for text in self.texts]
        _, first, which = np.unique(keys, return_index=True, return_inverse=True)

        def means(values: Floats) -> Floats:
            known = ~np.isnan(values)
            sums, counts = (np.zeros((len(first), values.shape[1])) for _ in range(2))
            np.add.at(sums, which, np.where(known, values, 0))
            np.add.at(counts, which, known)
            return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)

        return replace(self.rows(first), scores=means(self.scores), costs=means(self.costs)), first

    def folds(self, n: int, seed: int) -> Iterator[tuple[Rows, Rows]]:
        """`n` pairs of training and test rows; a question is never on both sides of a pair."""
        keys, member = np.unique([key(each) for each in self.questions], return_inverse=True)
        if len(keys) < n:
            raise ConfigError(f"{n} folds need as many questions, and there are {len(keys)}")
        fold = (np.random.default_rng(seed).permutation(len(keys)) % n)[member]
        for at in range(n):
            yield np.flatnonzero(fold != at), np.flatnonzero(fold == at)

    @property
    def sha256(self) -> str:
        """Of all that is in it."""
        digest = sha256(repr((self.texts, self.questions, self.tasks, self.models)).encode())
        digest.update(self.scores.tobytes() + self.costs.tobytes())
        return digest.hexdigest()


def key(question: str) -> str:
    """A question's words: what differs in case, spacing and punctuation alone is the same one."""
    return " ".join(re.findall(r"\w+", question.lower()))
