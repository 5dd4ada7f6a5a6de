"""Traces of the lab's graph with exploration on: what policies learn from and are judged on.

    python -m training.collect --benchmark arith --limit 1000 --samples 4 --qualities 1..10 \
        --temperature 2 --epsilon 0.1 --plan-temperature 0.7 --out runs/arith.jsonl

Each query is run `--samples` times. Each run is one line, written when it ends; the same command
again goes on where it was stopped. A run is named by its seed, query and sample, and what is drawn
in it hangs on these alone, so that the lines are the same wherever they are made: `--engine ray
--workers 32` makes them on a cluster (docs/scaling.md), and writes those of a shard when it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from random import Random
from uuid import NAMESPACE_OID, UUID, uuid5

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from r2graph import ModelPool, OutcomeCache, create_r2_graph, load_pool, load_router
from r2graph.allocate import QUALITY_LEVELS, CheapestFirst
from r2graph.decompose import CheckpointDecomposer, Decomposer
from r2graph.errors import ModelCallError, PlanError
from r2graph.evaluation.methods import PATIENT
from r2graph.explore import ExploringAllocator
from r2graph.graph import R2Graph
from r2graph.lab import benchmarks
from r2graph.lab.task import Task
from r2graph.ledger import Ledger
from r2graph.pool import ModelSpec
from r2graph.router import Router
from r2graph.spread import spread
from r2graph.state import R2Output
from r2graph.trace import Trace, read_traces, to_line, trace
from training.queries import training_queries

SHARD = 4  # runs of a shard, in units of those that are made at once


@dataclass(frozen=True)
class Exploration:
    """How far runs may stray from what the router thinks best."""

    temperature: float = 1.0
    epsilon: float = 0.0
    plan_temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Equipment:
    """What a worker makes runs with, by name, so that another process can have it too."""

    pool: str
    router: str | None
    exploration: Exploration
    samples: int
    concurrency: int
    outcomes: Path | None = None
    ledger: str | None = None
    """Where the calls of a worker that was lost are found again: a file, or `postgresql://…`."""


@dataclass(frozen=True)
class Made:
    """What came of a shard: lines that nobody has written yet, and how many runs failed."""

    lines: list[bytes]
    failed: Counter[str]
    hits: int
    misses: int


@dataclass(frozen=True)
class Job:
    """One run to make."""

    task: Task
    sample: int
    quality: float
    run_id: UUID


def queries(benchmark: str, split: str, limit: int, seed: int) -> list[Task]:
    """The first `limit` distinct queries: of training, as the router's data has them, or of the
    test set.
    """
    if split == "test":
        return benchmarks.tasks(benchmark, limit)
    distinct: dict[str, Task] = {}
    for task in training_queries(benchmark.split("-")[0], seed):
        if len(distinct) == limit:
            break
        distinct.setdefault(task.query, task)
    return list(distinct.values())


def jobs(
    tasks: Sequence[Task], samples: int, qualities: Sequence[float], seed: int
) -> Iterable[Job]:
    """A run for each pair of query and sample, at a quality drawn for it."""
    for sample in range(samples):
        for task in tasks:
            name = f"{seed}\n{sample}\n{task.query}"
            quality = Random(name).choice(qualities)
            yield Job(task, sample, quality, uuid5(NAMESPACE_OID, name))


def explorer(
    pool: ModelPool,
    router: Router | None,
    exploration: Exploration,
    sample: int,
    outcomes: OutcomeCache | None = None,
    ledger: Ledger | None = None,
) -> R2Graph:
    """The graph that makes the runs of one sample."""
    seed = Random(f"{exploration.seed}\n{sample}").getrandbits(31)
    allocator = ExploringAllocator(
        CheapestFirst() if router is None else router.allocator,
        temperature=exploration.temperature,
        epsilon=exploration.epsilon,
        seed=seed,
    )
    return create_r2_graph(
        pool,
        router=router,
        decomposer=None if router is None else planner(router, exploration.plan_temperature, seed),
        allocator=allocator,
        limits=PATIENT,
        ledger=ledger,
        outcomes=outcomes,
    )


def planner(router: Router, temperature: float, seed: int) -> Decomposer:
    """The router's decomposer with a temperature and a seed, if it is one that has them."""
    given = router.decomposer
    if not isinstance(given, CheckpointDecomposer):
        return given
    seeded = given.model.model_kwargs | {"seed": seed}
    return CheckpointDecomposer(
        ModelSpec.model_validate(dict(given.model) | {"model_kwargs": seeded}),
        temperature=temperature,
        retry_temperature=given.retry_temperature,
    )


async def collect(
    wanted: Iterable[Job],
    graphs: Sequence[R2Graph],
    out: Path,
    *,
    concurrency: int = 32,
    on_done: Callable[[], None] = lambda: None,
) -> Counter[str]:
    """Make the runs that are not in the file yet; returns how many failed, by kind of error."""
    jobs_left = left(wanted, out)
    with out.open("ab", buffering=0) as file:
        return await make(jobs_left, graphs, file.write, concurrency=concurrency, on_done=on_done)


@contextmanager
def opened(
    equipment: Equipment,
    write: Callable[[bytes], object] | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> Iterator[Callable[[Sequence[Job]], Made]]:
    """A worker; without `write` it hands over the lines at the end of a shard."""
    with ExitStack() as stack:
        outcomes, ledger = None, None
        if equipment.outcomes is not None:
            outcomes = stack.enter_context(OutcomeCache(equipment.outcomes))
        if equipment.ledger is not None:
            ledger = stack.enter_context(Ledger(equipment.ledger))
        pool, exploration = load_pool(equipment.pool), equipment.exploration
        router = load_router(equipment.router) if equipment.router else None
        graphs = [
            explorer(pool, router, exploration, sample, outcomes, ledger)
            for sample in range(equipment.samples)
        ]
        runner = stack.enter_context(asyncio.Runner())

        def work(wanted: Sequence[Job]) -> Made:
            lines: list[bytes] = []
            hits, misses = (outcomes.hits, outcomes.misses) if outcomes else (0, 0)
            runs = make(
                wanted,
                graphs,
                write or lines.append,
                concurrency=equipment.concurrency,
                on_done=on_done,
            )
            failed = runner.run(runs)
            if outcomes:
                hits, misses = outcomes.hits - hits, outcomes.misses - misses
            return Made(lines, failed, hits, misses)

        yield work


async def make(
    wanted: Iterable[Job],
    graphs: Sequence[R2Graph],
    write: Callable[[bytes], object],
    *,
    concurrency: int,
    on_done: Callable[[], None] = lambda: None,
) -> Counter[str]:
    """Make runs, and write the line of each as it ends; returns how many failed, by kind of error.

    `graphs` has one for each sample. A failed run leaves no trace: that a pool is down says nothing
    about an answer.
    """
    waiting, failed = iter(wanted), Counter[str]()

    async def work() -> None:
        for job in waiting:
            try:
                write(to_line(await run(graphs[job.sample], job)))
            except (ModelCallError, PlanError) as error:
                failed[type(error).__name__] += 1
            on_done()

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return failed


def left(wanted: Iterable[Job], out: Path) -> list[Job]:
    """The runs that are not in the file yet; raises `TraceFileError`."""
    done = collected(out)
    return [job for job in wanted if str(job.run_id) not in done]


def collected(out: Path) -> set[str]:
    """The ids of the runs in a file; a last line that has no end, of a killed process, is cut off.

    Raises `TraceFileError`.
    """
    if not out.exists():
        return set()
    with out.open("rb+") as file:
        file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))
    return {found.run_id for found in read_traces(out)}


async def run(graph: R2Graph, job: Job) -> Trace:
    result = await graph.ainvoke(
        {"query": job.task.query}, {"run_id": job.run_id}, context={"quality": job.quality}
    )
    return trace(result, right=graded(job.task, result))


def graded(task: Task, result: R2Output) -> bool | None:
    """Whether the answer is right; `None` where it is wrong and a call had failed on the way."""
    right = benchmarks.grade(task, result["answer"])
    attempts = [attempt for step in result["steps"].values() for attempt in step["attempts"]]
    failed = any(attempt["output"] is None for attempt in attempts)
    return None if failed and not right else right


def levels(text: str) -> list[float]:
    """`1..10`: the qualities of these levels."""
    match = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", text)
    low, high = map(int, match.groups()) if match else (0, 0)
    if not 1 <= low <= high <= QUALITY_LEVELS:
        raise argparse.ArgumentTypeError(f"levels are LOW..HIGH, from 1 to {QUALITY_LEVELS}")
    return [level / QUALITY_LEVELS for level in range(low, high + 1)]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", default="lab")
    parser.add_argument("--router", default="lab", help="a name, a directory, or none")
    parser.add_argument("--benchmark", choices=benchmarks.NAMES, required=True)
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--limit", type=int, required=True, help="queries")
    parser.add_argument("--samples", type=int, default=1, help="runs of each query")
    quality = parser.add_mutually_exclusive_group()
    quality.add_argument("--quality", type=float, default=0.9)
    quality.add_argument("--qualities", type=levels, help="levels to draw from, such as 1..10")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--epsilon", type=float, default=0.0)
    parser.add_argument("--plan-temperature", type=float, default=0.0)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--outcomes", type=Path, help="an outcome cache to ask first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument(
        "--ledger",
        default=os.environ.get("R2GRAPH_LEDGER"),
        help="keeps calls, so that none is paid twice: a file, or postgresql://… [R2GRAPH_LEDGER]",
    )
    given = parser.parse_args()
    if given.benchmark == "arith-deep" and given.split == "train":
        parser.error("training has no queries as deep as those of arith-deep: use --split test")
    if min(given.workers, given.concurrency) < 1:
        parser.error("--workers and --concurrency are 1 or more")
    return given


def equipment(given: argparse.Namespace) -> Equipment:
    """What the command line names."""
    exploration = Exploration(given.temperature, given.epsilon, given.plan_temperature, given.seed)
    return Equipment(
        given.pool,
        None if given.router == "none" else given.router,
        exploration,
        given.samples,
        given.concurrency,
        given.outcomes,
        given.ledger,
    )


def main() -> None:
    given = parsed()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    tasks = queries(given.benchmark, given.split, given.limit, given.seed)
    wanted = list(jobs(tasks, given.samples, given.qualities or [given.quality], given.seed))
    missing = left(wanted, given.out)
    is_here = given.engine == "local" and given.workers == 1
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        given.out.open("ab", buffering=0) as file,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task(
            given.benchmark, total=len(wanted), completed=len(wanted) - len(missing)
        )
        tick = partial(progress.advance, bar)
        here = (file.write, tick) if is_here else ()
        opens = partial(opened, equipment(given), *here)
        size = min(SHARD * given.concurrency, max(1, ceil(len(missing) / given.workers)))
        shards = [missing[start : start + size] for start in range(0, len(missing), size)]
        failed, hits, misses = Counter[str](), 0, 0
        for made in spread(opens, shards, engine=given.engine, workers=given.workers):
            file.write(b"".join(made.lines))
            if not is_here:
                progress.advance(bar, len(made.lines) + made.failed.total())
            failed += made.failed
            hits, misses = hits + made.hits, misses + made.misses
    for kind, times in failed.items():
        print(f"{times} runs left no trace: {kind}", file=sys.stderr)
    if missing and failed.total() == len(missing):
        raise SystemExit("no run left a trace: `r2graph pool check` tells why")
    if given.outcomes is not None:
        print(f"{hits / max(1, hits + misses):.0%} of the calls were known", file=sys.stderr)


if __name__ == "__main__":
    from training import collect as here  # by the name under which workers find what is pickled

    here.main()
