"""What is compared, by name.

single-K            the whole task in one call of member K (1 is the cheapest)
cot-strongest       the strongest member writes plan, step answers and answer in one call
plan-K              the router's plans, every step on member K, nothing checked
random              the router's plans, a random member for each step, nothing checked
cheapest-first      the router's plans and checks, each step from the cheapest member up
router, router@Q    plans, allocation and checks of the router; Q is another quality
oracle              the router's plans, each step on the cheapest member that gets it right,
                    known in hindsight; where none does, the cheapest is paid
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, cast

from langchain_core.messages import HumanMessage

from r2graph.allocate import Allocator, CheapestFirst, FixedAllocator, RandomAllocator
from r2graph.calls import Door, ModelCall
from r2graph.errors import ConfigError, ModelCallError, PlanError
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.limits import Limits, Meter
from r2graph.pool import ModelPool, ModelSpec
from r2graph.router import Router
from r2graph.state import R2Output
from r2graph.verify import Attempt, CallableVerifier, Verifier

HOUR_S = 3600.0
PATIENT = Limits(deadline_s=HOUR_S, call_timeout_s=HOUR_S)  # results do not hang on the machine
COT = "cot-strongest"


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

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    async def answer(self, query: str) -> Answer:
        call = ModelCall("executor", self.spec, [HumanMessage(self.prompt(query))])
        try:
            reply = await Door(Meter(PATIENT)).acall(call)
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
            # How this splits into pool and overhead is not known: all of it counts as both.
            spent = Decimal(error.cost_usd or 0)
            return Answer(None, spent, spent, 0)
        return self.read(cast(R2Output, result))

    def read(self, result: R2Output) -> Answer:
        net = Decimal(result["cost_usd"])
        overhead = Decimal(result["router_cost_usd"]) + Decimal(result["verifier_cost_usd"])
        calls = sum(usage["calls"] for usage in result["usage"].values())
        return Answer(result["answer"], net - overhead, net, calls)


class Oracle(Routed):
    """Cheapest first with a check that knows the right outputs; pays one attempt a step."""

    def read(self, result: R2Output) -> Answer:
        whole = super().read(result)
        attempts = [step["attempts"] for step in result["steps"].values() if step["attempts"]]
        paid = [next((a for a in tried if a["ok"]), tried[0]) for tried in attempts]
        pool = sum((Decimal(attempt["cost_usd"]) for attempt in paid), Decimal(0))
        calls = whole.calls - sum(len(tried) - 1 for tried in attempts)
        return Answer(whole.text, pool, pool + whole.net_usd - whole.pool_usd, calls)


@dataclass(frozen=True)
class Lineup:
    """What methods are made of; `right` has the right output of each step's prompt."""

    pool: ModelPool
    router: Router | None
    """Without one the graph's defaults plan, allocate and check."""
    quality: float
    right: Mapping[str, str]

    def method(self, name: str) -> Method:
        """Raises `ConfigError` for a name that means nothing."""
        match re.split("[-@]", name):
            case ["single", rank]:
                return OneCall(self._member(name, rank))
            case ["cot", "strongest"]:
                return ChainOfThought(self.pool[-1])
            case ["plan", rank]:
                return self._unchecked(FixedAllocator(self._member(name, rank).name))
            case ["random"]:
                return self._unchecked(RandomAllocator())
            case ["cheapest", "first"]:
                return Routed(self._graph(self._climbing(), allocator=CheapestFirst()))
            case ["router", *quality]:
                return Routed(self._graph(PATIENT, quality=_quality(name, quality)))
            case ["oracle"]:
                once = self._climbing().model_copy(update={"max_rounds": 1})
                known = CallableVerifier(self._is_right)
                return Oracle(self._graph(once, allocator=CheapestFirst(), verifier=known))
        raise _unknown(name)

    def _climbing(self) -> Limits:
        """Limits that let a step go all the way up the pool."""
        ranks = len(self.pool)
        return PATIENT.model_copy(
            update={"max_attempts_per_step": ranks, "max_calls": PATIENT.max_calls * ranks}
        )

    def _graph(
        self,
        limits: Limits,
        *,
        allocator: Allocator | None = None,
        verifier: Verifier | None = None,
        quality: float | None = None,
    ) -> R2Graph:
        return create_r2_graph(
            self.pool,
            router=self.router,
            allocator=allocator,
            verifier=verifier,
            quality=self.quality if quality is None else quality,
            limits=limits,
        )

    def _unchecked(self, allocator: Allocator) -> Method:
        nothing = CallableVerifier(lambda attempt: None)
        return Routed(self._graph(PATIENT, allocator=allocator, verifier=nothing))

    def _is_right(self, attempt: Attempt) -> bool:
        """Spacing aside; a prompt that is no step of an oracle plan has no right output."""
        right = self.right.get(attempt.task)
        return right is not None and attempt.output.split() == right.split()

    def _member(self, name: str, number: str) -> ModelSpec:
        if not number.isdecimal() or not 1 <= int(number) <= len(self.pool):
            raise _unknown(name)
        return self.pool[int(number) - 1]


def _quality(name: str, given: list[str]) -> float | None:
    try:
        return float(*given) if given else None
    except (TypeError, ValueError):
        raise _unknown(name) from None


def all_methods(pool: ModelPool) -> list[str]:
    """The names that `all` stands for."""
    numbers = range(1, len(pool) + 1)
    return [
        *(f"single-{k}" for k in numbers),
        COT,
        *(f"plan-{k}" for k in numbers),
        "random",
        "cheapest-first",
        "router",
        "oracle",
    ]


def chosen_methods(text: str, pool: ModelPool) -> list[str]:
    """The names in a comma-separated list, in which `all` may stand for all of them."""
    names = [name for part in text.split(",") for name in _expand(part.strip(), pool)]
    return list(dict.fromkeys(names))


def _expand(name: str, pool: ModelPool) -> Sequence[str]:
    return all_methods(pool) if name == "all" else [name]


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"no method is called {name!r}: there are single-K, cot-strongest, plan-K, random, "
        "cheapest-first, router, router@QUALITY, oracle, and all; K is a rank in the pool"
    )
