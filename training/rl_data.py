"""Prompts for reinforcement learning, each with what its reward needs.

Every prompt is what the deployed module is asked: the decomposer a training query, the allocator a
plan or, once references are filled in, a single step. The columns beside it are JSON or plain
values, so that any dataset file can hold them: `query`, `plan` (that the slots are for; of the
decomposer: the reference of its costs), `gold`, `level`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from random import Random
from typing import Any

from r2graph.allocate import QUALITY_LEVELS, slots_prompt
from r2graph.decompose import plan_prompt
from r2graph.lab.task import Task
from r2graph.plan import Plan, render_text, single
from training.planned import Planned
from training.queries import training_queries, whole

Row = dict[str, Any]
DECOMPOSER_LEVEL = 9  # the graph's default quality, at which plans are tried


def tasks(
    queries: Mapping[str, int], seed: int, without: Collection[str] = frozenset()
) -> list[Task]:
    """So many distinct training tasks of each family, in random order, with long products whole."""
    drawn: dict[str, Task] = {}
    for family, n in queries.items():
        fresh = (
            task
            for task in training_queries(family, seed)
            if task.query not in drawn and task.query not in without
        )
        for task in islice(fresh, n):
            drawn[task.query] = whole(task)
    found = list(drawn.values())
    Random(seed).shuffle(found)
    return found


def half_hard(drawn: Sequence[Task], right: Sequence[bool], at_least: int, seed: int) -> list[Task]:
    """The tasks that the parent gets wrong, and as many others, in random order; `at_least` so many
    together, where there are.

    A group of completions that are all right teaches little, and a good parent gets nearly all
    right (the dynamic sampling of DAPO, arXiv 2503.14476, made beforehand).
    """
    hard = [task for task, good in zip(drawn, right, strict=True) if not good]
    easy = [task for task, good in zip(drawn, right, strict=True) if good]
    chosen = [*hard, *easy[: max(len(hard), at_least - len(hard))]]
    Random(seed).shuffle(chosen)
    return chosen


def decomposer_rows(drawn: Sequence[Task]) -> list[Row]:
    return [
        _row(plan_prompt(task.query), task, task.plan, task.answer, DECOMPOSER_LEVEL)
        for task in drawn
    ]


def allocator_rows(drawn: Sequence[Planned], seed: int) -> list[Row]:
    """A plan, and each step that is asked about again, at quality levels drawn at random."""
    rng = Random(seed)
    rows = []
    for each in drawn:
        task, plan, level = each.task, each.plan, rng.randint(1, QUALITY_LEVELS)
        texts = [step.text for step in plan.subtasks]
        rows.append(_row(slots_prompt(texts, level), task, plan, task.answer, level))
        for step, (prompt, output) in zip(plan.subtasks, each.steps, strict=True):
            if prompt != step.text:
                level = rng.randint(1, QUALITY_LEVELS)
                rows.append(
                    _row(slots_prompt([prompt], level), task, single(prompt), output, level)
                )
    rng.shuffle(rows)
    return rows


def _row(prompt: str, task: Task, plan: Plan, gold: str, level: int) -> Row:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "query": task.query,
        "plan": render_text(plan),
        "gold": gold,
        "level": level,
    }
