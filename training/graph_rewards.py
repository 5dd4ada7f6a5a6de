"""TRL's reward functions: what the policy wrote is read, run through the graph, and rewarded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from r2graph.allocate import parse_slots
from r2graph.errors import AllocationError, PlanError
from r2graph.plan import Plan, parse_text
from training.rejection import Sample, score
from training.rewards import INVALID, LOWEST, Rollout, allocator_reward, decomposer_reward
from training.rollouts import Given, Rollouts, Slots

Messages = list[dict[str, str]]
Rewards = list[float | None]


class AllocatorReward:
    """For completions that are slots, `m1 m4`, of the plan in the column `plan`."""

    __name__ = "allocator"

    def __init__(self, rollouts: Rollouts, lowest_cost_weight: float = LOWEST) -> None:
        self.rollouts = rollouts
        self.lowest_cost_weight = lowest_cost_weight

    async def __call__(
        self,
        completions: Sequence[Messages],
        query: Sequence[str],
        plan: Sequence[str],
        gold: Sequence[str],
        level: Sequence[int],
        **_: Any,
    ) -> Rewards:
        rewards: Rewards = [INVALID] * len(completions)
        valid: dict[int, Given] = {}
        for i, completion in enumerate(completions):
            parsed = parse_text(plan[i])
            slots = self._slots(completion[0]["content"], len(parsed.subtasks))
            if slots:
                valid[i] = Given(query[i], parsed, gold[i], level[i], slots)
        done = await self.rollouts.run(
            list(valid.values()), [given.plan for given in valid.values()]
        )
        for i, rollout in zip(valid, done, strict=True):
            rewards[i] = allocator_reward(rollout, level[i], self.lowest_cost_weight)
        return rewards

    def _slots(self, text: str, n: int) -> Slots:
        try:
            slots = parse_slots(text, n)
        except AllocationError:
            return ()
        return tuple(slots) if max(slot for slot, _ in slots) <= self.rollouts.n_slots else ()


class DecomposerReward:
    """For completions that are plans; to write them is part of what they cost."""

    __name__ = "decomposer"

    def __init__(self, rollouts: Rollouts, usd_per_token: float) -> None:
        self.rollouts = rollouts
        self.usd_per_token = usd_per_token

    async def __call__(
        self,
        completions: Sequence[Messages],
        completion_ids: Sequence[Sequence[int]],
        query: Sequence[str],
        plan: Sequence[str],
        gold: Sequence[str],
        level: Sequence[int],
        **_: Any,
    ) -> Rewards:
        rewards: Rewards = [INVALID] * len(completions)
        valid: dict[int, Given] = {}
        for i, completion in enumerate(completions):
            if written := _plan(completion[0]["content"]):
                valid[i] = Given(query[i], written, gold[i], level[i])
        references = [parse_text(plan[i]) for i in valid]
        done = await self.rollouts.run(list(valid.values()), references)
        groups: dict[str, dict[int, tuple[Rollout, Sample]]] = defaultdict(dict)
        for (i, given), rollout in zip(valid.items(), done, strict=True):
            rewards[i] = None
            if rollout is not None:
                cost = rollout.cost + len(completion_ids[i]) * self.usd_per_token
                paid = replace(rollout, cost=cost)
                sample = Sample(given.plan, rollout.right, Decimal(str(rollout.pool_cost)))
                groups[given.query][i] = paid, sample
        for group in groups.values():
            samples = [sample for _, sample in group.values()]
            for i, (rollout, sample) in group.items():
                rewards[i] = decomposer_reward(rollout, score(sample, samples))
        return rewards


def _plan(text: str) -> Plan | None:
    try:
        return parse_text(text)
    except PlanError:
        return None
