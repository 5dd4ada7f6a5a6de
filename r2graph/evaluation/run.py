"""Runs methods on benchmarks, in this process or with each benchmark in one of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from r2graph import benchmarks as published
from r2graph.allocate import CheckpointAllocator
from r2graph.benchmarks import Question
from r2graph.benchmarks.catalogue import SIZE
from r2graph.benchmarks.question import stated
from r2graph.decompose import CheckpointDecomposer
from r2graph.errors import ConfigError, LimitExceeded
from r2graph.evaluation.detail import detail, example, kind
from r2graph.evaluation.lineup import (
    ELSEWHERE,
    OWN,
    Lineup,
    follows_instructions,
    is_derived,
    routed,
    singles,
)
from r2graph.evaluation.methods import Answer, Method, Purse
from r2graph.evaluation.outcomes import Detail, Outcome
from r2graph.evaluation.query_routers import (
    QueryRouters,
    hangs_on_another,
    learned,
    require_lessons,
)
from r2graph.evaluation.record import Key, Record, complete, read_outcomes
from r2graph.evaluation.replies import (
    ChargedOutcomes,
    charge_cpu,
    record_pool,
    record_router,
)
from r2graph.lab import benchmarks
from r2graph.lab.task import Task
from r2graph.ledger import Budget, Ledger
from r2graph.limits import Limits
from r2graph.pool import ModelPool, load_pool
from r2graph.pricing import to_text
from r2graph.router import Router, load_parent, load_router

CONCURRENCY = 64  # queries at once: as many as a local model takes into one batch
EXAMPLES = 4  # of each kind, method and benchmark, whose text is kept
FORM = "\n\nEnd with a line `answer: …` that holds the answer alone."  # the lab's queries have none

Asked = Task | Question
OnDone = Callable[[str, str], None]
"""Told the benchmark and the method each time a query is done."""


@dataclass(frozen=True)
class Setup:
    """What is evaluated: by name, or as a pool, so that another process has it too."""

    pool: str | ModelPool
    methods: tuple[str, ...]
    router: str | None = None
    quality: float = 0.9
    limit: int | None = None
    outcomes: Path | None = None
    """The file of an outcome cache, which processes and later evaluations share."""
    data: Path | None = None
    """Where benchmarks that do not come with r2graph are; `None`: the Hugging Face hub."""
    concurrency: int = CONCURRENCY
    """Queries at once, in each process."""
    max_tokens: int = Limits().max_output_tokens
    """Tokens that one call may generate."""
    max_usd: Decimal | None = None
    """What may be spent on calls that no cache knows."""
    out: Path | None = None
    """The file of a `Record`."""
    fit_on: Path | None = None
    """Such a file of an earlier evaluation, for methods that learn from outcomes."""
    detailed: bool = False
    """Whether outcomes should have the detail that a report tells."""
    ledger: Path | None = None
    """Where processes see to it that `max_usd` is kept."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured; of all calls, the cache knew `hits` and did not know `misses`."""

    outcomes: list[Outcome]
    hits: int = 0
    misses: int = 0
    stopped: bool = False
    """Whether the money was too little for all of it: then there are only those queries that all
    methods have done.
    """


def evaluate(
    setup: Setup, names: Sequence[str], on_done: OnDone, *, workers: int = 1
) -> Evaluation:
    """All outcomes, benchmark by benchmark and method by method; raises `ConfigError` at once."""
    if unknown := set(names) - set(published.NAMES):
        known = ", ".join(published.NAMES)
        raise ConfigError(f"no benchmark is called {min(unknown)!r}: there are {known}")
    if setup.out is not None:
        Record(setup.out, settings(setup))
    with _with_money(setup) as setup:
        if workers == 1:
            done = [run_benchmark(setup, name, on_done) for name in names]
        else:
            done = _in_processes(setup, names, on_done, workers)
    stopped = any(each.stopped for each in done)
    outcomes = [outcome for each in done for outcome in each.outcomes]
    if stopped:
        outcomes = complete(outcomes, calling(setup))
    return Evaluation(
        with_query_routers(setup, outcomes, stopped=stopped),
        sum(each.hits for each in done),
        sum(each.misses for each in done),
        stopped,
    )


def settings(setup: Setup) -> object:
    """What outcomes hang on, besides benchmark, method and query, as JSON."""
    pool = pool_of(setup)
    members = [
        [spec.name, spec.identity, *map(to_text, dict(spec.price).values())]
        for spec in pool.members
    ]
    router = load_router(setup.router) if setup.router else None
    parts = [router.decomposer, router.allocator] if router else []
    models = [
        part.model.identity
        for part in parts
        if isinstance(part, CheckpointDecomposer | CheckpointAllocator)
    ]
    return [members, models, setup.quality, setup.max_tokens]


def pool_of(setup: Setup) -> ModelPool:
    return setup.pool if isinstance(setup.pool, ModelPool) else load_pool(setup.pool)


@contextmanager
def _with_money(setup: Setup) -> Iterator[Setup]:
    """The setup with what a limit on money needs: a ledger, and a cache so that calls which methods
    share are paid once.
    """
    if setup.max_usd is None:
        yield setup
        return
    with TemporaryDirectory() as folder:
        outcomes = setup.outcomes or Path(folder) / "outcomes.sqlite"
        yield replace(setup, outcomes=outcomes, ledger=Path(folder) / "ledger.sqlite")


def calling(setup: Setup) -> list[str]:
    """The methods that call models."""
    pool = pool_of(setup)
    return [name for name in setup.methods if not is_derived(name, pool)]


def with_query_routers(
    setup: Setup, outcomes: Sequence[Outcome], *, stopped: bool = False
) -> list[Outcome]:
    """The outcomes, in the setup's order, together with those of methods that call no model.

    Of an evaluation that was stopped there may be too few to learn from: then these are left out.
    """
    pool = pool_of(setup)
    tables: dict[str, dict[str, list[Outcome]]] = {}
    for o in outcomes:
        tables.setdefault(o.benchmark, {}).setdefault(o.method, []).append(o)
    before = read_outcomes(setup.fit_on) if setup.fit_on else None
    chosen = QueryRouters(tables, singles(pool), quality=setup.quality, before=before)
    derived = [name for name in setup.methods if is_derived(name, pool)]
    for benchmark, table in tables.items():
        for name in sorted(derived, key=hangs_on_another):
            with suppress(ConfigError) if stopped else nullcontext():
                table[name] = chosen.outcomes(benchmark, name)
    shown = [name for name in setup.methods if all(name in table for table in tables.values())]
    return [o for table in tables.values() for name in shown for o in table[name]]


def questions(setup: Setup, name: str, pool: ModelPool) -> Sequence[Asked]:
    """What a benchmark asks the members of a pool; raises `ConfigError`."""
    if not follows_instructions(pool):
        if name not in benchmarks.NAMES:
            raise ConfigError(
                f"pool {pool.name!r} speaks a language of its own and {name} English: take one of "
                f"{', '.join(benchmarks.NAMES)}, or a pool of language `any`"
            )
        return benchmarks.tasks(name, setup.limit)
    found = published.load(name, data=setup.data, limit=setup.limit)
    if name in benchmarks.NAMES:
        found = [replace(question, query=question.query + FORM) for question in found]
    return found


def n_outcomes(setup: Setup, names: Sequence[str]) -> int:
    """How many queries there are to do, if the benchmarks have as many as are asked for."""
    sizes = [benchmarks.SIZE if name in benchmarks.NAMES else SIZE for name in names]
    return len(calling(setup)) * sum(setup.limit or size for size in sizes)


def run_benchmark(setup: Setup, name: str, on_done: OnDone) -> Evaluation:
    """One benchmark with every method that calls models; raises `ConfigError` before the first call
    or not at all.
    """
    pool = pool_of(setup)
    asked = questions(setup, name, pool)
    if any(map(learned, setup.methods)):
        before = read_outcomes(setup.fit_on) if setup.fit_on else None
        require_lessons(name, [task.query for task in asked], singles(pool), before)
    router = record_router(load_router(setup.router)) if setup.router else None
    tasks = [task for task in asked if isinstance(task, Task)]
    record = Record(setup.out, settings(setup)) if setup.out else None
    with ExitStack() as stack:
        opened: AbstractContextManager[ChargedOutcomes | None] = nullcontext()
        if setup.outcomes is not None:
            opened = ChargedOutcomes(setup.outcomes)
        cache = stack.enter_context(opened)
        purse = None
        if setup.ledger is not None and setup.max_usd is not None:
            ledger = stack.enter_context(Ledger(setup.ledger, keep=False))
            purse = Purse(ledger, Budget(usd=setup.max_usd))
        known = benchmarks.right_outputs(tasks)
        lineup = Lineup(
            record_pool(pool),
            router,
            setup.quality,
            known,
            cache,
            other_routers(setup),
            purse,
            setup.max_tokens,
        )
        methods = {method: lineup.method(method) for method in calling(setup)}
        run = Running(
            name,
            methods,
            on_done,
            purse=purse,
            record=record,
            concurrency=setup.concurrency,
            known=known if setup.detailed else None,
        )
        done = asyncio.run(run.all(asked))
    hits, misses = (cache.hits, cache.misses) if cache else (0, 0)
    return Evaluation(done, hits, misses, run.stopped)


def other_routers(setup: Setup) -> dict[str, Router]:
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
    benchmark: str, tasks: Sequence[Asked], methods: Mapping[str, Method], on_done: OnDone
) -> list[Outcome]:
    """One method after the other, each on many queries at once."""
    return await Running(benchmark, methods, on_done).all(tasks)


class Running:
    """Methods on the queries of a benchmark: what is on record is not done again, and nothing is
    begun once the money has run out. With the right outputs that are `known`, be it none, outcomes
    have their detail.
    """

    def __init__(
        self,
        benchmark: str,
        methods: Mapping[str, Method],
        on_done: OnDone,
        *,
        purse: Purse | None = None,
        record: Record | None = None,
        concurrency: int = CONCURRENCY,
        known: Mapping[str, str] | None = None,
    ) -> None:
        self.benchmark = benchmark
        self.methods = methods
        self.on_done = on_done
        self.purse = purse
        self.record = record
        self.concurrency = concurrency
        self.known = known
        self.stopped = False
        self._examples: Counter[tuple[str, str]] = Counter()
        self._gate = asyncio.Semaphore(concurrency)

    async def all(self, tasks: Sequence[Asked]) -> list[Outcome]:
        """Method by method; with little money a few queries with all methods, then the next ones,
        so that what there is when it ends can be compared.
        """
        size = max(1, self.concurrency if self.purse else len(tasks))
        done: dict[str, list[Outcome]] = {name: [] for name in self.methods}
        for start in range(0, len(tasks), size):
            for name, method in self.methods.items():
                some = tasks[start : start + size]
                found = await asyncio.gather(*(self._one(name, method, task) for task in some))
                done[name] += [outcome for outcome in found if outcome is not None]
        return [outcome for outcomes in done.values() for outcome in outcomes]

    async def _one(self, name: str, method: Method, task: Asked) -> Outcome | None:
        async with self._gate:
            known = self._known((self.benchmark, name, task.query))
            try:
                outcome = known or (None if self.stopped else await self._run(name, method, task))
            except LimitExceeded as limit:
                if limit.limit != "pool_budget":
                    raise
                self.stopped, outcome = True, None
        if outcome is not None:
            self.on_done(self.benchmark, name)
        return outcome

    def _known(self, key: Key) -> Outcome | None:
        return self.record.outcomes.get(key) if self.record else None

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
        if self.record is not None and not answer.failed:
            self.record.add(outcome)
        return outcome

    def _detail(self, name: str, task: Asked, answer: Answer, right: bool) -> Detail | None:
        if self.known is None:
            return None
        found = detail(answer, task.query, right=right, known=self.known)
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
