"""Rollouts: what a policy wrote runs through the graph as deployed, and is rewarded."""

import asyncio
from dataclasses import replace
from pathlib import Path

from r2graph import OutcomeCache
from r2graph.plan import parse_text
from r2graph.verify import AllOf, ConfidenceVerifier, FormatVerifier
from tests.fakes import ProviderError, answering, pool_of, router_of
from training.graph_rewards import AllocatorReward, DecomposerReward
from training.rewards import INVALID, WRONG
from training.rollouts import Given, Rollouts

QUERY, PLAN = "2 * 3 + 1", "s1: 2 * 3\ns2: {s1} + 1"
RIGHT = {"2 * 3": "6", "6 + 1": "7"}
WEAK = answering({"2 * 3": "6", "6 + 1": "8"}, logprob=-0.01)
STRONG = answering(RIGHT, logprob=-0.01)
POOL = pool_of(WEAK, STRONG, language="lab")
ROUTER = router_of({QUERY: PLAN}, lambda step: "m9")


def rollouts(**changes: object) -> Rollouts:
    return Rollouts(POOL, replace(ROUTER, **changes), None)


def completions(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def columns(n: int) -> dict[str, list[object]]:
    return {"query": [QUERY] * n, "plan": [PLAN] * n, "gold": ["7"] * n, "level": [5] * n}


def test_an_allocation_runs_as_it_was_written() -> None:
    run = rollouts()
    given = Given(QUERY, parse_text(PLAN), "7", 5, (1, 9))
    (done,) = asyncio.run(run.run([given], [given.plan]))
    assert done is not None
    assert done.right
    assert 0 < done.cost < done.reference  # the reference has both steps on the strongest member


def test_slots_are_rewarded_by_outcome_and_cost_and_nonsense_is_invalid() -> None:
    reward = AllocatorReward(rollouts())
    texts = ("m1 m9", "m9 m9", "m1 m1", "m1", "m1 m10", "Oslo")
    cheap, dear, wrong, short, beyond, nonsense = asyncio.run(
        reward(completions=completions(*texts), **columns(6))
    )
    assert cheap > dear > wrong == WRONG
    assert short == beyond == nonsense == INVALID


def test_failed_attempts_are_billed_for_escalation_is_on() -> None:
    unsure = answering(RIGHT, logprob=-2.0)
    check = AllOf(FormatVerifier(), ConfidenceVerifier(-0.1))
    run = Rollouts(pool_of(unsure, STRONG, language="lab"), replace(ROUTER, verifier=check), None)
    plan = parse_text(PLAN)
    low, high = (Given(QUERY, plan, "7", 5, slots) for slots in ((1, 1), (9, 9)))
    climbed, direct = asyncio.run(run.run([low, high], [plan, plan]))
    assert climbed is not None
    assert direct is not None
    assert climbed.right
    assert climbed.cost > direct.cost


def test_the_same_rollout_is_run_once() -> None:
    run = rollouts()
    reward = AllocatorReward(run)
    for _ in range(2):
        asyncio.run(reward(completions=completions("m1 m9", "m1 m9"), **columns(2)))
    assert (run.misses, run.hits) == (2, 6)  # the allocation and its reference


def test_a_failing_pool_masks_the_reward() -> None:
    broken = pool_of(answering({"2 * 3": ProviderError(500)}), language="lab")
    reward = AllocatorReward(Rollouts(broken, ROUTER, None))
    assert asyncio.run(reward(completions=completions("m1 m1"), **columns(1))) == [None]


def test_of_two_right_plans_the_shorter_earns_more_and_what_is_no_plan_is_invalid() -> None:
    longer = "s1: 2 * 3\ns2: 2 * 3\ns3: {s2} + 1"
    texts = (PLAN, longer, "s1: 6 + 1\ns2: 2 * 3", "Oslo")
    reward = DecomposerReward(rollouts(), usd_per_token=1e-6)
    ids = [[0] * len(text) for text in texts]
    short, long, wrong, nonsense = asyncio.run(
        reward(completions=completions(*texts), completion_ids=ids, **columns(4))
    )
    assert short > long > wrong == WRONG
    assert nonsense == INVALID


def test_a_rollout_through_a_cache_earns_what_a_live_one_earns(tmp_path: Path) -> None:
    given = Given(QUERY, parse_text(PLAN), "7", 5, (1, 9))
    (live,) = asyncio.run(rollouts().run([given], [given.plan]))
    with OutcomeCache(tmp_path / "outcomes.sqlite") as outcomes:
        for _ in range(2):
            (kept,) = asyncio.run(Rollouts(POOL, ROUTER, outcomes).run([given], [given.plan]))
            assert kept == live
        assert outcomes.hits
