"""Rollouts: plans and allocations that a policy wrote, run through the deployed graph.

Checks and escalation are on, failed attempts are billed, every call goes through the outcome cache
at its original cost. The policy's text is handed to the graph by a decomposer and an allocator that
give back what they were given; whatever is not trained is the router's, second thoughts about a
step whose references have been filled in among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from r2graph import ModelPool, OutcomeCache, create_r2_graph
from r2graph.allocate import QUALITY_LEVELS, AllocateContext, Allocator, Choice
from r2graph.calls import Flow
from r2graph.decompose import DecomposeContext, Decomposer
from r2graph.errors import ModelCallError
from r2graph.evaluation.methods import PATIENT
from r2graph.plan import Plan, Subtask
from r2graph.router import Router
from training.concurrently import concurrently
from training.rewards import Rollout

Slots = tuple[tuple[int, int | None], ...]
"""As `parse_slots` reads them: of each step the slot, and the level of its check."""


@dataclass(frozen=True)
class Given:
    """A run to make: what the policy decided, and what a right answer is."""

    query: str
    plan: Plan
    gold: str
    level: int
    slots: Slots | None = None
    """`None` leaves the allocation to the router."""
    revised: bool = True
    """Whether the router is asked about a step again, as when deployed."""


_GIVEN: ContextVar[Given] = ContextVar("_GIVEN")


class GivenPlan(Decomposer):
    """The plan of the run at hand."""

    def decompose(self, query: str, context: DecomposeContext) -> Plan:
        return _GIVEN.get().plan


class GivenSlots(Allocator):
    """The slots of the run at hand, and those of another allocator for what is asked again."""

    def __init__(self, router: Allocator) -> None:
        self.router = router
        self.revises = router.revises
        self.n_slots = router.n_slots

    def allocate(
        self, steps: Sequence[Subtask], context: AllocateContext
    ) -> Flow[list[Choice]] | list[Choice]:
        given = _GIVEN.get()
        again = tuple(steps) != given.plan.subtasks
        if given.slots is None or (again and given.revised):
            return self.router.allocate(steps, context)
        chosen = dict(zip((step.id for step in given.plan.subtasks), given.slots, strict=True))
        return [self._choice(*chosen[step.id], context.pool) for step in steps]

    def _choice(self, slot: int, check: int | None, pool: ModelPool) -> Choice:
        return Choice(pool.slot_to_member(slot, self.n_slots).name, "given", slot, check=check)


Ended = tuple[bool, float, float]
"""Whether a run's answer was right, its dollars, and those of them that executed steps."""


def rollout(ended: Ended | None, reference: Ended | None) -> Rollout | None:
    return ended and reference and Rollout(*ended, reference[2])


class Rollouts:
    """Runs through the graph; the same run is made once, for nothing in it is drawn."""

    def __init__(self, pool: ModelPool, router: Router, outcomes: OutcomeCache | None) -> None:
        self.n_slots = router.card.n_slots

        self._graph: Any = create_r2_graph(
            pool,
            router=router,
            decomposer=GivenPlan(),
            allocator=GivenSlots(router.allocator),
            outcomes=outcomes,
            limits=PATIENT,
        )
        self._known: dict[Given, Ended] = {}
        self.hits = self.misses = 0

    async def run(self, wanted: Sequence[Given], plans: Sequence[Plan]) -> list[Rollout | None]:
        """A rollout for each; `None` where the pool itself failed.

        `plans` says of each what the reference is: that plan, all of it on the strongest member.
        """
        strongest = [
            self.strongest(given.query, plan, given.gold)
            for given, plan in zip(wanted, plans, strict=True)
        ]
        new = [g for g in dict.fromkeys([*wanted, *strongest]) if g not in self._known]
        self.misses += len(new)
        self.hits += 2 * len(wanted) - len(new)
        done = dict(zip(new, await self.make(new), strict=True))
        self._known |= {given: ended for given, ended in done.items() if ended is not None}
        done |= self._known  # a failed run is none to remember: the pool may be up again
        return [rollout(done[a], done[b]) for a, b in zip(wanted, strongest, strict=True)]

    def strongest(self, query: str, plan: Plan, gold: str) -> Given:
        """The run of a plan with all of it on the strongest member."""
        slots = ((self.n_slots, None),) * len(plan.subtasks)
        return Given(query, plan, gold, QUALITY_LEVELS, slots, revised=False)

    async def make(self, runs: Sequence[Given]) -> list[Ended | None]:
        return await concurrently(self._run, runs)

    async def _run(self, given: Given) -> Ended | None:
        _GIVEN.set(given)  # seen by this run alone: each runs in a task of its own
        try:
            result = await self._graph.ainvoke(
                {"query": given.query}, context={"quality": given.level / QUALITY_LEVELS}
            )
        except ModelCallError:
            return None
        cost = Decimal(result["cost_usd"])
        pool_cost = cost - Decimal(result["router_cost_usd"]) - Decimal(result["verifier_cost_usd"])
        right = result["answer"].split() == given.gold.split()
        return right, float(cost), float(pool_cost)
