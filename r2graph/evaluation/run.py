"""Runs methods on benchmarks: shards of queries, each put to every method by one worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

from r2graph import benchmarks as published
from r2graph.errors import ConfigError
from r2graph.evaluation.lineup import Lineup, follows_instructions, is_derived, singles
from r2graph.evaluation.methods import Method, Purse
from r2graph.evaluation.outcomes import Outcome
from r2graph.evaluation.query_routers import (
    QueryRouters,
    hangs_on_another,
    learned,
    require_lessons,
)
from r2graph.evaluation.record import Key, Record, append_outcome, complete, digest, read_outcomes
from r2graph.evaluation.replies import ChargedOutcomes, record_pool, record_router
from r2graph.evaluation.running import OnDone, Running
from r2graph.evaluation.setup import (
    Asked,
    Setup,
    calling,
    other_routers,
    pool_of,
    questions,
    settings,
)
from r2graph.lab import benchmarks
from r2graph.ledger import Budget, Ledger
from r2graph.outcome_cache import OutcomeCache
from r2graph.pool import ModelPool
from r2graph.router import load_router
from r2graph.spread import Engine, spread

BATCHES = 4  # queries of a shard, in units of those that run at once


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


@dataclass(frozen=True)
class Shard:
    """Queries of a benchmark, and what is known of them."""

    benchmark: str
    asked: Sequence[Asked]
    known: Mapping[Key, Outcome] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """What came of a shard."""

    evaluation: Evaluation
    new: Sequence[Outcome]
    """What would have been put on record, had there been one."""


def evaluate(
    setup: Setup,
    names: Sequence[str],
    on_done: OnDone,
    *,
    engine: Engine = "local",
    workers: int = 1,
) -> Evaluation:
    """All outcomes, benchmark by benchmark and method by method; raises `ConfigError` at once.

    Workers of a cluster keep no record: the caller's process does, as shards are done.
    """
    if unknown := set(names) - set(published.NAMES):
        there = ", ".join(published.NAMES)
        raise ConfigError(f"no benchmark is called {min(unknown)!r}: there are {there}")
    record = Record(setup.out, settings(setup)) if setup.out else None
    courses = {name: _asked(setup, name) for name in names}
    known = record.outcomes if record else {}
    shards = [
        shard
        for name, asked in courses.items()
        for shard in _shards(setup, name, asked, known, workers)
    ]
    is_here = engine == "local" and workers == 1
    done: list[Done] = []
    with _with_money(setup, engine) as ready:
        build = partial(
            opened,
            ready if engine == "local" else replace(ready, out=None),
            tuple(names),
            on_done if is_here else None,
        )
        for each in spread(build, shards, engine=engine, workers=workers):
            done.append(each)
            if record is not None and engine == "ray":
                for outcome in each.new:
                    record.add(outcome)
            if not is_here:
                for outcome in each.evaluation.outcomes:
                    on_done(outcome.benchmark, outcome.method)
    return _whole(setup, courses, [each.evaluation for each in done])


def _asked(setup: Setup, name: str) -> Sequence[Asked]:
    """What a benchmark asks, if there is something to learn for those methods that have to."""
    pool = pool_of(setup)
    asked = questions(setup, name, pool)
    if any(map(learned, setup.methods)):
        before = read_outcomes(setup.fit_on) if setup.fit_on else None
        require_lessons(name, [task.query for task in asked], singles(pool), before)
    return asked


def _shards(
    setup: Setup,
    name: str,
    asked: Sequence[Asked],
    known: Mapping[Key, Outcome],
    workers: int,
) -> Iterator[Shard]:
    """As large as `BATCHES` says, but small enough that every worker gets one."""
    size = min(BATCHES * setup.concurrency, max(1, ceil(len(asked) / workers)))
    methods = calling(setup)
    for start in range(0, len(asked), size):
        some = asked[start : start + size]
        keys = [(name, method, task.query) for task in some for method in methods]
        yield Shard(name, some, {key: known[key] for key in keys if key in known})


def _whole(
    setup: Setup, courses: Mapping[str, Sequence[Asked]], done: Sequence[Evaluation]
) -> Evaluation:
    """What is in all parts, in the order of benchmarks, methods and queries."""
    stopped = any(each.stopped for each in done)
    outcomes = [outcome for each in done for outcome in each.outcomes]
    if stopped:
        outcomes = complete(outcomes, calling(setup))
    at = {(name, task.query): n for name in courses for n, task in enumerate(courses[name])}
    names, methods = list(courses), list(setup.methods)
    outcomes.sort(
        key=lambda o: (
            names.index(o.benchmark),
            methods.index(o.method),
            at[o.benchmark, o.query],
        )
    )
    return Evaluation(
        with_query_routers(setup, outcomes, stopped=stopped),
        sum(each.hits for each in done),
        sum(each.misses for each in done),
        stopped,
    )


@contextmanager
def _with_money(setup: Setup, engine: Engine) -> Iterator[Setup]:
    """The setup with a ledger, if there is a limit on money that needs one."""
    if setup.max_usd is None or setup.ledger is not None:
        yield setup
        return
    if engine == "ray":
        raise ConfigError(
            "workers on several machines keep a limit on money by a ledger that they share: name "
            "one, --ledger postgresql://…"
        )
    with TemporaryDirectory() as folder:
        yield replace(setup, ledger=Path(folder) / "ledger.sqlite", keeps_calls=False)


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


@dataclass(frozen=True)
class Worker:
    """Does shards, one after the other, in one event loop and with models that are loaded once."""

    setup: Setup
    methods: Mapping[str, Mapping[str, Method]]
    """For each benchmark."""
    right: Mapping[str, Mapping[str, str]]
    """For each benchmark, the right output of each step's prompt."""
    cache: OutcomeCache | None
    runner: asyncio.Runner
    on_done: OnDone | None

    def __call__(self, shard: Shard) -> Done:
        new: list[Outcome] = []
        setup, cache = self.setup, self.cache
        hits, misses = (cache.hits, cache.misses) if cache else (0, 0)
        running = Running(
            shard.benchmark,
            self.methods[shard.benchmark],
            self.on_done or (lambda benchmark, method: None),
            known=shard.known,
            keep=partial(append_outcome, setup.out) if setup.out else new.append,
            is_limited=setup.max_usd is not None,
            concurrency=setup.concurrency,
            right=self.right[shard.benchmark] if setup.detailed else None,
        )
        found = self.runner.run(running.all(shard.asked))
        if cache:
            hits, misses = cache.hits - hits, cache.misses - misses
        return Done(Evaluation(found, hits, misses, running.stopped), new)


@contextmanager
def opened(setup: Setup, names: Sequence[str], on_done: OnDone | None = None) -> Iterator[Worker]:
    """A worker for these benchmarks; raises `ConfigError` before the first call or not at all.

    Where money is limited, it has a cache, so that calls which methods share are paid once.
    """
    with ExitStack() as stack:
        cached = setup.outcomes
        if cached is None and setup.max_usd is not None:
            cached = Path(stack.enter_context(TemporaryDirectory())) / "outcomes.sqlite"
        cache = stack.enter_context(ChargedOutcomes(cached)) if cached else None
        pool = record_pool(pool_of(setup))
        router = record_router(load_router(setup.router)) if setup.router else None
        others, purse = other_routers(setup), _purse(setup, stack)
        right = {name: _right(setup, name, pool) for name in names}
        lineups = {
            name: Lineup(pool, router, setup.quality, known, cache, others, purse, setup.max_tokens)
            for name, known in right.items()
        }
        methods = {
            name: {method: lineup.method(method) for method in calling(setup)}
            for name, lineup in lineups.items()
        }
        runner = stack.enter_context(asyncio.Runner())
        yield Worker(setup, methods, right, cache, runner, on_done)


def _right(setup: Setup, name: str, pool: ModelPool) -> dict[str, str]:
    """The right output of each step's prompt, where it is known: of tasks in the lab's language."""
    if follows_instructions(pool):
        return {}
    return benchmarks.right_outputs(benchmarks.tasks(name, setup.limit))


def _purse(setup: Setup, stack: ExitStack) -> Purse | None:
    if setup.ledger is None:
        return None
    name = digest(settings(setup))
    ledger = stack.enter_context(Ledger(setup.ledger, keep=setup.keeps_calls))
    budget = None if setup.max_usd is None else Budget(usd=setup.max_usd, scope=f"eval {name}")
    return Purse(ledger, budget, name)
