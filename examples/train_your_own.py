"""A router of your own, in miniature: run, grade, make data of the runs, fine-tune, use.

    python examples/train_your_own.py

A minute or two on a CPU. The pool is three of the lab's models, the queries are its arithmetic.
The lab's router was trained for nine models; its allocator is now shown which of these three were
right and cheapest. So few runs show the way, not a gain: collect thousands. Each stage is a script
too, named beside it; docs/training.md has them all.
"""

from __future__ import annotations

import argparse
import asyncio
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from r2graph import ModelPool, create_r2_graph, load_pool, load_router
from r2graph.lab import benchmarks
from r2graph.router import Router
from r2graph.trace import read_traces
from training import collect, sft, trace_data
from training.alternate import assemble
from training.grpo import folder

SAMPLES, QUALITY = 4, 0.9
LAB = load_pool("lab")
POOL = ModelPool(name="mine", language="lab", members=(LAB["m3"], LAB["m5"], LAB["m7"]))


def train(out: Path, queries: int) -> Router:
    """Teach the lab's allocator what runs on the pool show, and write the router that it makes."""
    parent = load_router("lab")

    # python -m training.collect: runs with choices drawn at random, graded
    tasks = collect.queries("arith", "train", queries, seed=1)
    drawn = collect.Exploration(temperature=2, epsilon=0.3)
    graphs = [collect.explorer(POOL, parent, drawn, sample) for sample in range(SAMPLES)]
    wanted = collect.jobs(tasks, SAMPLES, [QUALITY], seed=1)
    asyncio.run(collect.collect(wanted, graphs, out / "traces.jsonl"))
    traces = list(read_traces(out / "traces.jsonl"))
    right = sum(trace.right is True for trace in traces)
    print(f"collect: {len(traces)} runs of {queries} queries, {right} right")

    # python -m training.trace_data: of a query's right runs the cheapest
    rows = list(trace_data.allocator_rows(trace_data.by_query(traces)))
    trace_data.write(out / "allocator.jsonl", rows)
    print(f"data: {len(rows)} rows for the allocator")

    # python -m training.sft: TRL's SFTTrainer
    base, trained = folder(parent, "allocator"), out / "allocator"
    sft.train(base, out / "allocator.jsonl", trained, batch=8, epochs=5, learning_rate=3e-4)

    # The parent with one module replaced is a router: a directory with a card
    digest = sha256("\n".join(rows).encode()).hexdigest()
    assemble(Path("lab"), "allocator", trained, out / "router", "SFT", digest, seed=1)
    return load_router(out / "router")


def use(name: str, router: Router, queries: int) -> None:
    """How a router does on queries that no training has seen."""
    graph = create_r2_graph(POOL, router=router, quality=QUALITY)
    tasks = benchmarks.tasks("arith", queries)
    results = graph.batch([task.query for task in tasks])
    right = sum(map(benchmarks.grade, tasks, (result["answer"] for result in results)))
    cost = sum(Decimal(result["cost_usd"]) for result in results)
    print(f"{name}: {right} of {queries} right, ${cost:.7f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A router of your own, in miniature.")
    parser.add_argument("--queries", type=int, default=100, help="to learn from, and to compare on")
    given = parser.parse_args()
    with TemporaryDirectory() as directory:
        trained = train(Path(directory), given.queries)
        use("the lab's router", load_router("lab"), given.queries)
        use("yours", trained, given.queries)
