"""Allocators: which member of the pool each subtask goes to, and where it goes when that fails."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from random import Random
from typing import Protocol

from langchain_core.messages import HumanMessage, SystemMessage

from r2graph.calls import Flow, ModelCall, Reply, ask, worst_usage
from r2graph.errors import AllocationError, ConfigError
from r2graph.plan import Subtask, fence
from r2graph.pool import N_SLOTS, ModelPool, ModelSpec


@dataclass(frozen=True, slots=True)
class Choice:
    """The member for one step, and why."""

    member: str
    reason: str
    slot: int | None = None
    """The router's capability slot, where a router chose."""
    probabilities: Mapping[str, float] | None = None
    """How likely each member was to be chosen."""
    propensity: float | None = None
    """The probability with which `member` was drawn; `None` where nothing was drawn."""
    check: int | None = None
    """The quality level, 1 to 10, at which outputs of the step are checked; `None`: the run's."""


@dataclass(frozen=True, slots=True)
class AllocateContext:
    """What an allocator may look at besides the steps."""

    pool: ModelPool
    query: str
    quality: float = 0.9
    budget_left: Decimal | None = None


class Allocator(Protocol):
    """Chooses a member for each step; subclass it and write `allocate`."""

    revises: bool = False
    """Whether to ask again for a single step once outputs have been filled into its text."""
    n_slots: int = N_SLOTS
    """How many capability slots its choices speak of."""
    moves: bool = True
    """Whether a step without any output moves down too, when all above it are down."""

    def allocate(
        self, steps: Sequence[Subtask], context: AllocateContext
    ) -> Flow[list[Choice]] | list[Choice]:
        """A choice for each step, in order, or a flow that finds them.

        After an `AllocationError` the graph starts each step on the cheapest member.
        """

    def escalate(self, member: str, context: AllocateContext) -> str | None:
        """The member to try after `member` failed: the next dearer one; `None` gives up."""
        rank = context.pool.rank(member)
        return context.pool.names[rank] if rank < len(context.pool) else None


class CheapestFirst(Allocator):
    """Starts each step on the cheapest member; failures move it up."""

    def allocate(self, steps: Sequence[Subtask], context: AllocateContext) -> list[Choice]:
        return [Choice(context.pool.names[0], "cheapest first") for _ in steps]


class StrongestAllocator(Allocator):
    """Gives each step to the strongest member."""

    def allocate(self, steps: Sequence[Subtask], context: AllocateContext) -> list[Choice]:
        return [Choice(context.pool.names[-1], "strongest") for _ in steps]


class FixedAllocator(Allocator):
    """Gives every step to one member, or each step to its own, by id; never moves a step."""

    moves = False

    def __init__(self, member: str | Mapping[str, str]) -> None:
        self.member = member

    def allocate(self, steps: Sequence[Subtask], context: AllocateContext) -> list[Choice]:
        return [Choice(self._member(step.id), "fixed") for step in steps]

    def _member(self, step: str) -> str:
        if isinstance(self.member, str):
            return self.member
        if step not in self.member:
            raise ConfigError(f"the fixed allocation names no member for step {step}")
        return self.member[step]

    def escalate(self, member: str, context: AllocateContext) -> str | None:
        return None


class RandomAllocator(Allocator):
    """Draws a member for each step, the same for the same seed and query; never moves a step."""

    moves = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def allocate(self, steps: Sequence[Subtask], context: AllocateContext) -> list[Choice]:
        draw = Random(f"{self.seed} {context.query}")
        names = context.pool.names
        return [Choice(draw.choice(names), "random", propensity=1 / len(names)) for _ in steps]

    def escalate(self, member: str, context: AllocateContext) -> str | None:
        return None


class CheckpointAllocator(Allocator):
    """A model trained to read a quality level and steps, and to write a slot for each: `m1 m4`.

    Slots are capability ranks 1 to `n_slots`, spread over whatever members the pool has. After a
    slot may stand the quality level at which the step is to be checked, `m1 q3 m4 q9`; otherwise
    that of the run decides.
    """

    revises = True

    def __init__(self, model: ModelSpec, *, n_slots: int = N_SLOTS) -> None:
        self.model = model
        self.n_slots = n_slots

    def allocate(self, steps: Sequence[Subtask], context: AllocateContext) -> Flow[list[Choice]]:
        level = quality_level(context.quality)
        call = ModelCall(
            "allocator",
            self.model,
            [HumanMessage(slots_prompt([step.text for step in steps], level))],
            max_tokens=TOKENS_A_STEP * len(steps),
            temperature=0.0,
            top_logprobs=self.n_slots,
        )
        reply = yield from ask(call)
        slots = parse_slots(reply.text, len(steps))
        spread = self._distributions(reply, len(steps), context.pool)
        return [
            Choice(
                context.pool.slot_to_member(slot, self.n_slots).name,
                f"router, quality level {level}",
                slot,
                probabilities,
                check=check,
            )
            for (slot, check), probabilities in zip(slots, spread, strict=True)
        ]

    def _distributions(
        self, reply: Reply, n_steps: int, pool: ModelPool
    ) -> list[dict[str, float]] | list[None]:
        """For each step, how likely each member was; a model without log-probabilities: `None`s."""
        tops = [top for top in reply.top_logprobs if top and _slot(max(top, key=top.__getitem__))]
        if len(tops) != n_steps:
            return [None] * n_steps
        return [self._distribution(top, pool) for top in tops]

    def _distribution(self, top: Mapping[str, float], pool: ModelPool) -> dict[str, float]:
        weights = dict.fromkeys(pool.names, 0.0)
        for token, logprob in top.items():
            slot = _slot(token)
            if slot and slot <= self.n_slots:
                weights[pool.slot_to_member(slot, self.n_slots).name] += math.exp(min(0.0, logprob))
        total = sum(weights.values()) or 1.0
        return {name: round(weight / total, 6) for name, weight in weights.items()}


def slots_prompt(texts: Sequence[str], level: int) -> str:
    """What a trained allocator is asked for some steps at a quality level."""
    lines = [f"s{i}: {' '.join(text.split())}" for i, text in enumerate(texts, 1)]
    return "\n".join([f"q{level}", *lines])


def parse_slots(text: str, n: int) -> list[tuple[int, int | None]]:
    """What a trained allocator wrote: `n` slots, each with the quality level after it, if any.

    Raises `AllocationError` for anything else.
    """
    one = r"m([1-9][0-9]?)(?:\s+q(10|[1-9]))?"
    found = re.findall(one, text)
    if len(found) != n or not re.fullmatch(rf"\s*{one}(?:\s+{one})*\s*", text):
        raise _not_one_each(n)
    return [(int(slot), int(check) if check else None) for slot, check in found]


def slots_text(slots: Sequence[tuple[int, int | None]]) -> str:
    """What a trained allocator writes for slots and the levels of their checks."""
    return " ".join(f"m{slot}" if check is None else f"m{slot} q{check}" for slot, check in slots)


def _slot(token: str) -> int | None:
    # ▁ is how sentence-piece vocabularies write a space.
    match = re.fullmatch(r"m([1-9][0-9]?)", token.strip("▁ "))
    return int(match[1]) if match else None


QUALITY_LEVELS = 10
TOKENS_A_STEP = 8  # at most, of a slot and a level: other tokenizers write `m4 q7` in more than two


def quality_level(quality: float) -> int:
    """The level 1 to 10 on which routers are conditioned, of a quality in [0, 1]."""
    return max(1, math.ceil(round(quality * QUALITY_LEVELS, 9)))  # 0.7 * 10 is a little above 7


ALLOCATE_INSTRUCTIONS = """\
You give each subtask of a task to the cheapest model that will do it well. The models, weakest and
cheapest first, with their price in dollars for a million tokens of input and of output:
"""


class PromptedAllocator(Allocator):
    """Any chat model, asked which member each step needs.

    `member` names it; by default it is the pool's decomposer, else its strongest member. Without
    training models ask for the dearest far too often; cheapest-first is the better default.
    """

    def __init__(self, member: str | None = None) -> None:
        self.member = member

    def allocate(self, steps: Sequence[Subtask], context: AllocateContext) -> Flow[list[Choice]]:
        pool = context.pool
        name = self.member or pool.decomposer
        models = [
            f"{rank}: {spec.name}, {spec.price.input_per_mtok:f} and {spec.price.output_per_mtok:f}"
            for rank, spec in enumerate(pool.members, 1)
        ]
        rules = "\n".join(
            [
                ALLOCATE_INSTRUCTIONS + "\n".join(models),
                f"From 0 to 1, the right answer matters {context.quality:g}.",
                f"Reply with {len(steps)} model numbers, one a subtask in order, and no more.",
            ]
        )
        texts = "\n".join(fence(step.id, step.text) for step in steps)
        messages = [SystemMessage(rules), HumanMessage(texts)]
        spec = pool[name if name else -1]
        reply = yield from ask(ModelCall("allocator", spec, messages), pool.others(spec.name))
        ranks = _numbers(reply.text, r"([1-9][0-9]?)", len(steps))
        if max(ranks) > len(pool):
            raise AllocationError(f"the allocator names model {max(ranks)} of {len(pool)}")
        return [Choice(pool.names[rank - 1], "prompted") for rank in ranks]


def within_budget(
    choices: Sequence[Choice],
    steps: Sequence[Subtask],
    context: AllocateContext,
    max_output_tokens: int,
) -> list[Choice]:
    """The choices, the dearest of them lowered until the budget left covers the worst case of all.

    Escalation may use later what the worst case left over.
    """
    fitting = list(choices)
    if context.budget_left is None:
        return fitting

    def worst(at: int) -> Decimal:
        spec = context.pool[fitting[at].member]
        call = ModelCall("executor", spec, [HumanMessage(steps[at].text)])
        return spec.price.cost(worst_usage(call, max_output_tokens))

    costs = [worst(at) for at in range(len(fitting))]
    while sum(costs) > context.budget_left:
        ranks = [context.pool.rank(choice.member) for choice in fitting]
        above = [at for at, rank in enumerate(ranks) if rank > 1]
        if not above:
            break
        at = max(above, key=lambda at: costs[at])
        cheaper = context.pool.names[ranks[at] - 2]
        reason = "lowered to fit the budget"
        fitting[at] = replace(fitting[at], member=cheaper, reason=reason, propensity=None)
        costs[at] = worst(at)
    return fitting


def _numbers(text: str, form: str, n: int) -> list[int]:
    """Exactly `n` words of the given form, as their numbers."""
    found = [re.fullmatch(form, word) for word in text.split()]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) != len(found) or len(numbers) != n:
        raise _not_one_each(n)
    return numbers


def _not_one_each(n: int) -> AllocationError:
    return AllocationError(f"the allocator did not give one model for each of {n} steps")
