"""Queries with the plans that a router makes of them, each run once on the strongest member.

What the allocator is trained on: the plans it will meet, and for a step whose references are filled
in, the output of the strongest member in a run that ended right. No oracle plan is needed, so any
pool and any graded queries will do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from r2graph import ModelPool, OutcomeCache, create_r2_graph
from r2graph.allocate import FixedAllocator
from r2graph.errors import ModelCallError, PlanError
from r2graph.evaluation.methods import PATIENT
from r2graph.graph import R2Graph
from r2graph.lab.benchmarks import grade
from r2graph.lab.task import Task
from r2graph.plan import Plan, parse_json
from r2graph.router import Router
from r2graph.verify import FormatVerifier
from training.concurrently import concurrently


@dataclass(frozen=True)
class Planned:
    """A task, a plan of it, and of each step the prompt with references filled, and the output."""

    task: Task
    plan: Plan
    steps: tuple[tuple[str, str], ...]


def planned(
    pool: ModelPool, router: Router, tasks: Sequence[Task], outcomes: OutcomeCache | None
) -> list[Planned]:
    """The tasks whose plan, all of it on the strongest member, ended right; the others drop out."""
    graph = create_r2_graph(
        pool,
        router=router,
        allocator=FixedAllocator(pool.names[-1]),
        verifier=FormatVerifier(),
        outcomes=outcomes,
        limits=PATIENT,
    )
    done = asyncio.run(concurrently(partial(_planned, graph), tasks))
    return [each for each in done if each is not None]


async def _planned(graph: R2Graph, task: Task) -> Planned | None:
    try:
        result = await graph.ainvoke({"query": task.query})
    except (ModelCallError, PlanError):
        return None
    if not grade(task, result["answer"]):
        return None
    plan = parse_json(result["plan"])
    steps = [result["steps"][step.id] for step in plan.subtasks]
    return Planned(task, plan, tuple((step["prompt"], step["output"] or "") for step in steps))
