"""Grouped search (R2-Reasoner, stage 1): the cheapest allocation of a plan that is still right,
found by executing it.

1. Difficulty of each subtask by a reference model's confidence; 2. start with the middle model of
the matching group (three small, three medium, three large); 3. right: replace one subtask at a time
by the next cheaper model while the answer stays right; wrong: step up the least confident subtasks;
4. at most `rounds` rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

from r2graph.lab.benchmarks import grade
from r2graph.lab.task import Task
from r2graph.plan import fill
from training.outcomes import MODELS, Outcome, Outcomes

REFERENCE = "m5"
EASY, MEDIUM = (
    0.95,
    0.8,
)  # confidence of the reference model above which a subtask is easy, or medium
STEP_UP_SHARE = 0.5  # of the subtasks, the least confident ones


@dataclass(frozen=True)
class Found:
    """An allocation (slots 1 to 9, in plan order), whether it was right, and the executions it took
    to find.
    """

    slots: tuple[int, ...]
    right: bool
    executions: int


def search(task: Task, outcomes: Outcomes, rounds: int = 12) -> Found:
    """The cheapest right allocation met within `rounds` rounds, or the last one if none was."""
    slots = [_start(outcomes.get(REFERENCE, prompt).confidence) for _, prompt, _ in task.steps()]
    best: list[int] | None = None
    fixed: set[int] = set()  # steps that failed with the next cheaper model
    moved = 0  # the step that was last replaced
    executions = 0
    for _ in range(rounds):
        right, steps = execute(task, slots, outcomes)
        executions += 1
        if right:
            best = list(slots)
        elif best is None:
            by_confidence = sorted(range(len(slots)), key=lambda k: steps[k].confidence)
            for step in by_confidence[: max(1, int(len(slots) * STEP_UP_SHARE))]:
                slots[step] = min(len(MODELS), slots[step] + 1)
            continue
        else:  # the last replacement was one too many: take it back
            fixed.add(moved)
            slots = list(best)
        movable = [k for k in range(len(slots)) if k not in fixed and slots[k] > 1]
        if not movable:
            break
        moved = max(movable, key=lambda k: slots[k])
        slots[moved] -= 1
    return Found(tuple(best or slots), best is not None, executions)


def execute(task: Task, slots: list[int], outcomes: Outcomes) -> tuple[bool, list[Outcome]]:
    """Run the oracle plan with these slots: whether the answer is right, and each outcome."""
    said: dict[str, str] = {}
    steps = []
    for subtask, slot in zip(task.plan.subtasks, slots, strict=True):
        outcome = outcomes.get(MODELS[slot - 1], fill(subtask.text, said)[:200])
        said[subtask.id] = outcome.text
        steps.append(outcome)
    last = said[task.plan.subtasks[-1].id]
    return grade(task, fill(task.plan.answer, said) if task.plan.answer else last), steps


def _start(confidence: float) -> int:
    """The middle slot of the group that matches the difficulty: 2, 5 or 8."""
    return 2 if confidence >= EASY else 5 if confidence >= MEDIUM else 8
