"""Exploration: choices are drawn as they say they are, and the same draws come again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import sqrt
from typing import Any

import pytest

from r2graph.allocate import (
    AllocateContext,
    Allocator,
    CheapestFirst,
    CheckpointAllocator,
    Choice,
    FixedAllocator,
    RandomAllocator,
    within_budget,
)
from r2graph.calls import flowing
from r2graph.errors import ConfigError
from r2graph.explore import ExploringAllocator
from r2graph.graph import create_r2_graph
from r2graph.plan import Subtask, parse_text
from r2graph.pool import ModelPool
from tests.fakes import Planned, echo, member, pool_of, replay, reply

STEPS = parse_text("s1: a\ns2: b {s1}\ns3: c").subtasks
POOL = pool_of(echo(), echo(), echo())
UNEVEN = {"m1": 0.64, "m2": 0.36, "m3": 0.0}


class Spread(Allocator):
    """Likes the first member best, with these probabilities."""

    def __init__(self, probabilities: Mapping[str, float] | None = None) -> None:
        self.probabilities = probabilities

    def allocate(self, steps: Sequence[Subtask], context: AllocateContext) -> list[Choice]:
        return [Choice("m1", "spread", 1, self.probabilities, check=7) for _ in steps]


def drawn(
    allocator: Allocator, steps: Sequence[Subtask] = STEPS, query: str = "q", pool: ModelPool = POOL
) -> list[Choice]:
    choices, _ = replay(flowing(allocator.allocate(steps, AllocateContext(pool, query))))
    return choices


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        (UNEVEN, {}, {"m1": 0.64, "m2": 0.36, "m3": 0.0}),
        (UNEVEN, {"temperature": 2}, {"m1": 4 / 7, "m2": 3 / 7, "m3": 0.0}),
        (UNEVEN, {"temperature": 0.001}, {"m1": 1.0, "m2": 0.0, "m3": 0.0}),
        (UNEVEN, {"epsilon": 0.3}, {"m1": 0.548, "m2": 0.352, "m3": 0.1}),
        (UNEVEN, {"epsilon": 1}, {"m1": 1 / 3, "m2": 1 / 3, "m3": 1 / 3}),
        (None, {}, {"m1": 1.0, "m2": 0.0, "m3": 0.0}),
        (None, {"temperature": 5, "epsilon": 0.3}, {"m1": 0.8, "m2": 0.1, "m3": 0.1}),
        (dict.fromkeys(UNEVEN, 0.0), {"epsilon": 0.3}, {"m1": 0.8, "m2": 0.1, "m3": 0.1}),
    ],
    ids=str,
)
def test_members_come_as_often_as_their_propensity_says(
    given: dict[str, float] | None, options: dict[str, float], expected: dict[str, float]
) -> None:
    n = 3_000
    counts: Counter[str] = Counter()
    for seed in range(n // len(STEPS)):
        for choice in drawn(ExploringAllocator(Spread(given), seed=seed, **options)):
            assert choice.probabilities == pytest.approx(expected)
            assert choice.propensity == choice.probabilities[choice.member]  # type: ignore[index]
            counts[choice.member] += 1
    for name, p in expected.items():
        assert abs(counts[name] - n * p) <= 4.5 * sqrt(n * p * (1 - p)), name


def test_a_draw_hangs_on_seed_query_and_text_and_on_nothing_else() -> None:
    explorer = ExploringAllocator(Spread(), epsilon=1, seed=7)
    together = drawn(explorer)
    apart = [choice for step in reversed(STEPS) for choice in drawn(explorer, [step])]
    assert together == apart[::-1]
    many = [Subtask(id="s1", text=f"step {i}") for i in range(40)]
    first = [choice.member for choice in drawn(explorer, many)]
    assert first != [choice.member for choice in drawn(explorer, many, query="another")]
    other = ExploringAllocator(Spread(), epsilon=1, seed=8)
    assert first != [choice.member for choice in drawn(other, many)]


async def test_the_same_seed_gives_the_same_draws_at_any_concurrency() -> None:
    graph = create_r2_graph(
        POOL,
        decomposer=Planned("s1: a\ns2: b {s1}\ns3: c\ns4: d {s2} {s3}"),
        allocator=ExploringAllocator(CheapestFirst(), epsilon=1, seed=3),
    )
    queries = [f"query {i}" for i in range(12)]

    def members(result: Mapping[str, Any]) -> list[str]:
        return [chosen["member"] for chosen in result["allocation"].values()]

    one_by_one = [members(graph.invoke(query, {"max_concurrency": 1})) for query in queries]
    at_once = await asyncio.gather(*(graph.ainvoke(query) for query in queries))
    assert [members(result) for result in at_once] == one_by_one
    assert len({tuple(found) for found in one_by_one}) > 6


def test_the_slot_is_that_of_the_drawn_member() -> None:
    pool = pool_of(*[echo() for _ in range(4)])
    router = CheckpointAllocator(member("router", echo()), n_slots=7)
    slots = {pool.slot_to_member(slot, 7).name: slot for slot in range(7, 0, -1)}
    seen = set()
    for seed in range(20):
        explorer = ExploringAllocator(router, epsilon=1, seed=seed)
        flow = explorer.allocate(STEPS, AllocateContext(pool, "q"))
        for choice in replay(flow, reply("m6 m6 m6"))[0]:
            # What the router itself chose keeps its own slot, of the several a member stands for.
            own = pool.slot_to_member(6, 7).name
            assert choice.slot == (6 if choice.member == own else slots[choice.member])
            seen.add(choice.member)
    assert seen == set(pool.names)
    no_slots = drawn(ExploringAllocator(CheapestFirst(), epsilon=1))
    assert [choice.slot for choice in no_slots] == [None] * 3


def test_a_draw_leaves_the_level_of_the_check_as_it_is() -> None:
    choices = drawn(ExploringAllocator(Spread(), epsilon=1, seed=1))
    assert {choice.member for choice in choices} != {"m1"}
    assert [choice.check for choice in choices] == [7] * 3


def test_the_wrapped_allocator_still_revises_and_escalates() -> None:
    context = AllocateContext(POOL, "q")
    router = ExploringAllocator(CheckpointAllocator(member("router", echo())))
    assert (router.revises, router.escalate("m1", context)) == (True, "m2")
    fixed = ExploringAllocator(FixedAllocator("m1"))
    assert (fixed.revises, fixed.escalate("m1", context)) == (False, None)


def test_a_revised_step_is_drawn_anew_with_its_own_propensity() -> None:
    class Revising(Spread):
        revises = True

    explorer = ExploringAllocator(Revising(UNEVEN), epsilon=0.3)
    graph = create_r2_graph(POOL, decomposer=Planned("s1: a\ns2: b {s1}"), allocator=explorer)
    chosen = graph.invoke("q")["allocation"]["s2"]
    [expected] = drawn(explorer, [Subtask(id="s2", text="b [a]")])
    assert (chosen["member"], chosen["propensity"]) == (expected.member, expected.propensity)


def test_a_wrong_number_of_choices_is_left_to_the_graph() -> None:
    class Short(Allocator):
        def allocate(self, steps: Sequence[Subtask], context: AllocateContext) -> list[Choice]:
            return [Choice("m3", "short")]

    graph = create_r2_graph(
        POOL, decomposer=Planned("s1: a\ns2: b"), allocator=ExploringAllocator(Short(), epsilon=1)
    )
    chosen = graph.invoke("q")["allocation"]
    assert [each["member"] for each in chosen.values()] == ["m1", "m1"]
    assert [each["propensity"] for each in chosen.values()] == [None, None]


def test_only_draws_have_a_propensity() -> None:
    assert [choice.propensity for choice in drawn(RandomAllocator())] == [1 / 3] * 3
    assert [choice.propensity for choice in drawn(FixedAllocator("m2"))] == [None] * 3
    explored = drawn(ExploringAllocator(FixedAllocator("m3")))
    poor = AllocateContext(POOL, "q", budget_left=Decimal(0))
    assert [choice.propensity for choice in explored] == [1.0] * 3
    # A budget moved these, no draw.
    lowered = within_budget(explored, STEPS, poor, 10)
    assert [(choice.member, choice.propensity) for choice in lowered] == [("m1", None)] * 3


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"temperature": float("nan")}, {"epsilon": -0.1}, {"epsilon": 1.1}],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="exploration"):
        ExploringAllocator(CheapestFirst(), **options)
