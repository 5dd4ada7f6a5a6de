"""How good a router is on held-out training queries: accuracy, net cost, worth by level."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TypedDict

from r2graph import ModelPool, OutcomeCache, create_r2_graph
from r2graph.allocate import QUALITY_LEVELS
from r2graph.errors import PlanError
from r2graph.evaluation.methods import PATIENT
from r2graph.graph import R2Graph
from r2graph.lab.benchmarks import grade
from r2graph.lab.task import Task
from r2graph.router import Router
from training.concurrently import concurrently
from training.rewards import INVALID, WRONG, Rollout, allocator_reward
from training.rollouts import Rollouts

LEVELS = (2, 5, 7, 9)


class Standing(TypedDict):
    """Means over the queries."""

    accuracy: float
    net_usd: float
    """Of the queries that got a valid plan."""
    invalid: float
    """The share of queries that got none."""
    worth: float
    """The allocator's reward, the router's own cost included."""


Ended = tuple[bool, float] | None
"""Whether the answer was right, and the dollars of the run; `None` where no plan was valid."""


async def _ended(graph: R2Graph, task: Task) -> Ended:
    try:
        result = await graph.ainvoke({"query": task.query})
    except PlanError:
        return None
    return grade(task, result["answer"]), float(result["cost_usd"])


def ended(
    pool: ModelPool,
    router: Router,
    tasks: Sequence[Task],
    outcomes: OutcomeCache | None,
    level: int,
) -> list[Ended]:
    """How each task ends at a quality level; raises `ModelCallError` if the pool fails."""
    quality = level / QUALITY_LEVELS
    graph = create_r2_graph(pool, router=router, quality=quality, outcomes=outcomes, limits=PATIENT)
    return asyncio.run(concurrently(partial(_ended, graph), tasks))


def standing(
    pool: ModelPool,
    router: Router,
    tasks: Sequence[Task],
    references: Sequence[float],
    outcomes: OutcomeCache | None,
) -> dict[int, Standing]:
    """Where a router stands at each of `LEVELS`; raises `ModelCallError` if the pool fails.

    `references` are dollars, of each task: the same for every router that is to be compared.
    """
    found = {}
    for level in LEVELS:
        done = ended(pool, router, tasks, outcomes, level)
        valid = [each for each in done if each is not None]
        found[level] = Standing(
            accuracy=sum(right for right, _ in valid) / len(done),
            net_usd=fmean(cost for _, cost in valid) if valid else 0.0,
            invalid=(len(done) - len(valid)) / len(done),
            worth=fmean(
                _worth(each, reference, level)
                for each, reference in zip(done, references, strict=True)
            ),
        )
    return found


def _worth(ended: Ended, reference: float, level: int) -> float:
    if ended is None:
        return INVALID
    right, cost = ended
    return allocator_reward(Rollout(right, cost, cost, reference), level) or WRONG


def references(
    pool: ModelPool, router: Router, tasks: Sequence[Task], outcomes: OutcomeCache | None
) -> list[float]:
    """What the oracle plan of each task costs, dollars, all of it on the strongest member."""
    rollouts = Rollouts(pool, router, outcomes)
    given = [rollouts.strongest(task.query, task.plan, task.answer) for task in tasks]
    done = asyncio.run(rollouts.run(given, [task.plan for task in tasks]))
    return [0.0 if rollout is None else rollout.reference for rollout in done]


def worth(found: Mapping[int, Standing]) -> float:
    """One number to compare routers by: the mean worth over the levels."""
    return fmean(at["worth"] for at in found.values())


def table(standings: Mapping[str, Mapping[int, Standing]]) -> str:
    """A Markdown table: a line for each router and level, cost in millionths of a dollar."""
    lines = [
        "| router | level | accuracy | net cost | invalid | worth |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in standings.items():
        lines += [
            f"| {name} | {level} | {at['accuracy']:.4f} | {1e6 * at['net_usd']:.3f} "
            f"| {at['invalid']:.4f} | {at['worth']:.4f} |"
            for level, at in found.items()
        ]
        lines.append(f"| {name} | mean | | | | {worth(found):.4f} |")
    return "\n".join(lines) + "\n"
