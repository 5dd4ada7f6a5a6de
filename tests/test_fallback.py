"""Where a member cannot be reached another is asked, whatever it was wanted for."""

from __future__ import annotations

import pytest

from r2graph.allocate import AllocateContext, PromptedAllocator
from r2graph.calls import ModelCall, ask, flowing
from r2graph.decompose import DecomposeContext, PromptedDecomposer
from r2graph.errors import ModelCallError
from r2graph.plan import single
from r2graph.verify import Attempt, JudgeVerifier, VerifyContext
from tests.fakes import echo, pool_of, replay, reply

POOL = pool_of(*[echo()] * 3)
DOWN = ModelCallError("m", "unavailable")


def test_others_are_asked_upwards_first() -> None:
    assert [spec.name for spec in POOL.others("m2")] == ["m3", "m1"]


def test_a_call_goes_on_to_the_others_until_one_answers() -> None:
    call = ModelCall("executor", POOL["m2"], [])
    got, calls = replay(ask(call, POOL.others("m2")), DOWN, DOWN, reply("yes", member="m1"))
    assert (got.member, [c.spec.name for c in calls]) == ("m1", ["m2", "m3", "m1"])


def test_the_last_error_is_the_one_that_is_raised() -> None:
    call = ModelCall("executor", POOL["m3"], [])
    with pytest.raises(ModelCallError, match="refused the key"):
        replay(ask(call, [POOL["m2"]]), DOWN, ModelCallError("m2", "auth"))


def test_a_request_that_is_bad_is_bad_for_all() -> None:
    call = ModelCall("executor", POOL["m3"], [])
    with pytest.raises(ModelCallError, match="refused the request"):
        replay(ask(call, [POOL["m2"]]), ModelCallError("m3", "bad_request"))


def test_a_plan_comes_from_the_next_member_where_the_planner_is_down() -> None:
    flow = PromptedDecomposer(single_below=0).decompose("why?", DecomposeContext(POOL))
    plan, calls = replay(flowing(flow), DOWN, reply('{"subtasks": [{"id": "s1", "text": "why?"}]}'))
    assert [call.spec.name for call in calls] == ["m3", "m2"]
    assert plan.subtasks[0].text == "why?"


def test_an_allocation_comes_from_the_next_member_where_the_first_is_down() -> None:
    steps = single("why?").subtasks
    flow = PromptedAllocator().allocate(steps, AllocateContext(POOL, "why?", 0.9))
    [choice], calls = replay(flow, DOWN, reply("2"))
    assert (choice.member, [call.spec.name for call in calls]) == ("m2", ["m3", "m2"])


def test_a_judge_that_is_down_is_replaced_by_a_stronger_one_alone() -> None:
    flow = JudgeVerifier().verify(Attempt("q", "a", "m1"), VerifyContext(POOL, "q"))
    verdict, calls = replay(flowing(flow), DOWN, reply("yes", member="m3"))
    assert (verdict.ok, verdict.reason) == (True, "m3 says yes")
    assert [call.spec.name for call in calls] == ["m2", "m3"]
