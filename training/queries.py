"""Training queries of the lab's families, without end, and other plans of them."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from r2graph.lab import arith, geo, scan
from r2graph.lab.task import Task, is_test


def training_queries(family: str, seed: int, even: bool = False) -> Iterator[Task]:
    """Training queries of one family, without end (SCAN: each once, shuffled); `even`: every city
    equally often.
    """
    rng = Random(seed)
    if family == "scan":
        commands = list(scan.split("train"))
        rng.shuffle(commands)
        yield from commands
        return
    while True:
        task = arith.draw(rng) if family == "arith" else geo.draw(rng, by_population=not even)
        if not is_test(task.query):
            yield task


def whole(task: Task) -> Task:
    """The task with long operations left whole in its plan, which costs less (docs/lab.md)."""
    return arith.task(task.query, cut="") if task.family == "arith" else task


def varied(task: Task, rng: Random, share: float) -> Task:
    """The task, `share` of the time with long operations cut in its plan."""
    if task.family == "arith" and rng.random() < share:
        cut = arith.task(task.query, rng.choice(arith.CUTS[1:]))
        if len(cut.plan.subtasks) <= arith.MAX_STEPS:
            return cut
    return whole(task)
