"""How good a router is on held-out training queries: accuracy, net cost, worth by level."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TypedDict

from r2graph import ModelPool, OutcomeCache, create_r2_graph
from r2graph.allocate import QUALITY_LEVELS
from r2graph.errors import ModelCallError, PlanError
from r2graph.evaluation.methods import PATIENT
from r2graph.lab.benchmarks import grade
from r2graph.lab.task import Task
from r2graph.router import Router
from training.rewards import Rollout, allocator_reward
from training.rollouts import CONCURRENCY

LEVELS = (2, 5, 8, 10)


class Standing(TypedDict):
    """Means over the queries; dollars."""

    accuracy: float
    net_usd: float
    worth: float
    """The allocator's reward, router's own cost included."""


async def _rollout(graph: object, task: Task, gate: asyncio.Semaphore) -> Rollout | None:
    async with gate:
        try:
            result = await graph.ainvoke({"query": task.query})
        except ModelCallError:
            return None
        except PlanError:
            return Rollout(right=False, cost=0.0, reference=0.0)
    return Rollout(
        right=grade(task, result["answer"]),
        cost=float(result["cost_usd"]),
        reference=float(result["counterfactual_usd"]),
    )


async def _rollouts(graph: object, tasks: Sequence[Task]) -> list[Rollout]:
    gate = asyncio.Semaphore(CONCURRENCY)
    done = await asyncio.gather(*(_rollout(graph, task, gate) for task in tasks))
    return [rollout for rollout in done if rollout is not None]


def standing(
    pool: ModelPool, router: Router, tasks: Sequence[Task], outcomes: OutcomeCache | None
) -> dict[int, Standing]:
    """Where a router stands at each of `LEVELS`."""
    found = {}
    for level in LEVELS:
        quality = level / QUALITY_LEVELS
        graph = create_r2_graph(
            pool, router=router, quality=quality, outcomes=outcomes, limits=PATIENT
        )
        rollouts = asyncio.run(_rollouts(graph, tasks))
        found[level] = Standing(
            accuracy=fmean(rollout.right for rollout in rollouts),
            net_usd=fmean(rollout.cost for rollout in rollouts),
            worth=fmean(allocator_reward(rollout, level) or 0.0 for rollout in rollouts),
        )
    return found


def worth(found: Mapping[int, Standing]) -> float:
    """One number to compare routers by: the mean worth over the levels."""
    return fmean(at["worth"] for at in found.values())
