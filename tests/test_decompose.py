"""Decomposers: what they ask, what they make of the reply, and when they ask nobody."""

from __future__ import annotations

import json

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from r2graph.calls import flowing
from r2graph.decompose import (
    CheckpointDecomposer,
    DecomposeContext,
    Feedback,
    PromptedDecomposer,
    SingleDecomposer,
)
from r2graph.errors import PlanError, UnknownModelError
from r2graph.plan import parse_text, render_json, single
from r2graph.pool import ModelPool
from tests.fakes import echo, member, pool_of, replay, reply

POOL = pool_of(echo(), echo(), echo())
LONG = "Which is longer, the Danube or the Rhine, and by how much is it longer than the other one?"
PLAN = parse_text("s1: length of the Danube\ns2: length of the Rhine\ns3: compare {s1} and {s2}")


def context(pool: ModelPool = POOL, **fields: object) -> DecomposeContext:
    return DecomposeContext(pool, **fields)  # type: ignore[arg-type]


def test_single_leaves_the_query_whole() -> None:
    assert SingleDecomposer().decompose(LONG, context()) == single(LONG)


def test_a_checkpoint_is_asked_as_it_was_trained() -> None:
    decomposer = CheckpointDecomposer(member("router", echo()))
    text = "s1: walk left\ns2: jump\nanswer: {s1} {s2}"
    plan, [call] = replay(decomposer.decompose("walk left and jump", context()), reply(text))
    assert plan == parse_text(text)
    assert [message.text for message in call.messages] == ["plan: walk left and jump"]
    assert (call.role, call.spec.name, call.temperature) == ("decomposer", "router", 0.0)


def test_a_checkpoint_does_not_repeat_a_plan_that_failed() -> None:
    decomposer = CheckpointDecomposer(member("router", echo()))
    _, [call] = replay(decomposer.decompose("jump", context(round=2)), reply("s1: jump"))
    assert call.temperature
    assert call.temperature > 0


def test_a_checkpoint_with_a_temperature_samples_its_first_plan_too() -> None:
    decomposer = CheckpointDecomposer(member("router", echo()), temperature=0.4)
    _, [call] = replay(decomposer.decompose("jump", context()), reply("s1: jump"))
    assert call.temperature == 0.4


@pytest.mark.parametrize("text", ["", "jump", "s1: {s2}\ns2: {s1}", "s2: jump"])
def test_a_checkpoints_text_that_is_no_plan_is_an_error(text: str) -> None:
    decomposer = CheckpointDecomposer(member("router", echo()))
    with pytest.raises(PlanError):
        replay(decomposer.decompose("jump", context()), reply(text))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(render_json(PLAN)),
        "Here it is:\n```json\n" + json.dumps(render_json(PLAN)) + "\n```",
        json.dumps({"subtasks": [{"id": s.id, "text": s.text} for s in PLAN.subtasks]}),
    ],
    ids=["bare", "fenced", "without dependencies"],
)
def test_a_prompted_plan_is_read_from_json(text: str) -> None:
    plan, [call] = replay(flowing(PromptedDecomposer().decompose(LONG, context())), reply(text))
    assert plan == PLAN
    assert call.schema is not None
    assert LONG in call.messages[-1].text


@pytest.mark.parametrize("text", ["", "{}", "I cannot", '{"subtasks": []}', "}{"])
def test_a_prompted_reply_without_a_plan_is_an_error(text: str) -> None:
    with pytest.raises(PlanError):
        replay(flowing(PromptedDecomposer().decompose(LONG, context())), reply(text))


def test_the_planner_is_the_named_member_then_the_pools_then_the_strongest() -> None:
    named = pool_of(echo(), echo(), echo(), decomposer="m2")
    text = json.dumps(render_json(PLAN))
    planners = [
        replay(flowing(decomposer.decompose(LONG, context(pool))), reply(text))[1][0].spec.name
        for decomposer, pool in [
            (PromptedDecomposer("m1"), named),
            (PromptedDecomposer(), named),
            (PromptedDecomposer(), POOL),
        ]
    ]
    assert planners == ["m1", "m2", "m3"]
    with pytest.raises(UnknownModelError):
        replay(flowing(PromptedDecomposer("m9").decompose(LONG, context())))


def test_a_simple_query_is_tried_before_it_is_planned() -> None:
    query = "What is the capital of Norway?"
    plan, calls = replay(flowing(PromptedDecomposer().decompose(query, context())))
    assert (plan, calls) == (single(query), [])
    failed = [Feedback(single(query), "the answer was rejected")]
    replies = reply(json.dumps(render_json(PLAN)))
    plan, [call] = replay(
        flowing(PromptedDecomposer().decompose(query, context(feedback=failed, round=2))), replies
    )
    assert plan == PLAN
    assert "the answer was rejected" in call.messages[-1].text


def test_the_planner_sees_what_was_said_before() -> None:
    history = [SystemMessage("Be brief."), HumanMessage("Rivers?"), AIMessage("The Danube.")]
    asked = context(history=history)
    text = json.dumps(render_json(PLAN))
    _, [call] = replay(flowing(PromptedDecomposer().decompose(LONG, asked)), reply(text))
    assert all(said.text in call.messages[-1].text for said in history)


def test_braces_in_a_query_are_just_braces() -> None:
    query = r"What is \frac{1}{2} + {x.__class__} + {s1}? " + LONG
    text = json.dumps(render_json(PLAN))
    _, [call] = replay(flowing(PromptedDecomposer().decompose(query, context())), reply(text))
    assert query in call.messages[-1].text
