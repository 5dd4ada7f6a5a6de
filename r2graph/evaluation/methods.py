"""Ways to answer a query, each with its bill."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, cast

from langchain_core.messages import HumanMessage

from r2graph.allocate import AllocateContext, Allocator, Choice
from r2graph.calls import ModelCall
from r2graph.door import Door
from r2graph.errors import ModelCallError, PlanError
from r2graph.evaluation.replies import charge_cpu
from r2graph.graph import R2Graph
from r2graph.limits import Limits, Meter
from r2graph.outcome_cache import OutcomeCache
from r2graph.plan import Subtask
from r2graph.pool import ModelSpec
from r2graph.state import R2Output

HOUR_S = 3600.0
PATIENT = Limits(deadline_s=HOUR_S, call_timeout_s=HOUR_S)  # results do not hang on the machine


@dataclass(frozen=True)
class Answer:
    """What a method says to a query, and its bill; `text` is `None` where there is no answer."""

    text: str | None
    pool_usd: Decimal
    net_usd: Decimal
    calls: int


class Method(Protocol):
    """One way to answer queries."""

    async def answer(self, query: str) -> Answer:
        """Answer one query; a model that fails is an outcome, not an error."""


class OneCall(Method):
    """The whole task in one call."""

    def __init__(self, spec: ModelSpec, outcomes: OutcomeCache | None = None) -> None:
        self.spec = spec
        self.outcomes = outcomes

    async def answer(self, query: str) -> Answer:
        call = ModelCall("executor", self.spec, [HumanMessage(self.prompt(query))])
        try:
            reply = await Door(Meter(PATIENT), outcomes=self.outcomes).acall(call)
        except ModelCallError:
            return Answer(None, Decimal(0), Decimal(0), 1)
        return Answer(self.read(reply.text), reply.cost, reply.cost, 1)

    def prompt(self, query: str) -> str:
        return query

    def read(self, text: str) -> str | None:
        return text


class ChainOfThought(OneCall):
    """The model thinks first; what follows its last `answer:` counts."""

    def prompt(self, query: str) -> str:
        return f"think: {query}"

    def read(self, text: str) -> str | None:
        answers = [line for line in text.splitlines() if line.startswith("answer:")]
        return answers[-1].removeprefix("answer:").strip() if answers else None


class Routed(Method):
    """A graph with some of the router's parts replaced."""

    def __init__(self, graph: R2Graph) -> None:
        self.graph = graph

    async def answer(self, query: str) -> Answer:
        try:
            result = await self.graph.ainvoke({"query": query})
        except (ModelCallError, PlanError) as error:
            # How it splits into pool, overhead and calls is not known: all of it counts as both.
            spent = Decimal(error.cost_usd or 0)
            return Answer(None, spent, spent, 0)
        net = Decimal(result["cost_usd"])
        overhead = Decimal(result["router_cost_usd"]) + Decimal(result["verifier_cost_usd"])
        calls = sum(usage["calls"] for usage in result["usage"].values())
        return Answer(result["answer"], net - overhead, net, calls)


class Hindsight(Allocator):
    """Gives each step of a query the member that was found for it, else the cheapest."""

    moves = False

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def allocate(self, steps: Sequence[Subtask], context: AllocateContext) -> list[Choice]:
        found, cheapest = self.found.get(context.query, {}), context.pool.names[0]
        return [Choice(found.get(step.id, cheapest), "hindsight") for step in steps]

    def escalate(self, member: str, context: AllocateContext) -> None:
        return None


class Oracle(Routed):
    """Searches for the cheapest sufficient members, then pays for a run with these alone."""

    def __init__(self, search: R2Graph, graph: R2Graph, hindsight: Hindsight) -> None:
        super().__init__(graph)
        self.search = search
        self.hindsight = hindsight

    async def answer(self, query: str) -> Answer:
        with suppress(ModelCallError, PlanError), charge_cpu():  # to nobody
            result = await self.search.ainvoke({"query": query})
            self.hindsight.found[query] = sufficient(cast(R2Output, result))
        return await super().answer(query)


def sufficient(result: R2Output) -> dict[str, str]:
    """For each step the member whose attempt passed, if any did."""
    steps = result["steps"]
    return {name: a["member"] for name, step in steps.items() for a in step["attempts"] if a["ok"]}
