"""Allocator labels: for each quality level the slot on which a step had best start, given that it
moves up from there while its check fails.

A start is judged by what the deployed graph would do with it: the expected cost of all attempts,
and the chance that what is accepted in the end is wrong, which weighs more the higher the level.
The allocator cannot see an outcome before it chooses, so a label must not either: a prompt that was
asked once counts as all prompts of its shape do, and only one that was asked again, as it may be
once more, by its own outcomes. (Its own is among those of its shape, of which there are many.)
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from r2graph.allocate import QUALITY_LEVELS
from r2graph.lab.task import Task
from training.outcomes import MODELS, Outcomes

# By quality level 1 to 10: below which mean log-probability a step moves up, until
# training/threshold.py has settled it for the trained allocator ...
CHECK = (-0.2, -0.15, -0.12, -0.1, -0.08, -0.07, -0.06, -0.05, -0.03, -0.01)
# ... and how many steps on the strongest model a wrong step is worth: from .15 to 80.
WRONG = [0.15 * (80 / 0.15) ** (q / (QUALITY_LEVELS - 1)) for q in range(QUALITY_LEVELS)]
# Of the shape, in outcomes; greedy outcomes of a prompt repeat, so few outweigh it.
PRIOR_WEIGHT = 0.5


def shape(text: str) -> str:
    """The text without names, digits blanked: `country of`, `## * #`."""
    masked = re.sub(r"\d", "#", text)
    words = masked.split(" ")
    if words[0] in {"country", "capital", "currency", "continent", "domain", "phone", "same"}:
        return " ".join(w for w in words if w.islower() and not w.startswith("."))
    return masked


class Labels:
    """The best start of any step, from recorded outcomes; `prices` are dollars a token, by slot."""

    def __init__(self, tasks: Sequence[Task], outcomes: Outcomes, prices: Sequence[float]) -> None:
        # Every step twice: as it is asked, and as its plan has it before references are filled in.
        steps = [
            (prompt, subtask.text, output)
            for task in tasks
            for subtask, (_, prompt, output) in zip(task.plan.subtasks, task.steps(), strict=True)
        ]
        self._times = Counter(prompt for prompt, _, _ in steps)
        right = {prompt: output.split() for prompt, _, output in steps}
        self._row = {prompt: row for row, prompt in enumerate(right)}
        said = [[outcomes.get(model, prompt) for model in MODELS] for prompt in right]
        self._costs = np.array([[o.tokens for o in row] for row in said]) * np.array(prices)
        self._right = np.array([[o.text.split() == right[o.prompt] for o in row] for row in said])
        self._logprobs = np.array([[math.log(o.confidence) for o in row] for row in said])
        self._shapes: dict[str, list[int]] = {}
        for prompt, text, _ in steps:
            for key in {shape(prompt), shape(text)}:
                self._shapes.setdefault(key, []).append(self._row[prompt])
        self._losses = [self._loss(level) for level in range(QUALITY_LEVELS)]

    def label(self, text: str, q: int) -> int:
        """The slot to start on at quality level `q`: the one of the least expected loss."""
        losses = self._losses[q - 1]
        prior = losses[self._shapes[shape(text)]].mean(0)
        others = self._times[text] - 1
        if others > 0:
            own = losses[self._row[text]]
            prior = (others * own + PRIOR_WEIGHT * prior) / (others + PRIOR_WEIGHT)
        return int(np.argmin(prior)) + 1

    def _loss(self, level: int) -> np.ndarray:
        """Dollars, prompts x slots: what a start costs with all moves up, wrong ends priced in."""
        unit = self._costs[:, -1].mean() * WRONG[level]
        accepted = self._logprobs >= CHECK[level]
        loss = np.empty_like(self._costs)
        loss[:, -1] = self._costs[:, -1] + unit * ~self._right[:, -1]
        for slot in reversed(range(len(MODELS) - 1)):
            end = np.where(accepted[:, slot], unit * ~self._right[:, slot], loss[:, slot + 1])
            loss[:, slot] = self._costs[:, slot] + end
        return loss
