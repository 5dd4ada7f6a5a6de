"""Why an answer is wrong, by rule, from what is known of the steps of the last plan.

plan            no plan that can be run; or a step that no right plan has; or every step is right,
                and what the plan makes of them is not
verification    the first wrong step: a check rejected a right output, or accepted the wrong one
allocation      the first wrong step: a stronger member gets this very step right, as it did for
                some method of the evaluation
execution       the first wrong step: no stronger member is known to get it right; or no model
                could be reached
limit           a limit of calls, time or money ended the run
unknown         right outputs of steps are known of the lab's benchmarks alone; or it is on record
                without detail

They are asked in the order of the plan's steps, and of a step in this order. Of a method that gives
the whole query to a model the query is the only step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal

from r2graph.evaluation.outcomes import Outcome, Tried

Cause = Literal["plan", "allocation", "execution", "verification", "limit", "unknown"]
CAUSES: tuple[Cause, ...] = Cause.__args__  # type: ignore[attr-defined]
LIMITS = ("calls", "budget", "pool_budget", "deadline")


class Causes:
    """Judges wrong answers by what all `outcomes` show; `members` are in order of capability."""

    def __init__(self, outcomes: Iterable[Outcome], members: Sequence[str]) -> None:
        self._rank = {member: rank for rank, member in enumerate(members)}
        self._able: dict[tuple[str, str], int] = {}
        for o in outcomes:
            for tried in o.detail.tried if o.detail else ():
                if tried.went == "right" and tried.member in self._rank:
                    task = o.benchmark, tried.task
                    self._able[task] = max(self._able.get(task, 0), self._rank[tried.member])

    def of(self, outcome: Outcome) -> Cause:
        """Of an outcome that is wrong."""
        detail = outcome.detail
        if detail is None:
            return "unknown"
        if detail.stop == "plan":
            return "plan"
        if detail.stop == "unreachable":
            return "execution"
        if detail.stop in LIMITS:
            return "limit"
        for _, group in groupby(detail.tried, key=lambda tried: tried.step):
            attempts = list(group)
            match attempts[-1].went:
                case "wrong":
                    return self._wrong(outcome.benchmark, attempts)
                case "unplanned":
                    return "plan"
                case "unknown":
                    return "unknown"
                case "right":
                    pass
        return "plan"

    def _wrong(self, benchmark: str, attempts: Sequence[Tried]) -> Cause:
        last = attempts[-1]
        if last.ok or any(tried.went == "right" for tried in attempts):
            return "verification"
        able = self._able.get((benchmark, last.task), -1)
        return "allocation" if able > self._rank.get(last.member, -1) else "execution"
