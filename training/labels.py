"""Allocator labels: for each quality level the slot on which a step had best start, given that it
moves up from there while its check fails, and whether to trust it instead.

A choice is judged by what the deployed graph would do with it: the expected cost of all attempts,
and the chance that what is accepted in the end is wrong, which weighs more the higher the level.
The allocator cannot see an outcome before it chooses, so a label must not either: a prompt that was
asked once counts as all prompts of its shape do, and only one that was asked again, as it may be
once more, by its own outcomes. (Its own is among those of its shape, of which there are many.) The
facts of geo are few enough to be learned by heart: each counts by its own outcomes, but for the
share that even a good memory gets wrong.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from r2graph.allocate import QUALITY_LEVELS
from r2graph.lab.task import Task
from training.outcomes import MODELS, Outcomes

# By quality level 1 to 10: below which mean log-probability a step moves up, until
# training/threshold.py has settled it for the trained allocator ...
CHECK = (-0.2, -0.15, -0.15, -0.1, -0.1, -0.07, -0.05, -0.04, -0.02, -0.005)
# ... and how many steps on the strongest model a wrong step is worth: from .15 to 80.
WRONG = [0.15 * (80 / 0.15) ** (q / (QUALITY_LEVELS - 1)) for q in range(QUALITY_LEVELS)]
# Of the shape, in outcomes; greedy outcomes of a prompt repeat, so few outweigh it.
PRIOR_WEIGHT = 0.5
FORGOTTEN = 0.01  # of the facts, by the trained allocator
TRUST = 1  # the level of the check where the allocator knows better than the check
WORTH = 0.05  # a smaller gain is not worth the token that says so

Choice = tuple[int, int | None]
"""A slot, and the level of the check if it is not the run's."""


def shape(text: str) -> str:
    """The text without names, digits blanked: `country of`, `## * #`."""
    masked = re.sub(r"\d", "#", text)
    words = masked.split(" ")
    if words[0] in {"country", "capital", "currency", "continent", "domain", "phone", "same"}:
        return " ".join(w for w in words if w.islower() and not w.startswith("."))
    return masked


class Labels:
    """The best choice for any step, from recorded outcomes; `prices` are dollars a token, by slot.

    `facts` are the prompts that can be learned by heart, `checks` the thresholds by level.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        outcomes: Outcomes,
        prices: Sequence[float],
        facts: Collection[str] = (),
        checks: Sequence[float] = CHECK,
    ) -> None:
        self._checks = checks
        # Every step twice: as it is asked, and as its plan has it before references are filled in.
        steps = [
            (prompt, subtask.text, output)
            for task in tasks
            for subtask, (_, prompt, output) in zip(task.plan.subtasks, task.steps(), strict=True)
        ]
        self._times = Counter(prompt for prompt, _, _ in steps)
        self._facts = frozenset(facts)
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
        self._losses: dict[tuple[int, int], np.ndarray] = {}
        self._priors: dict[tuple[str, int, int], np.ndarray] = {}

    def label(self, text: str, q: int) -> Choice:
        """What to choose at quality level `q`: the slot, and the check, of least expected loss."""
        checked, trusted = self.losses(text, q)
        worth = trusted.min() < (1 - WORTH) * checked.min()
        return int(np.argmin(trusted if worth else checked)) + 1, TRUST if worth else None

    def knows(self, text: str) -> bool:
        """Whether outcomes of such a step are known."""
        return shape(text) in self._shapes

    def losses(self, text: str, q: int) -> np.ndarray:
        """The expected loss of each choice in dollars: 2 x slots, checked at `q` and trusted.

        Raises `KeyError` for a shape of step that no task has.
        """
        return np.stack([self._expected(text, q, check) for check in (q, TRUST)])

    def _expected(self, text: str, q: int, check: int) -> np.ndarray:
        """The loss of each start, as far as it can be known."""
        losses, key = self._loss(q, check), (shape(text), q, check)
        if key not in self._priors:
            self._priors[key] = losses[self._shapes[key[0]]].mean(0)
        prior = self._priors[key]
        others = self._times[text] - 1
        if text in self._facts:
            own = 1 - FORGOTTEN
        elif others > 0:
            own = others / (others + PRIOR_WEIGHT)
        else:
            return prior
        return own * losses[self._row[text]] + (1 - own) * prior

    def _loss(self, q: int, check: int) -> np.ndarray:
        """Dollars, prompts x slots: what a start costs with all moves up, wrong ends priced in."""
        if (q, check) in self._losses:
            return self._losses[q, check]
        unit = self._costs[:, -1].mean() * WRONG[q - 1]
        accepted = self._logprobs >= self._checks[check - 1]
        loss = np.empty_like(self._costs)
        loss[:, -1] = self._costs[:, -1] + unit * ~self._right[:, -1]
        for slot in reversed(range(len(MODELS) - 1)):
            end = np.where(accepted[:, slot], unit * ~self._right[:, slot], loss[:, slot + 1])
            loss[:, slot] = self._costs[:, slot] + end
        self._losses[q, check] = loss
        return loss
