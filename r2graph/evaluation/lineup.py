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

from r2graph.allocate import Allocator, CheapestFirst, FixedAllocator, RandomAllocator
from r2graph.errors import ConfigError
from r2graph.evaluation.methods import (
    PATIENT,
    ChainOfThought,
    Hindsight,
    Method,
    OneCall,
    Oracle,
    Routed,
)
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.limits import Limits
from r2graph.outcome_cache import OutcomeCache
from r2graph.pool import ModelPool, ModelSpec
from r2graph.router import Router
from r2graph.verify import Attempt, CallableVerifier, Verifier

COT = "cot-strongest"


@dataclass(frozen=True)
class Lineup:
    """What methods are made of; `right` has the right output of each step's prompt."""

    pool: ModelPool
    router: Router | None
    """Without one the graph's defaults plan, allocate and check."""
    quality: float
    right: Mapping[str, str]
    outcomes: OutcomeCache | None = None

    def method(self, name: str) -> Method:
        """Raises `ConfigError` for a name that means nothing."""
        match re.split("[-@]", name):
            case ["single", rank]:
                return OneCall(self._member(name, rank), self.outcomes)
            case ["cot", "strongest"]:
                return ChainOfThought(self.pool[-1], self.outcomes)
            case ["plan", rank]:
                return Routed(self._unchecked(FixedAllocator(self._member(name, rank).name)))
            case ["random"]:
                return Routed(self._unchecked(RandomAllocator()))
            case ["cheapest", "first"]:
                return Routed(self._graph(self._climbing(), allocator=CheapestFirst()))
            case ["router", *quality]:
                return Routed(self._graph(PATIENT, quality=_quality(name, quality)))
            case ["oracle"]:
                return self._oracle()
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
        answer_verifier: Verifier | None = None,
        quality: float | None = None,
    ) -> R2Graph:
        return create_r2_graph(
            self.pool,
            router=self.router,
            allocator=allocator,
            verifier=verifier,
            answer_verifier=answer_verifier,
            quality=self.quality if quality is None else quality,
            limits=limits,
            outcomes=self.outcomes,
        )

    def _unchecked(self, allocator: Allocator) -> R2Graph:
        nothing = CallableVerifier(lambda attempt: None)
        return self._graph(PATIENT, allocator=allocator, verifier=nothing, answer_verifier=nothing)

    def _oracle(self) -> Oracle:
        once = self._climbing().model_copy(update={"max_rounds": 1})
        known, hindsight = CallableVerifier(self._is_right), Hindsight()
        search = self._graph(once, allocator=CheapestFirst(), verifier=known)
        return Oracle(search, self._unchecked(hindsight), hindsight)

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
