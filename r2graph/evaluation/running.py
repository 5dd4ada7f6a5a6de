"""Methods put to queries, many at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from r2graph import benchmarks as published
from r2graph.benchmarks.question import stated
from r2graph.errors import LimitExceeded
from r2graph.evaluation.detail import detail, example, kind
from r2graph.evaluation.methods import Answer, Method
from r2graph.evaluation.outcomes import Detail, Outcome
from r2graph.evaluation.record import Key
from r2graph.evaluation.replies import charge_cpu
from r2graph.evaluation.setup import CONCURRENCY, Asked
from r2graph.lab import benchmarks
from r2graph.lab.task import Task

EXAMPLES = 4  # of each kind, method and shard, whose text is kept

OnDone = Callable[[str, str], None]
"""Told the benchmark and the method each time a query is done."""


async def run_methods(
    benchmark: str, tasks: Sequence[Asked], methods: Mapping[str, Method], on_done: OnDone
) -> list[Outcome]:
    """One method after the other, each on many queries at once."""
    return await Running(benchmark, methods, on_done).all(tasks)


class Running:
    """Methods on queries of a benchmark: what is `known` is not done again, what is new is told to
    `keep`, and nothing is begun once the money has run out.
    """

    def __init__(
        self,
        benchmark: str,
        methods: Mapping[str, Method],
        on_done: OnDone,
        *,
        known: Mapping[Key, Outcome] | None = None,
        keep: Callable[[Outcome], None] = lambda _: None,
        is_limited: bool = False,
        concurrency: int = CONCURRENCY,
        right: Mapping[str, str] | None = None,
    ) -> None:
        """`right` are the right outputs of steps, be it none: with them outcomes have detail."""
        self.benchmark = benchmark
        self.methods = methods
        self.on_done = on_done
        self.known = known or {}
        self.keep = keep
        self.is_limited = is_limited
        self.concurrency = concurrency
        self.right = right
        self.stopped = False
        self._examples: Counter[tuple[str, str]] = Counter()
        self._gate = asyncio.Semaphore(concurrency)

    async def all(self, tasks: Sequence[Asked]) -> list[Outcome]:
        """Method by method; with little money a few queries with all methods, then the next ones,
        so that what there is when it ends can be compared.
        """
        size = max(1, self.concurrency if self.is_limited else len(tasks))
        done: dict[str, list[Outcome]] = {name: [] for name in self.methods}
        for start in range(0, len(tasks), size):
            for name, method in self.methods.items():
                some = tasks[start : start + size]
                found = await asyncio.gather(*(self._one(name, method, task) for task in some))
                done[name] += [outcome for outcome in found if outcome is not None]
        return [outcome for outcomes in done.values() for outcome in outcomes]

    async def _one(self, name: str, method: Method, task: Asked) -> Outcome | None:
        async with self._gate:
            known = self.known.get((self.benchmark, name, task.query))
            try:
                outcome = known or (None if self.stopped else await self._run(name, method, task))
            except LimitExceeded as limit:
                if limit.limit != "pool_budget":
                    raise
                self.stopped, outcome = True, None
        if outcome is not None:
            self.on_done(self.benchmark, name)
        return outcome

    async def _run(self, name: str, method: Method, task: Asked) -> Outcome:
        with charge_cpu() as cpu:
            answer = await method.answer(task.query)
        right = await _is_right(task, answer.text)
        outcome = Outcome(
            benchmark=self.benchmark,
            method=name,
            query=task.query,
            right=right,
            pool_usd=answer.pool_usd,
            net_usd=answer.net_usd,
            calls=answer.calls,
            cpu_s=cpu.seconds,
            detail=self._detail(name, task, answer, right),
        )
        if not answer.failed:
            self.keep(outcome)
        return outcome

    def _detail(self, name: str, task: Asked, answer: Answer, right: bool) -> Detail | None:
        if self.right is None:
            return None
        found = detail(answer, task.query, right=right, known=self.right)
        shown = kind(answer, right=right)
        if shown is None or self._examples[name, shown] == EXAMPLES:
            return found
        self._examples[name, shown] += 1
        expected = task.answer if isinstance(task, Task) else task.gold
        return replace(found, example=example(answer, shown, expected))


async def _is_right(task: Asked, answer: str | None) -> bool:
    if isinstance(task, Task):
        return benchmarks.grade(task, answer)
    if answer is not None and task.benchmark in benchmarks.NAMES:
        answer = stated(answer) or answer
    return await asyncio.to_thread(published.grade, task, answer)  # it may run code, or take long
