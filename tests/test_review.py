"""A human's review of plan and allocation before the steps run."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from r2graph.allocate import CheapestFirst
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.trace import trace
from r2graph.verify import FormatVerifier
from tests.fakes import Planned, echo, pool_of

PLAN = "s1: one\ns2: two"
CONFIG: dict[str, Any] = {"configurable": {"thread_id": "1"}}


def asked(*plans: str) -> tuple[R2Graph, Planned]:
    planner = Planned(*plans)
    pool = pool_of(echo(), echo())
    saver = InMemorySaver()
    graph = create_r2_graph(
        pool,
        decomposer=planner,
        verifier=FormatVerifier(),
        review_plan=True,
        checkpointer=saver,
    )
    return graph, planner


def decided(**decision: Any) -> Command[Any]:
    return Command(resume={"decisions": [decision]})


def edit(args: dict[str, Any]) -> Command[Any]:
    return decided(type="edit", edited_action={"name": "run_plan", "args": args})


def shown(result: dict[str, Any]) -> dict[str, Any]:
    """The one action that a human is asked about."""
    [request] = result["__interrupt__"]
    [action] = request.value["action_requests"]
    assert request.value["review_configs"] == [
        {"action_name": "run_plan", "allowed_decisions": ["approve", "edit", "reject"]}
    ]
    return dict(action)


def test_no_step_runs_before_the_plan_is_approved() -> None:
    graph, _ = asked(PLAN)
    paused = graph.invoke("q", CONFIG)
    assert shown(paused)["args"]["members"] == {"s1": "m1", "s2": "m1"}
    assert shown(paused)["description"] == "s1 (m1): one\ns2 (m1): two"
    assert paused["steps"] == {}
    assert graph.invoke(decided(type="approve"), CONFIG)["answer"] == "[two]"


async def test_an_async_run_is_reviewed_too() -> None:
    graph, _ = asked(PLAN)
    shown(await graph.ainvoke("q", CONFIG))
    assert (await graph.ainvoke(decided(type="approve"), CONFIG))["answer"] == "[two]"


def test_an_edited_plan_and_allocation_are_what_is_run() -> None:
    graph, _ = asked(PLAN)
    args = shown(graph.invoke("q", CONFIG))["args"]
    args["plan"]["subtasks"][1]["text"] = "three"
    result = graph.invoke(edit({"plan": args["plan"], "members": {"s2": "m2"}}), CONFIG)
    assert result["answer"] == "[three]"
    assert {name: step["member"] for name, step in result["steps"].items()} == {
        "s1": "m1",
        "s2": "m2",
    }


class Revising(CheapestFirst):
    """Asked again once a step's references are filled in."""

    revises = True


def test_a_humans_choice_stands_when_references_are_filled_in() -> None:
    graph = create_r2_graph(
        pool_of(echo(), echo()),
        decomposer=Planned("s1: one\ns2: {s1} more\ns3: {s2} still"),
        allocator=Revising(),
        review_plan=True,
        checkpointer=InMemorySaver(),
    )
    args = shown(graph.invoke("q", CONFIG))["args"]
    result = graph.invoke(edit({"plan": args["plan"], "members": {"s2": "m2"}}), CONFIG)
    assert [step["member"] for step in result["steps"].values()] == ["m1", "m2", "m1"]
    assert trace(result).steps[1].choice.reason == "a human chose it"


def test_a_rejection_is_feedback_for_another_plan_which_is_reviewed_again() -> None:
    graph, planner = asked(PLAN, "s1: better")
    graph.invoke("q", CONFIG)
    paused = graph.invoke(decided(type="reject", message="too long"), CONFIG)
    assert shown(paused)["description"] == "s1 (m1): better"
    assert [item.reason for item in planner.contexts[1].feedback] == ["too long"]
    assert graph.invoke(decided(type="approve"), CONFIG)["answer"] == "[better]"


def test_a_rejection_with_no_rounds_left_ends_the_run_unanswered() -> None:
    graph, _ = asked(PLAN, "s1: better")
    graph.invoke("q", CONFIG)
    graph.invoke(decided(type="reject"), CONFIG)
    result = graph.invoke(decided(type="reject"), CONFIG)
    assert (result["answer"], result["stop_reason"], result["steps"]) == ("", "rounds", {})


@pytest.mark.parametrize(
    "wrong",
    [
        Command(resume="yes"),
        Command(resume={"decisions": []}),
        decided(type="respond", message="hm"),
        edit({"plan": {"subtasks": []}, "members": {}}),
        edit({"plan": {"subtasks": [{"id": "s1", "text": "x"}]}, "members": {"s1": "m9"}}),
        edit({"plan": {"subtasks": [{"id": "s1", "text": "x"}]}, "members": {"s2": "m1"}}),
    ],
)
def test_a_decision_that_cannot_be_followed_is_asked_for_again(wrong: Command[Any]) -> None:
    graph, _ = asked(PLAN)
    graph.invoke("q", CONFIG)
    again = graph.invoke(wrong, CONFIG)
    assert shown(again)["description"].startswith("That cannot be done: ")
    assert graph.invoke(decided(type="approve"), CONFIG)["answer"] == "[two]"
