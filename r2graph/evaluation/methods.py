"""Ways to answer a query, each with its bill."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Protocol, cast
from uuid import NAMESPACE_OID, UUID, uuid5

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig

from r2graph.allocate import AllocateContext, Allocator, Choice
from r2graph.attempt import Books
from r2graph.bill import total
from r2graph.calls import Entry, Flow, ModelCall
from r2graph.door import Door, adrive
from r2graph.errors import LimitExceeded, ModelCallError, PlanError
from r2graph.evaluation.replies import charge_cpu
from r2graph.graph import R2Graph
from r2graph.ledger import Budget, Ledger
from r2graph.limits import Limits, Meter
from r2graph.outcome_cache import OutcomeCache
from r2graph.plan import Subtask
from r2graph.pool import ModelSpec
from r2graph.state import R2Output

HOUR_S = 3600.0
PATIENT = Limits(deadline_s=HOUR_S, call_timeout_s=HOUR_S)  # results do not hang on the machine
LOWERED = "lowered to fit the budget"  # the reason of a choice that the budget made
_RESULT = tuple(R2Output.__annotations__)


@dataclass(frozen=True)
class Answer:
    """What a method says to a query, and its bill; `text` is `None` where there is no answer."""

    text: str | None
    pool_usd: Decimal
    net_usd: Decimal
    calls: int
    failed: bool = False
    """Whether that is for models that could not be reached: it may be otherwise another time."""
    bill: Sequence[Entry] = field(default=(), compare=False, repr=False)
    """Its calls, where a run did not fail."""
    result: R2Output | None = field(default=None, compare=False, repr=False)
    """Of the graph, where one was run."""


class Method(Protocol):
    """One way to answer queries."""

    async def answer(self, query: str) -> Answer:
        """Answer one query; a model that fails is an outcome, not an error.

        Raises `LimitExceeded` if the money of the whole evaluation does not reach.
        """


@dataclass(frozen=True)
class Purse:
    """What an evaluation may spend on calls, and the ledger that sees to it."""

    ledger: Ledger
    budget: Budget | None
    name: str
    """Of the evaluation, or of a part of it."""

    def part(self, name: str) -> Purse:
        """For one method, say."""
        return replace(self, name=f"{self.name}\n{name}")

    def run_id(self, query: str) -> UUID:
        """The same whenever the query is done again, so that its calls are found in the ledger."""
        return uuid5(NAMESPACE_OID, f"{self.name}\n{query}")

    def books(self, query: str) -> Books:
        """For the calls of one query."""
        return Books(self.ledger, str(self.run_id(query)), budget=self.budget)


class Calling(Method):
    """A method that makes its calls itself: a subclass writes `solve`."""

    def __init__(
        self,
        outcomes: OutcomeCache | None = None,
        *,
        purse: Purse | None = None,
        limits: Limits = PATIENT,
    ) -> None:
        self.outcomes = outcomes
        self.purse = purse
        self.limits = limits

    def solve(self, query: str) -> Flow[str | None]:
        """The answer, `None` if there is none."""
        raise NotImplementedError

    async def answer(self, query: str) -> Answer:
        books = self.purse.books(query) if self.purse else None
        door = Door(Meter(self.limits), outcomes=self.outcomes, books=books)
        text, failed = None, False
        try:
            text = await adrive(self.solve(query), door)
        except ModelCallError:
            failed = True
        pool_usd = total(entry for entry in door.bill if entry["role"] == "executor")
        return Answer(text, pool_usd, total(door.bill), len(door.bill), failed, door.bill)


class OneCall(Calling):
    """The whole task in one call."""

    def __init__(
        self,
        spec: ModelSpec,
        outcomes: OutcomeCache | None = None,
        *,
        purse: Purse | None = None,
        limits: Limits = PATIENT,
    ) -> None:
        super().__init__(outcomes, purse=purse, limits=limits)
        self.spec = spec

    def solve(self, query: str) -> Flow[str | None]:
        reply = yield ModelCall("executor", self.spec, [HumanMessage(self.prompt(query))])
        return self.read(reply.text)

    def prompt(self, query: str) -> str:
        return query

    def read(self, text: str) -> str | None:
        return text


class LabChainOfThought(OneCall):
    """A model of the lab thinks first; what follows its last `answer:` counts."""

    def prompt(self, query: str) -> str:
        return f"think: {query}"

    def read(self, text: str) -> str | None:
        answers = [line for line in text.splitlines() if line.startswith("answer:")]
        return answers[-1].removeprefix("answer:").strip() if answers else None


STEP_BY_STEP = "\n\nThink step by step before you answer."


class ChainOfThought(OneCall):
    """Zero-shot chain of thought (Kojima et al. 2022): the model is told to think step by step.

    What the answer is, the query says how to mark and its grader finds.
    """

    def prompt(self, query: str) -> str:
        return query + STEP_BY_STEP


class Routed(Method):
    """A graph with some of the router's parts replaced."""

    def __init__(self, graph: R2Graph, purse: Purse | None = None) -> None:
        self.graph = graph
        self.purse = purse

    async def answer(self, query: str) -> Answer:
        try:
            result = await self.graph.ainvoke(
                {"query": query}, _config(query, self.purse), output_keys=[*_RESULT, "bill"]
            )
        except (ModelCallError, PlanError) as error:
            # How it splits into pool, overhead and calls is not known: all of it counts as both.
            spent = Decimal(error.cost_usd or 0)
            return Answer(None, spent, spent, 0, isinstance(error, ModelCallError))
        if is_cut_short(cast(R2Output, result)):
            raise LimitExceeded("pool_budget")
        net = Decimal(result["cost_usd"])
        overhead = Decimal(result["router_cost_usd"]) + Decimal(result["verifier_cost_usd"])
        calls = sum(usage["calls"] for usage in result["usage"].values())
        return Answer(
            result["answer"],
            net - overhead,
            net,
            calls,
            bill=result["bill"],
            result=cast(R2Output, result),
        )


def _config(query: str, purse: Purse | None) -> RunnableConfig:
    return {"run_id": purse.run_id(query)} if purse else {}


def is_cut_short(result: R2Output) -> bool:
    """Whether the money of the whole evaluation ran out, so that the result means nothing."""
    lowered = any(choice["reason"] == LOWERED for choice in result["allocation"].values())
    return lowered or result["stop_reason"] == "pool_budget"


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

    def __init__(
        self, search: R2Graph, graph: R2Graph, hindsight: Hindsight, purse: Purse | None = None
    ) -> None:
        super().__init__(graph, purse)
        self.search = search
        self.hindsight = hindsight

    async def answer(self, query: str) -> Answer:
        with suppress(ModelCallError, PlanError), charge_cpu():  # to nobody
            config = _config(query, self.purse and self.purse.part("search"))
            result = await self.search.ainvoke({"query": query}, config)
            self.hindsight.found[query] = sufficient(cast(R2Output, result))
        return await super().answer(query)


def sufficient(result: R2Output) -> dict[str, str]:
    """For each step the member whose attempt passed, if any did."""
    steps = result["steps"]
    return {name: a["member"] for name, step in steps.items() for a in step["attempts"] if a["ok"]}
