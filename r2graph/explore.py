"""Exploration: an allocator's choices drawn at random, each with the probability of the draw.

Whoever learns from runs needs to see choices that the policy would not have made, and how likely
each of them was: without the propensity no other policy can be judged on the same runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

from r2graph.allocate import AllocateContext, Allocator, Choice
from r2graph.calls import Flow, flowing
from r2graph.errors import ConfigError
from r2graph.plan import Subtask
from r2graph.pool import ModelPool


class ExploringAllocator(Allocator):
    """Draws each member from another allocator's probabilities p.

    They are tempered, p^(1/`temperature`), and mixed with `epsilon` of the uniform distribution.
    Where the other gives none, its choice has p = 1. A draw hangs on seed, query and text of the
    step alone, so it is the same at any concurrency, and after a resume.
    """

    def __init__(
        self,
        allocator: Allocator,
        *,
        temperature: float = 1.0,
        epsilon: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not temperature > 0 or not 0 <= epsilon <= 1:
            raise ConfigError("exploration takes a temperature above 0 and an epsilon of 0 to 1")
        self.allocator = allocator
        self.temperature = temperature
        self.epsilon = epsilon
        self.seed = seed
        self.revises = allocator.revises
        self.moves = allocator.moves
        self.n_slots = allocator.n_slots

    def allocate(self, steps: Sequence[Subtask], context: AllocateContext) -> Flow[list[Choice]]:
        choices = yield from flowing(self.allocator.allocate(steps, context))
        if len(choices) != len(steps):
            return choices  # for the graph to refuse
        return [
            self._drawn(choice, step, context) for choice, step in zip(choices, steps, strict=True)
        ]

    def escalate(self, member: str, context: AllocateContext) -> str | None:
        return self.allocator.escalate(member, context)

    def _drawn(self, choice: Choice, step: Subtask, context: AllocateContext) -> Choice:
        spread = self._distribution(choice, context.pool)
        random = Random(f"{self.seed}\n{context.query}\n{step.text}")
        [member] = random.choices(list(spread), list(spread.values()))
        return replace(
            choice,
            member=member,
            reason=f"drawn: {choice.reason}",
            slot=self._slot(member, choice, context.pool),
            probabilities=spread,
            propensity=spread[member],
        )

    def _distribution(self, choice: Choice, pool: ModelPool) -> dict[str, float]:
        given = choice.probabilities or {}
        weights = {name: given.get(name, 0.0) for name in pool.names}
        if not any(weights.values()):
            weights[choice.member] = 1.0
        tempered = _tempered(weights, self.temperature)
        rest = self.epsilon / len(pool)
        return {name: (1 - self.epsilon) * p + rest for name, p in tempered.items()}

    def _slot(self, member: str, choice: Choice, pool: ModelPool) -> int | None:
        """The slot of a member, where the choice speaks of slots: the first one it stands for."""
        if choice.slot is None or member == choice.member:
            return choice.slot
        slots = range(1, self.n_slots + 1)
        return next((s for s in slots if pool.slot_to_member(s, self.n_slots).name == member), None)


def _tempered(weights: Mapping[str, float], temperature: float) -> dict[str, float]:
    top = max(weights.values())  # taken out first: small powers of small numbers are all 0
    powers = {name: (weight / top) ** (1 / temperature) for name, weight in weights.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}
