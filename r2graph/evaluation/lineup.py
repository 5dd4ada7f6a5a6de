"""What is compared, by name.

single-K            the whole task in one call of member K (1 is the cheapest)
cot-K, cot-strongest
                    member K, or the strongest, thinks step by step and answers, in one call; the
                    lab's models write plan, step answers and answer, as they were trained to
tot-K, tot-strongest
                    tree of thoughts with N = 2: two thoughts, a vote, the better is continued
datashunt           the cheapest member's answer if it is sure of it, else the strongest's
cascade             the same over the whole pool, from the cheapest up (FrugalGPT, AutoMix)
dot                 division of thoughts: a plan, and for each step the cheapest member or the
                    strongest, whichever a prompted model says its difficulty asks for
plan-K              the router's plans, every step on member K, nothing checked
random              the router's plans, a random member for each step, nothing checked
cheapest-first      the router's plans and checks, each step from the cheapest member up
router, rl          plans, allocation and checks of the router
sft                 the same of the router that it was trained from
router:PATH         the same of the router in a directory
oracle              the router's plans, each step on the cheapest member that gets it right,
                    known in hindsight; where none does, the cheapest is paid. Of members that
                    follow instructions no step's right output is known: there it is the
                    cheapest member that gets the whole query right

Sure is a model whose mean log-probability of a token is at least -.05; one that reports none is
asked whether its answer is right. Those that choose one member for the whole query from what all
members say (best-single, random:METHOD, knn, bow, threshold) are described in `query_routers`;
where they are asked for, every single-K is run.

`@Q` after the name of a router or of one that learns is another quality, `@all` each of the ten
levels. `all` is every method that is not of another router, and one of each that is described
above if the pool's members follow instructions (its language is `any`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from r2graph.allocate import (
    QUALITY_LEVELS,
    Allocator,
    CheapestFirst,
    CheckpointAllocator,
    FixedAllocator,
    PromptedAllocator,
    RandomAllocator,
)
from r2graph.decompose import CheckpointDecomposer, Decomposer, PromptedDecomposer, SingleDecomposer
from r2graph.errors import ConfigError, NeedsInstructionsError
from r2graph.evaluation.baselines import SelfVerifier, TreeOfThoughts
from r2graph.evaluation.methods import (
    PATIENT,
    ChainOfThought,
    Hindsight,
    LabChainOfThought,
    Method,
    OneCall,
    Oracle,
    Purse,
    Routed,
)
from r2graph.evaluation.query_routers import BEST, COIN, LEARNED, ORACLE, is_query_router, learned
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.limits import Limits
from r2graph.outcome_cache import OutcomeCache
from r2graph.pool import ModelPool, ModelSpec
from r2graph.router import Router
from r2graph.verify import AnyOf, Attempt, CallableVerifier, ConfidenceVerifier, Verifier

COT = "cot-strongest"
OWN = ("router", "rl")  # the router of the line-up
PARENT = "sft"
ELSEWHERE = "router:"
SURE = -0.05  # as the graph's own default has it
NOTHING = CallableVerifier(lambda attempt: None)
# Results hang on the machine no more than a model of somebody else's can make them.
WORKING = PATIENT.model_copy(update={"deadline_s": 1800.0, "call_timeout_s": 300.0})

_ROUTED = re.compile(rf"({ELSEWHERE}.+?|{'|'.join(OWN)}|{PARENT})(?:@([0-9]*\.?[0-9]+))?")


def routed(name: str) -> tuple[str, float | None] | None:
    """Which router a method runs, and at which quality if it says so; `None`: it runs none."""
    found = _ROUTED.fullmatch(name)
    return (found[1], float(found[2]) if found[2] else None) if found else None


def identities(router: Router | None) -> list[str]:
    """Of a router's own models."""
    parts = [router.decomposer, router.allocator] if router else []
    return [
        part.model.identity
        for part in parts
        if isinstance(part, CheckpointDecomposer | CheckpointAllocator)
    ]


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
    purse: Purse | None = None
    max_tokens: int = PATIENT.max_output_tokens
    """Tokens that one call may generate."""

    @property
    def limits(self) -> Limits:
        limits = WORKING if follows_instructions(self.pool) else PATIENT
        return limits.model_copy(update={"max_output_tokens": self.max_tokens})

    def method(self, name: str) -> Method:
        """Raises `ConfigError` for a name that means nothing, or nothing to this pool."""
        if self.purse is None:
            return self._method(name)
        found = routed(name)
        models = identities(self.others.get(found[0])) if found else []  # a path says not which
        return replace(self, purse=self.purse.part(" ".join([name, *models])))._method(name)

    def _method(self, name: str) -> Method:
        if found := routed(name):
            family, quality = found
            router = self.router if family in OWN else self.others[family]
            return self._routed(self._graph(self.limits, router=router, quality=quality))
        match name.split("-"):
            case ["single", rank]:
                return self._calling(OneCall, name, rank)
            case ["cot", rank]:
                follows = follows_instructions(self.pool)
                return self._calling(ChainOfThought if follows else LabChainOfThought, name, rank)
            case ["tot", rank]:
                self._need_instructions(name)
                return self._calling(TreeOfThoughts, name, rank)
            case ["datashunt"]:
                return self._routed(self._cascade(self._two()))
            case ["cascade"]:
                return self._routed(self._cascade(self.pool))
            case ["dot"]:
                self._need_instructions(name)
                return self._routed(self._division())
            case ["plan", rank]:
                return self._routed(self._unchecked(FixedAllocator(self._member(name, rank).name)))
            case ["random"]:
                return self._routed(self._unchecked(RandomAllocator()))
            case ["cheapest", "first"]:
                return self._routed(self._graph(self._climbing(), allocator=CheapestFirst()))
            case ["oracle"]:
                return self._oracle()
        raise _unknown(name)

    def _calling(self, kind: type[OneCall], name: str, rank: str) -> OneCall:
        spec = self.pool[-1] if rank == "strongest" else self._member(name, rank)
        return kind(spec, self.outcomes, purse=self.purse, limits=self.limits)

    def _routed(self, graph: R2Graph) -> Routed:
        return Routed(graph, self.purse)

    def _two(self) -> ModelPool:
        """The cheapest member and the strongest."""
        return self.pool.without(*self.pool.names[1:-1])

    def _cascade(self, pool: ModelPool) -> R2Graph:
        """The whole query on one member after the other, until one is sure."""
        sure = ConfidenceVerifier(SURE)
        check = AnyOf(sure, SelfVerifier()) if follows_instructions(pool) else sure
        return self._graph(
            self._climbing(),
            pool=pool,
            decomposer=SingleDecomposer(),
            allocator=CheapestFirst(),
            verifier=check,
            answer_verifier=NOTHING,
        )

    def _division(self) -> R2Graph:
        return self._graph(
            self.limits,
            pool=self._two(),
            decomposer=PromptedDecomposer(single_below=0),
            allocator=PromptedAllocator(),
            verifier=NOTHING,
            answer_verifier=NOTHING,
        )

    def _need_instructions(self, name: str) -> None:
        if not follows_instructions(self.pool):
            raise NeedsInstructionsError(name, self.pool.name)

    def _climbing(self) -> Limits:
        """Limits that let a step go all the way up the pool."""
        ranks, limits = len(self.pool), self.limits
        return limits.model_copy(
            update={"max_attempts_per_step": ranks, "max_calls": limits.max_calls * ranks}
        )

    def _graph(
        self,
        limits: Limits,
        *,
        pool: ModelPool | None = None,
        router: Router | None = None,
        decomposer: Decomposer | None = None,
        allocator: Allocator | None = None,
        verifier: Verifier | None = None,
        answer_verifier: Verifier | None = None,
        quality: float | None = None,
    ) -> R2Graph:
        return create_r2_graph(
            pool or self.pool,
            router=router or self.router,
            decomposer=decomposer,
            allocator=allocator,
            verifier=verifier,
            answer_verifier=answer_verifier,
            quality=self.quality if quality is None else quality,
            limits=limits,
            pool_budget=self.purse.budget if self.purse else None,
            ledger=self.purse.ledger if self.purse else None,
            outcomes=self.outcomes,
        )

    def _unchecked(self, allocator: Allocator) -> R2Graph:
        return self._graph(
            self.limits, allocator=allocator, verifier=NOTHING, answer_verifier=NOTHING
        )

    def _oracle(self) -> Oracle:
        once = self._climbing().model_copy(update={"max_rounds": 1})
        known, hindsight = CallableVerifier(self._is_right), Hindsight()
        search = self._graph(once, allocator=CheapestFirst(), verifier=known)
        return Oracle(search, self._unchecked(hindsight), hindsight, self.purse)

    def _is_right(self, attempt: Attempt) -> bool:
        """Spacing aside; a prompt that is no step of an oracle plan has no right output."""
        right = self.right.get(attempt.task)
        return right is not None and attempt.output.split() == right.split()

    def _member(self, name: str, number: str) -> ModelSpec:
        if not number.isdecimal() or not 1 <= int(number) <= len(self.pool):
            raise _unknown(name)
        return self.pool[int(number) - 1]


def follows_instructions(pool: ModelPool) -> bool:
    """Whether members can be prompted: others answer what they were trained on, and no prompts."""
    return pool.language == "any"


def is_derived(name: str, pool: ModelPool) -> bool:
    """Whether a method calls no model: its outcomes follow from those of the single members."""
    return is_query_router(name) and (name != ORACLE or follows_instructions(pool))


def swept(name: str) -> tuple[str, float | None] | None:
    """The family of a method that has a quality, and the quality if it says so."""
    return routed(name) or learned(name)


def singles(pool: ModelPool) -> list[str]:
    return [f"single-{k}" for k in range(1, len(pool) + 1)]


def all_methods(pool: ModelPool) -> list[str]:
    """The names that `all` stands for."""
    numbers = range(1, len(pool) + 1)
    whole = [*singles(pool), COT]
    steps = [*(f"plan-{k}" for k in numbers), "random", "cheapest-first", "router"]
    if follows_instructions(pool):
        whole += ["tot-strongest", "datashunt", "cascade", *LEARNED, BEST, f"{COIN}router"]
        steps = ["dot", *steps]
    return [*whole, *steps, ORACLE]


def chosen_methods(text: str, pool: ModelPool) -> list[str]:
    """The names in a comma-separated list, with what `all` stands for in its place, after what
    they hang on and the list leaves out.
    """
    names = [name for part in text.split(",") for name in _expand(part.strip(), pool)]
    derived = [name for name in names if is_derived(name, pool)]
    needed = singles(pool) if derived else []
    needed += [name.removeprefix(COIN) for name in derived if name.startswith(COIN)]
    return list(dict.fromkeys([*(name for name in needed if name not in names), *names]))


def _expand(name: str, pool: ModelPool) -> Sequence[str]:
    if name.endswith("@all"):
        levels = range(1, QUALITY_LEVELS + 1)
        return [f"{name.removesuffix('all')}{level / QUALITY_LEVELS:g}" for level in levels]
    return all_methods(pool) if name == "all" else [name]


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"no method is called {name!r}: there are single-K, cot-K, tot-K, datashunt, cascade, dot, "
        "plan-K, random, cheapest-first, router, rl, sft, router:PATH, best-single, random:METHOD, "
        "knn, bow, threshold, oracle, and all; K is a rank in the pool, with cot and tot also "
        "`strongest`; @QUALITY may follow a router, knn, bow and threshold"
    )
