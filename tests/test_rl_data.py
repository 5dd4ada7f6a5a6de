"""Prompts for reinforcement learning: which queries, which plans, and what each reward needs."""

from dataclasses import replace

from r2graph.lab import arith
from r2graph.lab.task import Task
from r2graph.plan import parse_text, render_text
from tests.fakes import answering, pool_of, router_of
from training.planned import Planned, planned
from training.rl_data import allocator_rows, decomposer_rows, half_hard

QUERY, PLAN = "2 * 3 + 1", "s1: 2 * 3\ns2: {s1} + 1"
TASK = arith.task(QUERY)
WEAK = answering({"2 * 3": "5", "5 + 1": "6"})
STRONG = answering({"2 * 3": "6", "6 + 1": "7"})


def drawn(n: int) -> list[Task]:
    return [arith.task(f"{number} + 1 + 1") for number in range(n)]


def test_half_of_the_queries_are_those_that_the_parent_gets_wrong() -> None:
    tasks = drawn(40)
    right = [number % 10 != 0 for number in range(40)]
    chosen = half_hard(tasks, right, at_least=2, seed=1)
    wrong = [task for task, good in zip(tasks, right, strict=True) if not good]
    assert len(chosen) == 2 * len(wrong) == 8
    assert all(task in chosen for task in wrong)


def test_a_parent_that_is_never_wrong_still_gives_a_batch() -> None:
    assert len(half_hard(drawn(9), [True] * 9, at_least=4, seed=1)) == 4


def test_plans_that_end_right_on_the_strongest_member_are_kept_with_their_steps() -> None:
    pool = pool_of(WEAK, STRONG, language="lab")
    router = router_of({QUERY: PLAN, "2 * 4": "s1: 2 * 5"}, lambda step: "m1")
    (kept,) = planned(pool, router, [TASK, arith.task("2 * 4")], None)
    assert render_text(kept.plan) == PLAN
    assert kept.steps == (("2 * 3", "6"), ("6 + 1", "7"))


def test_a_plan_is_asked_about_whole_and_again_where_references_were_filled_in() -> None:
    given = Planned(TASK, parse_text(PLAN), (("2 * 3", "6"), ("6 + 1", "7")))
    found = allocator_rows([given], seed=1)
    rows = sorted((len(parse_text(row["plan"]).subtasks), row["gold"]) for row in found)
    assert rows == [(1, "7"), (2, "7")]
    prompts = {row["prompt"][0]["content"].split("\n", 1)[1] for row in found}
    assert prompts == {"s1: 2 * 3\ns2: {s1} + 1", "s1: 6 + 1"}


def test_the_gold_of_a_single_step_is_its_output() -> None:
    task = replace(TASK, answer="something else")
    given = Planned(task, parse_text(PLAN), (("2 * 3", "6"), ("6 + 1", "7")))
    golds = {row["plan"]: row["gold"] for row in allocator_rows([given], seed=1)}
    assert golds == {PLAN: "something else", "s1: 6 + 1": "7"}


def test_a_decomposer_is_asked_for_the_plan_of_the_query() -> None:
    (row,) = decomposer_rows([TASK])
    assert row["prompt"][0]["content"] == f"plan: {QUERY}"
    assert row["gold"] == "7"
