"""The lab's test sets: fixed streams of tasks that no training run has seen."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from r2graph.errors import ConfigError
from r2graph.lab import arith, geo, scan
from r2graph.lab.task import Task, is_test

NAMES = ("scan-simple", "scan-length", "arith", "geo", "arith-deep")
SIZE = 2_000  # default number of tasks
SEED = 2_506_05901


def tasks(name: str, limit: int | None = None) -> list[Task]:
    """The first `limit` (default 2,000) test tasks of a benchmark, always the same; a smaller limit
    is a prefix.

    SCAN: the official test files in a fixed shuffle. arith, arith-deep, geo: distinct queries of
    the documented distribution that fall into the test split.
    """
    if name not in NAMES:
        raise ConfigError(f"unknown benchmark {name!r}; known: {', '.join(NAMES)}")
    limit = SIZE if limit is None else limit
    rng = Random(SEED)
    if name.startswith("scan"):
        found = list(scan.split(name.removeprefix("scan-") + "-test"))
        rng.shuffle(found)
        return found[:limit]
    distinct: dict[str, Task] = {}
    while len(distinct) < limit:
        item = geo.draw(rng) if name == "geo" else arith.draw(rng, deep=name == "arith-deep")
        if is_test(item.query):
            distinct.setdefault(item.query, item)
    return list(distinct.values())


def right_outputs(tasks: Sequence[Task]) -> dict[str, str]:
    """The right output of each step's prompt, in plans that cut long operations and that do not."""
    sums = [task for task in tasks if task.family == "arith"]
    every = [*tasks, *(arith.task(task.query, cut) for task in sums for cut in arith.CUTS)]
    return {prompt: output for task in every for _, prompt, output in task.steps()}


def grade(task: Task, answer: str | None) -> bool:
    """Whether the answer is exactly right, spacing aside."""
    return answer is not None and answer.split() == task.answer.split()
