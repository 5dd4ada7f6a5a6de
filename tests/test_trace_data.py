"""Traces become rows: the best right plan, and the cheapest right allocation."""

import json
from typing import Any

from r2graph.plan import parse_text
from r2graph.trace import Trace, TracedAttempt, TracedChoice, TracedStep
from training.trace_data import allocator_rows, by_query, decomposer_rows

PLAN = "s1: 2 * 3\ns2: {s1} + 1"


def step(name: str, text: str, prompt: str, *members: str, check: int | None = None) -> TracedStep:
    choice = TracedChoice(
        member=members[0], reason="", slot=None, probabilities=None, propensity=None, check=check
    )
    attempts = tuple(
        TracedAttempt(
            member=member, output="", ok=None, reason="", score=None, input_tokens=1,
            output_tokens=1, cost_usd="0", mean_logprob=None, seconds=0.0,
        )
        for member in members
    )  # fmt: skip
    return TracedStep(
        id=name, text=text, prompt=prompt, depends_on=(), choice=choice, attempts=attempts,
        output="",
    )  # fmt: skip


def trace(first: str, second: str, *, cost: str, **changes: Any) -> Trace:
    fields: dict[str, Any] = {
        "run_id": "r", "query": "2 * 3 + 1", "pool": "p", "members": ("a", "b", "c"),
        "quality": 0.5, "router": None, "plan": parse_text(PLAN), "rounds": 1,
        "steps": (
            step("s1", "2 * 3", "2 * 3", "a", first),
            step("s2", "{s1} + 1", "6 + 1", second),
        ),
        "answer": "7", "stop_reason": "verified", "cost_usd": cost, "router_cost_usd": "0.1",
        "verifier_cost_usd": "0", "counterfactual_usd": "1", "right": True,
    }  # fmt: skip
    return Trace.model_validate(fields | changes)


def rows(lines: Any) -> list[tuple[str, str]]:
    parsed = [json.loads(line) for line in lines]
    return [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in parsed]


def test_labels_are_the_accepted_members_of_the_cheapest_right_run() -> None:
    groups = by_query([trace("c", "c", cost="0.9"), trace("a", "b", cost="0.5")])
    assert rows(allocator_rows(groups)) == [
        ("q5\ns1: 2 * 3\ns2: {s1} + 1", "m1 m5"),  # three members on nine slots: 1, 5, 9
        ("q5\ns1: 6 + 1", "m5"),
    ]


def test_the_level_of_a_steps_checks_is_written_where_one_was_chosen() -> None:
    steps = (
        step("s1", "2 * 3", "2 * 3", "a"),
        step("s2", "{s1} + 1", "6 + 1", "a", "b", check=9),
    )
    groups = by_query([trace("", "", cost="0.5", steps=steps)])
    assert rows(allocator_rows(groups)) == [
        ("q5\ns1: 2 * 3\ns2: {s1} + 1", "m1 m5 q9"),
        ("q5\ns1: 6 + 1", "m5 q9"),
    ]


def test_a_wrong_run_is_no_label_however_cheap_it_was() -> None:
    groups = by_query([trace("a", "a", cost="0.2", right=False), trace("b", "c", cost="0.9")])
    assert rows(allocator_rows(groups))[0][1] == "m5 m9"


def test_quality_levels_are_kept_apart() -> None:
    groups = by_query([trace("a", "a", cost="0.2", quality=0.1), trace("c", "c", cost="0.9")])
    prompts = [prompt.split("\n")[0] for prompt, _ in rows(allocator_rows(groups))]
    assert prompts == ["q1", "q1", "q5", "q5"]


def test_the_plan_of_a_query_is_the_best_of_the_right_ones() -> None:
    longer = parse_text("s1: 2 * 3\ns2: 2 * 3\ns3: {s2} + 1")
    short_but_wrong = trace("a", "a", cost="0.2", right=False, plan=parse_text("s1: 2 * 3"))
    groups = by_query(
        [trace("a", "a", cost="0.9", plan=longer), trace("a", "a", cost="0.9"), short_but_wrong]
    )
    assert rows(decomposer_rows(groups)) == [("plan: 2 * 3 + 1", PLAN)]


def test_ungraded_runs_and_queries_without_a_right_run_give_nothing() -> None:
    groups = by_query([trace("a", "a", cost="0.2", right=None)])
    assert groups == {}
    groups = by_query([trace("a", "a", cost="0.2", right=False)])
    assert rows(decomposer_rows(groups)) == rows(allocator_rows(groups)) == []
