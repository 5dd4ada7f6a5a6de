"""Runs methods on benchmarks, in this process or with each benchmark in one of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from threading import Thread

from r2graph.errors import ConfigError
from r2graph.evaluation.lineup import ELSEWHERE, OWN, Lineup, routed
from r2graph.evaluation.methods import Method
from r2graph.evaluation.outcomes import Outcome
from r2graph.evaluation.replies import (
    ChargedOutcomes,
    charge_cpu,
    record_pool,
    record_router,
)
from r2graph.lab import benchmarks
from r2graph.lab.task import Task
from r2graph.pool import load_pool
from r2graph.router import Router, load_parent, load_router

CONCURRENCY = 64  # queries at once: as many as a local model takes into one batch

OnDone = Callable[[str, str], None]
"""Told the benchmark and the method each time a query is done."""


@dataclass(frozen=True)
class Setup:
    """What is evaluated, by name, so that another process can load it too."""

    pool: str
    methods: tuple[str, ...]
    router: str | None = None
    quality: float = 0.9
    limit: int | None = None
    outcomes: Path | None = None
    """The file of an outcome cache, which processes and later evaluations share."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured; of all calls, the cache knew `hits` and did not know `misses`."""

    outcomes: list[Outcome]
    hits: int = 0
    misses: int = 0


def evaluate(
    setup: Setup, names: Sequence[str], on_done: OnDone, *, workers: int = 1
) -> Evaluation:
    """All outcomes, benchmark by benchmark and method by method; raises `ConfigError` at once."""
    if unknown := set(names) - set(benchmarks.NAMES):
        known = ", ".join(benchmarks.NAMES)
        raise ConfigError(f"no benchmark is called {min(unknown)!r}: there are {known}")
    if workers == 1:
        done = [run_benchmark(setup, name, on_done) for name in names]
    else:
        done = _in_processes(setup, names, on_done, workers)
    return Evaluation(
        [outcome for each in done for outcome in each.outcomes],
        sum(each.hits for each in done),
        sum(each.misses for each in done),
    )


def run_benchmark(setup: Setup, name: str, on_done: OnDone) -> Evaluation:
    """One benchmark with every method; raises `ConfigError` before the first call or not at all."""
    tasks = benchmarks.tasks(name, setup.limit)
    pool = record_pool(load_pool(setup.pool))
    router = record_router(load_router(setup.router)) if setup.router else None
    right = benchmarks.right_outputs(tasks)
    opened: AbstractContextManager[ChargedOutcomes | None] = nullcontext()
    if setup.outcomes is not None:
        opened = ChargedOutcomes(setup.outcomes)
    with opened as cache:
        lineup = Lineup(pool, router, setup.quality, right, cache, _others(setup))
        methods = {method: lineup.method(method) for method in setup.methods}
        done = asyncio.run(run_methods(name, tasks, methods, on_done))
    return Evaluation(done) if cache is None else Evaluation(done, cache.hits, cache.misses)


def _others(setup: Setup) -> dict[str, Router]:
    """The routers besides that of the setup which its methods ask for."""
    families = {found[0] for found in map(routed, setup.methods) if found}
    return {name: record_router(_other(name, setup.router)) for name in families.difference(OWN)}


def _other(family: str, router: str | None) -> Router:
    if family.startswith(ELSEWHERE):
        return load_router(family.removeprefix(ELSEWHERE))
    if router is None:
        raise ConfigError(f"there is no router: {family} would be the one that it was trained from")
    return load_parent(router)


async def run_methods(
    benchmark: str, tasks: Sequence[Task], methods: Mapping[str, Method], on_done: OnDone
) -> list[Outcome]:
    """One method after the other, each on many queries at once."""
    outcomes: list[Outcome] = []
    gate = asyncio.Semaphore(CONCURRENCY)

    async def run(name: str, method: Method, task: Task) -> Outcome:
        async with gate:
            outcome = await run_query(benchmark, name, method, task)
        on_done(benchmark, name)
        return outcome

    for name, method in methods.items():
        outcomes += await asyncio.gather(*(run(name, method, task) for task in tasks))
    return outcomes


async def run_query(benchmark: str, name: str, method: Method, task: Task) -> Outcome:
    with charge_cpu() as cpu:
        answer = await method.answer(task.query)
    return Outcome(
        benchmark=benchmark,
        method=name,
        query=task.query,
        right=benchmarks.grade(task, answer.text),
        pool_usd=answer.pool_usd,
        net_usd=answer.net_usd,
        calls=answer.calls,
        cpu_s=cpu.seconds,
    )


Ticks = SimpleQueue[tuple[str, str] | None]
_ticks: Ticks | None = None  # of a worker process


def _in_processes(
    setup: Setup, names: Sequence[str], on_done: OnDone, workers: int
) -> list[Evaluation]:
    # Spawned, not forked: torch and event loops do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with (
        _forwarding(context.SimpleQueue(), on_done) as ticks,
        ProcessPoolExecutor(workers, context, _open_worker, (ticks,)) as processes,
    ):
        return list(processes.map(_work, [setup] * len(names), names))


@contextmanager
def _forwarding(ticks: Ticks, on_done: OnDone) -> Iterator[Ticks]:
    """Tell `on_done` what workers put into the queue."""

    def forward() -> None:
        while tick := ticks.get():
            on_done(*tick)

    thread = Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield ticks
    finally:
        ticks.put(None)
        thread.join()


def _open_worker(ticks: Ticks) -> None:
    global _ticks
    _ticks = ticks


def _work(setup: Setup, name: str) -> Evaluation:
    def tick(benchmark: str, method: str) -> None:
        if _ticks is not None:
            _ticks.put((benchmark, method))

    return run_benchmark(setup, name, tick)
