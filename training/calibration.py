"""What the probabilities of a router's allocator are worth, on test queries of the lab.

    python -m training.calibration --router lab --limit 500

Runs the router through the graph and holds each step's forecast, that the member it starts on will
do, against whether the first output was right.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from r2graph import OutcomeCache, create_r2_graph, load_pool, load_router
from r2graph.errors import ModelCallError, PlanError
from r2graph.evaluation.calibration import calibration, judged
from r2graph.evaluation.methods import PATIENT
from r2graph.graph import R2Graph
from r2graph.lab import benchmarks
from r2graph.lab.task import Task
from r2graph.trace import Trace, trace
from training.concurrently import concurrently


async def traces(graph: R2Graph, tasks: Sequence[Task]) -> list[Trace]:
    """A run of each task; one that fails leaves no trace."""

    async def run(task: Task) -> Trace | None:
        try:
            result = await graph.ainvoke({"query": task.query})
        except (ModelCallError, PlanError):
            return None
        return trace(result, right=benchmarks.grade(task, result["answer"]))

    return [found for found in await concurrently(run, tasks) if found is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", default="lab")
    parser.add_argument("--router", default="lab", help="a name or a directory")
    parser.add_argument("--benchmarks", default="scan-simple,scan-length,arith,geo")
    parser.add_argument("--limit", type=int, default=500, help="queries a benchmark")
    parser.add_argument("--quality", type=float, default=0.9)
    parser.add_argument("--outcomes", type=Path, help="an outcome cache (SQLite)")
    given = parser.parse_args()
    names = given.benchmarks.split(",")
    tasks = [task for name in names for task in benchmarks.tasks(name, given.limit)]
    with OutcomeCache(given.outcomes) if given.outcomes else nullcontext() as outcomes:
        graph = create_r2_graph(
            load_pool(given.pool),
            router=load_router(given.router),
            quality=given.quality,
            outcomes=outcomes,
            limits=PATIENT,
        )
        found = asyncio.run(traces(graph, tasks))
    of = calibration(*judged(found, benchmarks.right_outputs(tasks)))
    print(
        f"{len(found):,} runs of {len(tasks):,} queries, {of.n:,} steps, {of.base_rate:.1%} right"
    )
    print(f"AUROC {of.auroc:.3f}")
    print(f"Brier score {of.brier:.4f}, skill over the base rate {of.brier_skill:.3f}")
    print(f"ECE {of.ece:.4f}")


if __name__ == "__main__":
    main()
