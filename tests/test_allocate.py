"""Allocators: a member for each step, within the budget, and the next one when it fails."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2graph.allocate import (
    AllocateContext,
    Allocator,
    CheapestFirst,
    CheckpointAllocator,
    Choice,
    FixedAllocator,
    PromptedAllocator,
    RandomAllocator,
    StrongestAllocator,
    parse_slots,
    quality_level,
    slots_text,
    within_budget,
)
from r2graph.calls import flowing
from r2graph.errors import AllocationError, ConfigError
from r2graph.plan import parse_text
from r2graph.pool import ModelPool
from tests.fakes import echo, member, pool_of, replay, reply

STEPS = parse_text("s1: 2 + 3\ns2: 47 * 68\ns3: {s1} - {s2}").subtasks
POOL = pool_of(echo(), echo(), echo())
NINE = pool_of(*[echo() for _ in range(9)])


def context(pool: ModelPool = POOL, **fields: Any) -> AllocateContext:
    return AllocateContext(pool, "2 + 3 - 47 * 68", **fields)


def chosen(allocator: Allocator, **fields: Any) -> list[str]:
    choices, _ = replay(flowing(allocator.allocate(STEPS, context(**fields))))
    return [choice.member for choice in choices]


def test_each_policy_chooses_as_its_name_says() -> None:
    assert chosen(CheapestFirst()) == ["m1", "m1", "m1"]
    assert chosen(StrongestAllocator()) == ["m3", "m3", "m3"]
    assert chosen(FixedAllocator("m2")) == ["m2", "m2", "m2"]
    assert chosen(FixedAllocator({"s1": "m1", "s2": "m3", "s3": "m2"})) == ["m1", "m3", "m2"]
    with pytest.raises(ConfigError, match="s2"):
        chosen(FixedAllocator({"s1": "m1"}))


def test_random_is_the_same_for_the_same_seed_and_query() -> None:
    draws = {tuple(chosen(RandomAllocator(seed), pool=NINE)) for seed in range(20)}
    assert len(draws) > 15
    assert chosen(RandomAllocator(3), pool=NINE) == chosen(RandomAllocator(3), pool=NINE)


def test_a_failed_step_moves_one_member_up_until_the_top() -> None:
    allocator = CheapestFirst()
    assert [allocator.escalate(name, context()) for name in POOL.names] == ["m2", "m3", None]


def test_control_policies_do_not_move_steps() -> None:
    assert FixedAllocator("m1").escalate("m1", context()) is None
    assert RandomAllocator().escalate("m1", context()) is None


def checkpoint() -> CheckpointAllocator:
    return CheckpointAllocator(member("router", echo()))


def test_a_checkpoint_is_asked_as_it_was_trained() -> None:
    flow = checkpoint().allocate(STEPS, context(NINE, quality=0.7))
    choices, [call] = replay(flow, reply("m1 m9 m4"))
    assert [message.text for message in call.messages] == [
        "q7\ns1: 2 + 3\ns2: 47 * 68\ns3: {s1} - {s2}"
    ]
    assert (call.role, call.max_tokens, call.temperature) == ("allocator", 24, 0.0)
    assert [choice.member for choice in choices] == ["m1", "m9", "m4"]
    assert [choice.slot for choice in choices] == [1, 9, 4]
    assert [choice.check for choice in choices] == [None] * 3


def test_a_checkpoint_may_say_at_which_level_each_step_is_checked() -> None:
    flow = checkpoint().allocate(STEPS, context(NINE))
    choices, _ = replay(flow, reply("m1 q3 m9 m4 q10"))
    assert [(choice.slot, choice.check) for choice in choices] == [(1, 3), (9, None), (4, 10)]


@given(st.lists(st.tuples(st.integers(1, 99), st.none() | st.integers(1, 10)), min_size=1))
def test_slots_and_levels_are_read_as_they_are_written(
    slots: list[tuple[int, int | None]],
) -> None:
    text = slots_text(slots)
    assert parse_slots(text, len(slots)) == slots
    for n in (len(slots) - 1, len(slots) + 1):
        with pytest.raises(AllocationError):
            parse_slots(text, n)


def test_slots_fit_a_pool_of_any_size() -> None:
    choices, _ = replay(checkpoint().allocate(STEPS, context()), reply("m1 m5 m9"))
    assert [choice.member for choice in choices] == ["m1", "m2", "m3"]


def test_a_step_asked_about_alone_is_the_first() -> None:
    _, [call] = replay(checkpoint().allocate(STEPS[1:2], context()), reply("m4"))
    assert call.messages[0].text == "q9\ns1: 47 * 68"


@pytest.mark.parametrize(
    "text",
    [
        *("", "m1 m2", "m1 m2 m3 m4", "m1 m2 m0", "m1 m2 m10", "1 2 3"),
        *("q3 m1 m2 m3", "m1 q3 q4 m2 m3", "m1 q11 m2 m3", "m1 q0 m2 m3", "m1q3 m2 m3"),
        *("m1 q3 m2 q3", "m1 q3 m2 q3 m3 q3 m4 q3", "m1 q3 m2 q3 m3 q3 Oslo", "q1 q2 q3"),
    ],
)
def test_a_checkpoints_text_that_is_no_allocation_is_an_error(text: str) -> None:
    with pytest.raises(AllocationError):
        replay(checkpoint().allocate(STEPS, context()), reply(text))


def test_the_distribution_over_slots_becomes_one_over_members() -> None:
    tops = [{"▁m1": math.log(0.5), "m2": math.log(0.25), "the": math.log(0.25)}] * 3
    flow = checkpoint().allocate(STEPS, context())
    choices, _ = replay(flow, reply("m1 m1 m1", top_logprobs=tops))
    assert choices[0].probabilities == {"m1": pytest.approx(1.0), "m2": 0, "m3": 0}
    flow = checkpoint().allocate(STEPS, context(NINE))
    choices, _ = replay(flow, reply("m1 m1 m1", top_logprobs=tops))
    assert choices[2].probabilities is not None
    assert choices[2].probabilities["m2"] == pytest.approx(1 / 3, abs=1e-5)


def test_levels_between_the_slots_are_no_part_of_their_distributions() -> None:
    level = {"▁q3": math.log(0.6), "▁m5": math.log(0.4)}
    spreads = [{"m1": 0.75, "m9": 0.25}, {"m9": 0.75, "m1": 0.25}, {"m4": 0.75, "m5": 0.25}]
    slots = [{f"▁{name}": math.log(p) for name, p in spread.items()} for spread in spreads]
    tops = [slots[0], level, slots[1], slots[2], level, {"</s>": 0.0}]
    flow = checkpoint().allocate(STEPS, context(NINE))
    choices, _ = replay(flow, reply("m1 q3 m9 m4 q3", top_logprobs=tops))
    for choice, spread in zip(choices, spreads, strict=True):
        assert choice.probabilities == pytest.approx(dict.fromkeys(NINE.names, 0.0) | spread)


@pytest.mark.parametrize(
    "tops",
    [[], [{}] * 3, [{"m": 0.0}, {"1": 0.0}] * 3, [{"m1": 0.0}] * 2, [{"m1": 0.0}] * 4],
    ids=str,
)
def test_without_log_probabilities_of_each_slot_there_is_no_distribution(
    tops: list[dict[str, float]],
) -> None:
    flow = checkpoint().allocate(STEPS, context())
    choices, _ = replay(flow, reply("m1 m1 m1", top_logprobs=tops))
    assert [choice.probabilities for choice in choices] == [None] * 3


@pytest.mark.parametrize(
    ("quality", "level"), [(0, 1), (0.05, 1), (0.1, 1), (0.11, 2), (0.7, 7), (0.9, 9), (1, 10)]
)
def test_quality_maps_onto_ten_levels(quality: float, level: int) -> None:
    assert quality_level(quality) == level


def test_a_prompted_allocator_sees_members_prices_and_steps() -> None:
    choices, [call] = replay(PromptedAllocator().allocate(STEPS, context()), reply("1 3\n2"))
    assert [choice.member for choice in choices] == ["m1", "m3", "m2"]
    assert call.spec.name == "m3"
    assert "2: m2, 10 and 10" in call.messages[0].text
    assert "<s2>47 * 68</s2>" in call.messages[1].text


@pytest.mark.parametrize("text", ["1 2", "1 2 4", "one two three", "1, 2, 3"])
def test_a_prompted_reply_that_is_no_allocation_is_an_error(text: str) -> None:
    with pytest.raises(AllocationError):
        replay(PromptedAllocator().allocate(STEPS, context()), reply(text))


def fitted(budget: str | None, *members: str) -> list[str]:
    left = None if budget is None else Decimal(budget)
    choices = [Choice(name, "router") for name in members]
    fitting = within_budget(choices, STEPS, context(budget_left=left), max_output_tokens=1000)
    return [choice.member for choice in fitting]


def test_an_allocation_fits_the_budget_left() -> None:
    # A step costs about 0.001 dollars at worst on m1, ten times that on m2, a hundred on m3.
    assert fitted(None, "m3", "m3", "m1") == ["m3", "m3", "m1"]
    assert fitted("1", "m3", "m3", "m1") == ["m3", "m3", "m1"]
    assert sorted(fitted("0.13", "m3", "m3", "m1")) == ["m1", "m2", "m3"]
    assert fitted("0.025", "m3", "m3", "m1") == ["m2", "m2", "m1"]
    assert fitted("0.004", "m3", "m3", "m1") == ["m1", "m1", "m1"]


def test_with_nothing_left_the_cheapest_members_are_chosen() -> None:
    assert fitted("0", "m3", "m2", "m1") == ["m1", "m1", "m1"]
