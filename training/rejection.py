"""Rejection sampling of plans: stage 1 for the decomposer (R2-Reasoner, arXiv 2506.05901).

Of a task's sampled plans the right ones are kept, and among those the one of the lowest score

    S(D) = w_c * s(conciseness(D)) + w_p * s(practicality(D)) + w_h * s(incoherence(D))

with s(x) = x / (1 + x), which is our choice: 0 stays 0, the mean of the samples becomes 1/2, and S
lies in 0..1, as the reward of stage 2 wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from r2graph.plan import Plan, references

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Weights(BaseModel):
    """w_c, w_p and w_h; they add up to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conciseness: Weight = 1 / 3
    practicality: Weight = 1 / 3
    incoherence: Weight = 1 / 3

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        if abs(self.conciseness + self.practicality + self.incoherence - 1) > 1e-6:
            raise ValueError("the weights must add up to 1")
        return self


EQUAL = Weights()


@dataclass(frozen=True)
class Sample:
    """A plan of the task, whether its answer was right, and what its steps cost in dollars."""

    plan: Plan
    right: bool
    cost: Decimal


def conciseness(sample: Sample, samples: Sequence[Sample]) -> float:
    """Number of subtasks, relative to the mean of the task's samples."""
    total = sum(len(other.plan.subtasks) for other in samples)
    return len(sample.plan.subtasks) * len(samples) / total


def practicality(sample: Sample, samples: Sequence[Sample]) -> float:
    """Cost of all subtasks, relative to the mean of the task's samples; 1 if none costs a thing."""
    total = sum(other.cost for other in samples)
    return float(sample.cost * len(samples) / total) if total else 1.0


def incoherence(plan: Plan) -> int:
    """Number of subtasks that repeat an earlier one or whose output never reaches the answer.

    The text alone tells: `(after s1)` hands nothing over. A step that needs what no earlier one
    produces is no `Plan` to begin with.
    """
    used = _used(plan)
    seen: set[str] = set()
    count = 0
    for step in plan.subtasks:
        text = " ".join(step.text.casefold().split())
        count += text in seen or step.id not in used
        seen.add(text)
    return count


def _used(plan: Plan) -> set[str]:
    """The steps whose output reaches the answer, be it through other steps: else a useless step
    would count as used by another one.
    """
    used = set(references(plan.answer)) if plan.answer else {plan.subtasks[-1].id}
    for step in reversed(plan.subtasks):
        if step.id in used:
            used.update(references(step.text))
    return used


def score(sample: Sample, samples: Sequence[Sample], weights: Weights = EQUAL) -> float:
    """S(D) in 0..1, lower is better; `samples` are all of the task's, right or wrong."""
    return (
        weights.conciseness * _scaled(conciseness(sample, samples))
        + weights.practicality * _scaled(practicality(sample, samples))
        + weights.incoherence * _scaled(incoherence(sample.plan))
    )


def _scaled(x: float) -> float:
    return x / (1 + x)


def select(
    samples: Sequence[Sample], keep_wrong: bool = False, weights: Weights = EQUAL
) -> Sample | None:
    """The right sample of the lowest score.

    Where none is right: `None`, or the best-scored wrong one if `keep_wrong`.
    """
    candidates = [sample for sample in samples if sample.right]
    if not candidates and keep_wrong:
        candidates = list(samples)
    # The plan itself breaks ties, so that the samples' order does not matter.
    return min(
        candidates,
        key=lambda sample: (score(sample, samples, weights), sample.plan.model_dump_json()),
        default=None,
    )
