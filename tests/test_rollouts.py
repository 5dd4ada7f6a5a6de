"""Rollouts: what a policy wrote runs through the graph as deployed, and is rewarded."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from r2graph import OutcomeCache
from r2graph.allocate import parse_slots
from r2graph.plan import parse_text
from r2graph.verify import AllOf, ConfidenceVerifier, FormatVerifier
from tests.fakes import ProviderError, answering, pool_of, router_of
from training.graph_rewards import AllocatorReward, DecomposerReward
from training.rewards import INVALID, WRONG
from training.rollouts import Given, Rollouts

QUERY, PLAN = "2 * 3 + ( 5 - 4 )", "s1: 2 * 3\ns2: 5 - 4\ns3: {s1} + {s2}"
RIGHT = {"2 * 3": "6", "5 - 4": "1", "6 + 1": "7"}
WEAK = answering({"2 * 3": "6", "5 - 4": "2", "6 + 1": "8"}, logprob=-0.01)
STRONG = answering(RIGHT, logprob=-0.01)
POOL = pool_of(WEAK, STRONG, language="lab")
ROUTER = router_of({QUERY: PLAN}, lambda step: "m9")


def written(text: str, level: int = 5) -> Given:
    plan = parse_text(PLAN)
    return Given(QUERY, plan, "7", level, tuple(parse_slots(text, len(plan.subtasks))))


def rollouts(**changes: object) -> Rollouts:
    return Rollouts(POOL, replace(ROUTER, **changes), None)


def completions(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def columns(n: int) -> dict[str, list[object]]:
    return {"query": [QUERY] * n, "plan": [PLAN] * n, "gold": ["7"] * n, "level": [5] * n}


def test_an_allocation_runs_as_it_was_written() -> None:
    given = [written("m1 m9 m9"), written("m1 m1 m9")]
    done, wrong = asyncio.run(rollouts().run(given, [each.plan for each in given]))
    assert done is not None
    assert wrong is not None
    assert done.right
    assert not wrong.right
    assert 0 < done.cost < done.reference  # the reference has all steps on the strongest member


def test_the_router_thinks_again_about_a_filled_step_but_not_in_the_reference() -> None:
    asked: list[str] = []

    def slots(text: str) -> str:
        asked.append(text)
        return "m1"

    given = written("m9 m9 m9")
    run = Rollouts(POOL, router_of({}, slots), None)
    (done,) = asyncio.run(run.run([given], [given.plan]))
    assert asked == ["6 + 1"]
    assert done is not None
    assert not done.right  # for m1 does not know the sum
    assert done.reference == pytest.approx(3 * 4 * 1e-5)  # three steps of 3 + 1 tokens on m2


def test_a_step_is_checked_at_the_level_that_was_written() -> None:
    unsure = answering(RIGHT, logprob=-0.5)
    check = ConfidenceVerifier([-1 + level / 10 for level in range(10)])
    run = Rollouts(pool_of(unsure, STRONG, language="lab"), replace(ROUTER, verifier=check), None)
    given = [
        written(text, level)
        for level in (1, 10)
        for text in ("m1 q1 m9 m9", "m1 q10 m9 m9", "m1 m9 m9")
    ]
    done = asyncio.run(run.run(given, [each.plan for each in given]))
    costs = [rollout.pool_cost for rollout in done if rollout is not None]
    passed, refused = min(costs), max(costs)
    assert passed < refused
    assert costs == [passed, refused, passed, passed, refused, refused]


def test_slots_are_rewarded_by_outcome_and_cost_and_nonsense_is_invalid() -> None:
    reward = AllocatorReward(rollouts())
    texts = ("m1 m9 m9", "m9 m9 m9", "m1 m1 m9", "m1 m9", "m1 m9 m10", "Oslo")
    cheap, dear, wrong, short, beyond, nonsense = asyncio.run(
        reward(completions=completions(*texts), **columns(6))
    )
    assert cheap > dear > wrong == WRONG
    assert short == beyond == nonsense == INVALID


@pytest.mark.parametrize("text", ["m1 q3 m9 q10 m9 q5", "m1 m9 q3 m9", "m1 m9 m9 q3"])
def test_levels_after_some_slots_or_all_are_valid(text: str) -> None:
    reward = AllocatorReward(rollouts())
    plain, levelled = asyncio.run(reward(completions=completions("m1 m9 m9", text), **columns(2)))
    assert levelled == plain
    assert levelled > WRONG


def test_a_slot_beyond_the_last_is_invalid_whatever_level_follows() -> None:
    reward = AllocatorReward(rollouts())
    texts = ("m10 q3 m9 q3 m9 q3", "m1 q10 m9 q10 m10 q1")
    assert asyncio.run(reward(completions=completions(*texts), **columns(2))) == [INVALID] * 2


def test_failed_attempts_are_billed_for_escalation_is_on() -> None:
    unsure = answering(RIGHT, logprob=-2.0)
    check = AllOf(FormatVerifier(), ConfidenceVerifier(-0.1))
    run = Rollouts(pool_of(unsure, STRONG, language="lab"), replace(ROUTER, verifier=check), None)
    given = [written("m1 m1 m9"), written("m9 m9 m9")]
    climbed, direct = asyncio.run(run.run(given, [each.plan for each in given]))
    assert climbed is not None
    assert direct is not None
    assert climbed.right
    assert climbed.cost > direct.cost


def test_the_same_rollout_is_run_once() -> None:
    run = rollouts()
    reward = AllocatorReward(run)
    for _ in range(2):
        asyncio.run(reward(completions=completions("m1 m9 m9", "m1 m9 m9"), **columns(2)))
    assert (run.misses, run.hits) == (2, 6)  # the allocation and its reference


def test_a_failing_pool_masks_the_reward() -> None:
    broken = pool_of(answering({"2 * 3": ProviderError(500)}), language="lab")
    reward = AllocatorReward(Rollouts(broken, ROUTER, None))
    assert asyncio.run(reward(completions=completions("m1 m1 m1"), **columns(1))) == [None]


def test_of_two_right_plans_the_shorter_earns_more_and_what_is_no_plan_is_invalid() -> None:
    longer = "s1: 2 * 3\ns2: 2 * 3\ns3: 5 - 4\ns4: {s2} + {s3}"
    texts = (PLAN, longer, "s1: 6 + 1\ns2: 2 * 3", "Oslo")
    reward = DecomposerReward(rollouts(), usd_per_token=1e-6)
    ids = [[0] * len(text) for text in texts]
    short, long, wrong, nonsense = asyncio.run(
        reward(completions=completions(*texts), completion_ids=ids, **columns(4))
    )
    assert short > long > wrong == WRONG
    assert nonsense == INVALID


def test_a_rollout_through_a_cache_earns_what_a_live_one_earns(tmp_path: Path) -> None:
    given = written("m1 m9 m9")
    (live,) = asyncio.run(rollouts().run([given], [given.plan]))
    with OutcomeCache(tmp_path / "outcomes.sqlite") as outcomes:
        for _ in range(2):
            (kept,) = asyncio.run(Rollouts(POOL, ROUTER, outcomes).run([given], [given.plan]))
            assert kept == live
        assert outcomes.hits
