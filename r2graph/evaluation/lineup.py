"""What is compared, by name.

single-K            the whole task in one call of member K (1 is the cheapest)
cot-strongest       the strongest member writes plan, step answers and answer in one call
plan-K              the router's plans, every step on member K, nothing checked
random              the router's plans, a random member for each step, nothing checked
cheapest-first      the router's plans and checks, each step from the cheapest member up
router, rl          plans, allocation and checks of the router
sft                 the same of the router that it was trained from
router:PATH         the same of the router in a directory
oracle              the router's plans, each step on the cheapest member that gets it right,
                    known in hindsight; where none does, the cheapest is paid

`@Q` after the name of a router is another quality, `@all` each of the ten levels. `all` is every
method that is not of another router.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from r2graph.allocate import (
    QUALITY_LEVELS,
    Allocator,
    CheapestFirst,
    FixedAllocator,
    RandomAllocator,
)
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
OWN = ("router", "rl")  # the router of the line-up
PARENT = "sft"
ELSEWHERE = "router:"

_ROUTED = re.compile(rf"({ELSEWHERE}.+?|{'|'.join(OWN)}|{PARENT})(?:@([0-9]*\.?[0-9]+))?")


def routed(name: str) -> tuple[str, float | None] | None:
    """Which router a method runs, and at which quality if it says so; `None`: it runs none."""
    found = _ROUTED.fullmatch(name)
    return (found[1], float(found[2]) if found[2] else None) if found else None


@dataclass(frozen=True)
class Lineup:
    """What methods are made of; `right` has the right output of each step's prompt."""

    pool: ModelPool
    router: Router | None
    """Without one the graph's defaults plan, allocate and check."""
    quality: float
    right: Mapping[str, str]
    outcomes: OutcomeCache | None = None
    others: Mapping[str, Router] = field(default_factory=dict)
    """The routers of `sft` and `router:PATH`, by these names."""

    def method(self, name: str) -> Method:
        """Raises `ConfigError` for a name that means nothing."""
        if found := routed(name):
            family, quality = found
            router = self.router if family in OWN else self.others[family]
            return Routed(self._graph(PATIENT, router=router, quality=quality))
        match name.split("-"):
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
        router: Router | None = None,
        allocator: Allocator | None = None,
        verifier: Verifier | None = None,
        answer_verifier: Verifier | None = None,
        quality: float | None = None,
    ) -> R2Graph:
        return create_r2_graph(
            self.pool,
            router=router or self.router,
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
    """The names in a comma-separated list, with what `all` stands for in its place."""
    names = [name for part in text.split(",") for name in _expand(part.strip(), pool)]
    return list(dict.fromkeys(names))


def _expand(name: str, pool: ModelPool) -> Sequence[str]:
    if name.endswith("@all"):
        levels = range(1, QUALITY_LEVELS + 1)
        return [f"{name.removesuffix('all')}{level / QUALITY_LEVELS:g}" for level in levels]
    return all_methods(pool) if name == "all" else [name]


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"no method is called {name!r}: there are single-K, cot-strongest, plan-K, random, "
        "cheapest-first, router, rl, sft, router:PATH, oracle, and all; K is a rank in the pool; "
        "@QUALITY may follow a router"
    )
