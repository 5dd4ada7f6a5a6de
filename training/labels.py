"""Allocator labels: for each quality level q the smallest slot whose estimated chance of success
reaches tau(q).

The allocator cannot see an outcome before it chooses, so a label must not either: the chance is
estimated from the outcomes of *other* tasks (leave one task out), of the same prompt where there
are any, else of prompts of the same shape.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from r2graph.lab.task import Task
from training.outcomes import MODELS, Outcomes

# tau(q) for q = 1 … 10.
TAU = (0.5, 0.6, 0.7, 0.78, 0.84, 0.88, 0.92, 0.95, 0.97, 0.985)
PRIOR_WEIGHT = (
    0.5  # of the shape, in outcomes; greedy outcomes of a prompt repeat, so few outweigh it
)


def shape(text: str) -> str:
    """The text with names and digits blanked: `country of @`, `## * #`."""
    masked = re.sub(r"\d", "#", text)
    words = masked.split(" ")
    if words[0] in {"country", "capital", "currency", "continent", "domain", "phone", "same"}:
        return " ".join(w for w in words if w.islower() and not w.startswith("."))
    return masked


class Chances:
    """Estimated chance that each slot answers a prompt rightly, from a matrix of outcomes."""

    def __init__(self, tasks: Sequence[Task], outcomes: Outcomes) -> None:
        self._right: dict[str, np.ndarray] = {}
        self._seen: dict[str, int] = defaultdict(int)
        totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(MODELS)))
        counts: dict[str, int] = defaultdict(int)
        for task in tasks:
            for (_, prompt, output), subtask in zip(task.steps(), task.plan.subtasks, strict=True):
                if prompt not in self._right:
                    said = [outcomes.get(model, prompt).text for model in MODELS]
                    self._right[prompt] = np.array(
                        [text.split() == output.split() for text in said]
                    )
                self._seen[prompt] += 1
                for key in {shape(prompt), shape(subtask.text)}:
                    totals[key] += self._right[prompt]
                    counts[key] += 1
        self._shapes = {key: totals[key] / counts[key] for key in totals}

    def of(self, prompt: str) -> np.ndarray:
        """Chances of slots 1 to 9 for a prompt, as other tasks tell them; made monotone in the
        slot.
        """
        prior = self._shapes[shape(prompt)]
        others = self._seen.get(prompt, 1) - 1  # leave this task out
        if others > 0:
            right = self._right[prompt]
            estimate = (others * right + PRIOR_WEIGHT * prior) / (others + PRIOR_WEIGHT)
        else:
            estimate = prior
        return np.maximum.accumulate(estimate)

    def label(self, prompt: str, q: int) -> int:
        """The smallest slot whose chance reaches tau(q); the likeliest one if none does."""
        chances = self.of(prompt)
        enough = np.flatnonzero(chances >= TAU[q - 1])
        return int(enough[0]) + 1 if len(enough) else int(np.argmax(chances)) + 1
