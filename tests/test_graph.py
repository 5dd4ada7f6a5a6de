"""The graph: from a query to a checked answer with its bill, in every way LangGraph can run it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompt_values import ChatPromptValue
from langgraph.graph import END, START, MessagesState, StateGraph

from r2graph.allocate import Allocator, CheckpointAllocator, Choice, FixedAllocator
from r2graph.decompose import CheckpointDecomposer
from r2graph.errors import (
    ConfigError,
    EmptyQueryError,
    ModelCallError,
    PlanError,
    QueryError,
    RouterMismatchError,
    UnknownModelError,
    UnsupportedQueryError,
)
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.limits import Limits
from r2graph.plan import parse_text, render_json
from r2graph.state import R2Output
from r2graph.verify import Attempt, CallableVerifier, ConfidenceVerifier, JudgeVerifier
from tests.fakes import (
    FakeChat,
    ListeningChat,
    MeetingChat,
    Planned,
    ProviderError,
    answering,
    echo,
    member,
    pool_of,
    scripted,
)

ABC = "s1: a\ns2: b\ns3: {s1} {s2}"
RESULT_KEYS = set(R2Output.__annotations__)
Invoke = Callable[..., Awaitable[dict[str, Any]]]


async def in_sync(graph: R2Graph, *args: Any, **kwargs: Any) -> dict[str, Any]:
    result: dict[str, Any] = graph.invoke(*args, **kwargs)
    return result


async def in_async(graph: R2Graph, *args: Any, **kwargs: Any) -> dict[str, Any]:
    result: dict[str, Any] = await graph.ainvoke(*args, **kwargs)
    return result


@pytest.fixture(params=[in_sync, in_async], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Invoke:
    chosen: Invoke = request.param
    return chosen


def accepts(*outputs: str) -> CallableVerifier:
    """A check that lets only these outputs pass."""
    return CallableVerifier(lambda attempt: attempt.output in outputs)


def graph_of(*chats: FakeChat, plan: str = ABC, **options: Any) -> R2Graph:
    options = {"decomposer": Planned(plan)} | options
    return create_r2_graph(pool_of(*chats), **options)


# The main job


async def test_a_query_becomes_an_answer_with_its_bill(run: Invoke) -> None:
    result = await run(graph_of(echo(), echo(), verifier=accepts("[a]", "[b]", "[[a] [b]]")), "q")
    assert set(result) == RESULT_KEYS
    assert result["answer"] == result["messages"][-1].text == "[[a] [b]]"
    assert isinstance(result["messages"][-1], AIMessage)
    assert result["plan"] == render_json(parse_text(ABC))
    assert result["stop_reason"] == "verified"
    assert {name: step["prompt"] for name, step in result["steps"].items()} == {
        "s1": "a",
        "s2": "b",
        "s3": "[a] [b]",
    }
    assert {chosen["member"] for chosen in result["allocation"].values()} == {"m1"}


async def test_the_bill_counts_every_call_at_its_price(run: Invoke) -> None:
    judge = JudgeVerifier("m3")
    strong = FakeChat(answer=lambda text: "no" if "[a]" in text else "yes")
    graph = graph_of(echo(), scripted("A"), strong, plan="s1: a", verifier=judge)
    result = await run(graph, "q")
    assert result["answer"] == "A"
    assert [attempt["ok"] for attempt in result["steps"]["s1"]["attempts"]] == [False, True]
    usage = result["usage"]
    assert (usage["m1"]["calls"], usage["m2"]["calls"], usage["m3"]["calls"]) == (1, 1, 2)
    costs = {name: Decimal(each["cost_usd"]) for name, each in usage.items()}
    assert costs["m1"] == Decimal("0.000002")  # one word in, one word out, a dollar a million
    assert costs["m2"] == Decimal("0.00002")
    assert costs["m3"] == 100 * Decimal(usage["m3"]["input_tokens"] + 2) / 10**6
    assert Decimal(result["cost_usd"]) == sum(costs.values())
    assert Decimal(result["verifier_cost_usd"]) == costs["m3"]
    assert result["router_cost_usd"] == "0"
    # The accepted attempt had two tokens; on the strongest member they cost a hundred dollars a
    # million.
    assert result["counterfactual_usd"] == "0.0002"


async def test_the_router_is_on_the_bill(run: Invoke) -> None:
    planner = member("planner", scripted("s1: a\ns2: b"), "5")
    chooser = member("chooser", scripted("m1 m9"), "7")
    result = await run(
        graph_of(
            echo(),
            echo(),
            decomposer=CheckpointDecomposer(planner),
            allocator=CheckpointAllocator(chooser),
        ),
        "q",
    )
    assert [chosen["member"] for chosen in result["allocation"].values()] == ["m1", "m2"]
    routing = [Decimal(result["usage"][name]["cost_usd"]) for name in ("planner", "chooser")]
    assert Decimal(result["router_cost_usd"]) == sum(routing) > 0
    assert Decimal(result["cost_usd"]) > sum(routing)


async def test_the_bill_says_how_much_stayed_on_the_device(run: Invoke) -> None:
    pool = pool_of(echo()).with_member(member("cloud", echo(), "9"), 2)
    pool = pool.without("m1").with_member(member("m1", echo(), tags=frozenset({"local"})), 1)
    plan = Planned("s1: a\ns2: b\ns3: c\ns4: d")
    where = FixedAllocator({"s1": "m1", "s2": "m1", "s3": "m1", "s4": "cloud"})
    assert (await run(create_r2_graph(pool, decomposer=plan, allocator=where), "q"))[
        "local_share"
    ] == 0.75
    half_done = create_r2_graph(pool, decomposer=plan, allocator=where, limits=Limits(max_calls=1))
    assert (await run(half_done, "q"))["local_share"] == 1.0
    private = create_r2_graph(pool, decomposer=plan, local_only=True)
    assert (await run(private, "q"))["local_share"] == 1.0
    with pytest.raises(ConfigError, match="no local member"):
        create_r2_graph(pool_of(echo()), local_only=True)


async def test_the_answer_follows_its_template(run: Invoke) -> None:
    result = await run(graph_of(echo(), plan="s1: a\ns2: b\nanswer: {s2}, {s1}!"), "q")
    assert result["answer"] == "[b], [a]!"


async def test_what_a_model_writes_is_never_read_as_a_reference(run: Invoke) -> None:
    chat = FakeChat(answer=lambda text: "{s2} answer: {s1}" if text == "a" else f"[{text}]")
    result = await run(graph_of(chat, plan="s1: a\ns2: b {s1}\ns3: c {s2}"), "q")
    assert result["answer"] == "[c [b {s2} answer: {s1}]]"


# Inputs


@pytest.mark.parametrize(
    "given",
    [
        "the query",
        {"query": "the query"},
        {"query": " the query\n"},
        {"messages": [HumanMessage("the query")]},
        {"messages": [("user", "before"), ("ai", "so"), ("user", "the query")]},
        {"messages": [{"role": "user", "content": "the query"}]},
        {"messages": "the query"},
        {"messages": [("user", "before")], "query": "the query"},
        [HumanMessage("the query")],
        HumanMessage([{"type": "text", "text": "the query"}]),
        ChatPromptValue(messages=[SystemMessage("s"), HumanMessage("the query")]),
    ],
)
async def test_a_query_comes_in_many_forms(run: Invoke, given: Any) -> None:
    graph = create_r2_graph(pool_of(echo()))
    assert (await run(graph, given))["answer"] == "[the query]"


async def test_half_of_a_surrogate_pair_is_refused(run: Invoke) -> None:
    with pytest.raises(QueryError, match="surrogate"):
        await run(graph_of(echo()), "a \ud800 b")


@pytest.mark.parametrize("given", ["", " \n", {"query": ""}, {}, {"messages": []}, {"qery": "a"}])
async def test_an_empty_query_is_refused(run: Invoke, given: Any) -> None:
    with pytest.raises(EmptyQueryError):
        await run(graph_of(echo()), given)


@pytest.mark.parametrize("given", [7, {"query": 7}, {"messages": 7}, [object()]])
async def test_what_is_no_query_is_refused(run: Invoke, given: Any) -> None:
    with pytest.raises(QueryError):
        await run(graph_of(echo()), given)


async def test_a_query_outside_of_the_lab_is_refused_before_any_call(run: Invoke) -> None:
    chat = echo()
    graph = create_r2_graph(pool_of(chat, language="lab"))
    with pytest.raises(UnsupportedQueryError):
        await run(graph, "Who wrote Hamlet?")
    assert chat.calls == []
    assert (await run(graph, "walk  left"))["answer"] == "[walk left]"


@pytest.mark.parametrize(
    "settings",
    [
        {"quality": 7},
        {"quality": -0.1},
        {"quality": float("nan")},
        {"budget_usd": -1},
        {"budget_usd": "much"},
        {"limits": {"max_calls": 0}},
        {"qualty": 0.5},
    ],
    ids=str,
)
async def test_settings_that_make_no_sense_are_refused(run: Invoke, settings: Any) -> None:
    with pytest.raises(ConfigError):
        await run(graph_of(echo()), "q", context=settings)
    if {"quality", "budget_usd"} & settings.keys():
        with pytest.raises(ConfigError):
            graph_of(echo(), **settings)


# Settings of one run


class Remembers(Allocator):
    """Cheapest first; remembers the contexts it was asked in."""

    def __init__(self) -> None:
        self.contexts: list[Any] = []

    def allocate(self, steps: Any, context: Any) -> Any:
        self.contexts.append(context)
        return FixedAllocator(context.pool.names[0]).allocate(steps, context)


async def test_a_run_has_settings_of_its_own(run: Invoke) -> None:
    allocator = Remembers()
    graph = graph_of(echo(), allocator=allocator, quality=0.5, budget_usd="0.5")
    await run(graph, "q")
    await run(graph, "q", context={"quality": 0.25, "budget_usd": 0.25})
    assert [(c.quality, c.budget_left) for c in allocator.contexts] == [
        (0.5, Decimal("0.5")),
        (0.25, Decimal("0.25")),
    ]


async def test_a_run_changes_only_the_limits_it_names(run: Invoke) -> None:
    graph = graph_of(echo(), limits=Limits(max_calls=2))
    assert (await run(graph, "q"))["stop_reason"] == "calls"
    result = await run(graph, "q", context={"limits": {"max_rounds": 1}})
    assert result["stop_reason"] == "calls"
    result = await run(graph, "q", context={"limits": {"max_calls": 3}})
    assert result["stop_reason"] == "unverified"


async def test_a_run_can_use_another_pool_by_name(run: Invoke) -> None:
    other = pool_of(scripted("other"))
    graph = graph_of(echo(), plan="s1: a", pools={"other": other})
    assert (await run(graph, "q"))["answer"] == "[a]"
    assert (await run(graph, "q", context={"pool": "other"}))["answer"] == "other"
    with pytest.raises(UnknownModelError, match="other"):
        await run(graph, "q", context={"pool": "mine"})
    with pytest.raises(ConfigError, match="language"):
        graph_of(echo(), pools={"other": pool_of(echo(), language="any")})


def test_a_router_serves_only_pools_of_its_language() -> None:
    from tests.test_router import lab_router

    with pytest.raises(RouterMismatchError):
        create_r2_graph(pool_of(echo(), language="any"), router=lab_router())


# Dataflow


async def test_a_step_starts_when_its_own_dependencies_are_done(run: Invoke) -> None:
    # s1 answers only after s3 was asked, though s3 comes two waves later: a barrier would time out.
    chat = MeetingChat(answer=lambda text: f"[{text}]", waits_for={"a": "c [b]"})
    plan = "s1: a\ns2: b\ns3: c {s2}\ns4: {s1} {s3}"
    assert (await run(graph_of(chat, plan=plan), "q"))["answer"] == "[[a] [c [b]]]"


async def test_twelve_steps_can_run_at_the_same_time(run: Invoke) -> None:
    names = [f"p{number}" for number in range(1, 13)]
    waits_for = dict(pairwise(names))  # each for the next: all must be started
    chat = MeetingChat(answer=lambda text: f"[{text}]", waits_for=waits_for)
    plan = "\n".join(f"s{number}: {name}" for number, name in enumerate(names, 1))
    assert (await run(graph_of(chat, plan=plan), "q"))["answer"] == "[p12]"


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("modes", ["values", ["custom", "updates", "tasks", "messages"]], ids=str)
async def test_few_calls_at_once_do_not_lock_a_run_up(
    run: Invoke, at_once: int, modes: Any
) -> None:
    running, most, lock = 0, 0, threading.Lock()

    class Counting(FakeChat):
        def _result(self, messages: Any, options: Any) -> Any:
            nonlocal running
            with lock:
                running -= 1
            return super()._result(messages, options)

        def _generate(self, messages: Any, *args: Any, **options: Any) -> Any:
            enter()
            return super()._generate(messages, *args, **options)

        async def _agenerate(self, messages: Any, *args: Any, **options: Any) -> Any:
            enter()
            return await super()._agenerate(messages, *args, **options)

    def enter() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)

    chat = Counting(answer=lambda text: f"[{text}]", delay_s=0.01)
    plan = "\n".join(["s1: a", *(f"s{n}: b" for n in range(2, 8)), "s8: {s1} {s7}"])
    graph = graph_of(chat, plan=plan)
    await run(graph, "q", {"max_concurrency": at_once}, stream_mode=modes)
    assert len(chat.calls) == 8
    assert most <= at_once


async def test_the_allocator_is_asked_again_once_references_are_filled(run: Invoke) -> None:
    chooser = answering(
        {"q9\ns1: a\ns2: b {s1}": "m1 m1", "q9\ns1: b [a]": "m9", "q9\ns1: a": "wrong"}
    )
    allocator = CheckpointAllocator(member("chooser", chooser))
    graph = graph_of(echo(), scripted("B"), plan="s1: a\ns2: b {s1}", allocator=allocator)
    result = await run(graph, "q")
    assert result["answer"] == "B"
    assert result["allocation"]["s2"]["member"] == "m2"
    assert result["allocation"]["s2"]["slot"] == 9
    assert len(chooser.calls) == 2


async def test_an_allocator_that_fails_gives_way_to_cheapest_first(run: Invoke) -> None:
    for broken in (scripted("I think m1"), scripted(ProviderError(500))):
        allocator = CheckpointAllocator(member("chooser", broken))
        result = await run(graph_of(echo(), plan="s1: a", allocator=allocator), "q")
        assert result["answer"] == "[a]"
        assert "allocator failed" in result["allocation"]["s1"]["reason"]


# Checks and escalation


async def test_a_failed_step_moves_up_in_place(run: Invoke) -> None:
    graph = graph_of(
        answering({"a": "[a]", "b": "wrong"}),
        answering({"b": "worse"}),
        FakeChat(answer=lambda text: "right" if text == "b" else text.upper()),
        verifier=CallableVerifier(lambda tried: tried.output not in {"wrong", "worse", "?"}),
    )
    result = await run(graph, "q")
    assert result["answer"] == "[A] RIGHT"
    tried = {name: [a["member"] for a in s["attempts"]] for name, s in result["steps"].items()}
    assert tried == {"s1": ["m1"], "s2": ["m1", "m2", "m3"], "s3": ["m1", "m2", "m3"]}
    assert result["steps"]["s2"]["member"] == "m3"
    assert result["stop_reason"] == "verified"


class ByText(Allocator):
    """The cheapest member for each step, checked at the level that its text has here, if any."""

    revises = True

    def __init__(self, **levels: int) -> None:
        self.levels = levels

    def allocate(self, steps: Any, context: Any) -> list[Choice]:
        cheapest = context.pool.names[0]
        return [Choice(cheapest, "by text", check=self.levels.get(step.text)) for step in steps]


@pytest.mark.parametrize(("quality", "member_at_quality"), [(0.1, "m1"), (1, "m2")])
async def test_a_step_is_checked_at_the_level_of_its_choice_else_at_the_runs_quality(
    run: Invoke, quality: float, member_at_quality: str
) -> None:
    graph = graph_of(
        echo(logprob=-0.5),
        echo(logprob=-0.01),
        plan="s1: a\ns2: b\ns3: c\ns4: d {s1}",
        allocator=ByText(**{"a": 1, "b": 10, "d {s1}": 1, "d [a]": 10}),
        verifier=ConfidenceVerifier([-1 + level / 10 for level in range(10)]),
    )
    result = await run(graph, "q", context={"quality": quality})
    levels = {name: chosen["check"] for name, chosen in result["allocation"].items()}
    assert levels == {"s1": 1, "s2": 10, "s3": None, "s4": 10}
    members = {name: step["member"] for name, step in result["steps"].items()}
    assert members == {"s1": "m1", "s2": "m2", "s3": member_at_quality, "s4": "m2"}


async def test_a_step_is_tried_only_so_often(run: Invoke) -> None:
    chats = [echo() for _ in range(5)]
    limits = Limits(max_attempts_per_step=3, max_rounds=1)
    graph = graph_of(*chats, plan="s1: a\ns2: b {s1}", verifier=accepts("[b [a]]"), limits=limits)
    result = await run(graph, "q")
    assert [len(chat.calls) for chat in chats] == [2, 1, 1, 0, 0]
    assert result["steps"]["s1"]["ok"] is False
    assert (result["answer"], result["stop_reason"]) == ("[b [a]]", "attempts")


async def test_a_member_that_is_down_is_passed_over(run: Invoke) -> None:
    result = await run(graph_of(scripted(ProviderError(500)), echo(), plan="s1: a"), "q")
    assert result["answer"] == "[a]"
    assert [attempt["ok"] for attempt in result["steps"]["s1"]["attempts"]] == [False, None]


async def test_a_pool_that_is_down_is_a_typed_error_that_says_what_it_cost(run: Invoke) -> None:
    planner = CheckpointDecomposer(member("planner", scripted(ABC), "1000000"))
    graph = graph_of(scripted(ProviderError(401)), decomposer=planner)
    with pytest.raises(ModelCallError, match="refused the key") as caught:
        await run(graph, "q")
    assert caught.value.cost_usd == str(2 + len(ABC.split()))


async def test_the_last_output_is_kept_when_a_stronger_member_is_down(run: Invoke) -> None:
    limits = Limits(max_rounds=1)
    verifier = accepts("nothing")
    down = scripted(ProviderError(500))
    result = await run(graph_of(echo(), down, plan="s1: a", verifier=verifier, limits=limits), "q")
    assert (result["answer"], result["stop_reason"]) == ("[a]", "attempts")


async def test_an_empty_reply_moves_a_step_up(run: Invoke) -> None:
    result = await run(graph_of(scripted(""), echo(), plan="s1: a"), "q")
    assert result["answer"] == "[a]"


async def test_no_verdict_is_neither_verified_nor_rejected(run: Invoke) -> None:
    verifier = CallableVerifier(lambda _: None)
    assert (await run(graph_of(echo(), verifier=verifier), "q"))["stop_reason"] == "unverified"
    answer = accepts("[[a] [b]]")
    graph = graph_of(echo(), verifier=verifier, answer_verifier=answer)
    assert (await run(graph, "q"))["stop_reason"] == "verified"


# Re-planning


async def test_a_rejected_answer_gets_a_new_plan(run: Invoke) -> None:
    planner = Planned("s1: a", "s1: b\ns2: c {s1}")
    graph = graph_of(echo(), decomposer=planner, answer_verifier=accepts("[c [b]]"))
    result = await run(graph, "q")
    assert (result["answer"], result["stop_reason"]) == ("[c [b]]", "verified")
    assert set(result["steps"]) == {"s1", "s2"}
    [feedback] = planner.contexts[1].feedback
    assert feedback.plan == parse_text("s1: a")
    assert "the answer was rejected" in feedback.reason
    assert result["usage"]["m1"]["calls"] == 3
    assert len(result["messages"]) == 2


async def test_a_plan_whose_step_failed_is_given_up(run: Invoke) -> None:
    planner = Planned("s1: a\ns2: b", "s1: c")
    graph = graph_of(echo(), decomposer=planner, verifier=accepts("[a]", "[c]"))
    result = await run(graph, "q")
    assert (result["answer"], result["stop_reason"]) == ("[c]", "verified")
    assert "step s2 failed its check" in planner.contexts[1].feedback[0].reason


async def test_only_so_many_plans_are_made(run: Invoke) -> None:
    planner = Planned("s1: a", "s1: b", "s1: c", "s1: d")
    limits = Limits(max_rounds=3)
    graph = graph_of(echo(), decomposer=planner, answer_verifier=accepts("[d]"), limits=limits)
    result = await run(graph, "q")
    assert len(planner.contexts) == 3
    assert (result["answer"], result["stop_reason"]) == ("[c]", "rounds")


async def test_the_same_plan_is_not_run_twice(run: Invoke) -> None:
    chat = echo()
    graph = graph_of(
        chat, plan="s1: a", answer_verifier=accepts("[b]"), limits=Limits(max_rounds=9)
    )
    result = await run(graph, "q")
    assert len(chat.calls) == 1
    assert (result["answer"], result["stop_reason"]) == ("[a]", "rounds")


async def test_a_plan_that_does_not_parse_is_asked_for_again(run: Invoke) -> None:
    planner = CheckpointDecomposer(member("planner", scripted("s1: {s2}\ns2: {s1}", "s1: a")))
    result = await run(graph_of(echo(), decomposer=planner), "q")
    assert result["answer"] == "[a]"
    assert result["usage"]["planner"]["calls"] == 2


async def test_no_valid_plan_at_all_is_a_typed_error(run: Invoke) -> None:
    planner = CheckpointDecomposer(member("planner", scripted("s1: {s2}\ns2: {s1}")))
    with pytest.raises(PlanError, match="cyclic") as caught:
        await run(graph_of(echo(), decomposer=planner), "q")
    assert Decimal(caught.value.cost_usd or 0) > 0


async def test_a_plan_with_too_many_steps_is_refused(run: Invoke) -> None:
    with pytest.raises(PlanError, match="3 subtasks"):
        await run(graph_of(echo(), limits=Limits(max_steps=2)), "q")


async def test_a_planner_that_is_down_leaves_the_query_whole(run: Invoke) -> None:
    planner = CheckpointDecomposer(member("planner", scripted(ProviderError(500))))
    assert (await run(graph_of(echo(), decomposer=planner), "q"))["answer"] == "[q]"


# Limits


async def test_a_budget_is_never_passed_and_what_there_is_is_returned(run: Invoke) -> None:
    # At worst a call costs 0.0011 dollars on m1 and ten times that on m2.
    graph = graph_of(echo(), echo(), plan="s1: a\ns2: b", verifier=accepts("[a]"))
    result = await run(graph, "q", context={"budget_usd": "0.005"})
    assert result["stop_reason"] == "budget"
    assert result["steps"]["s2"]["stopped"] == "budget"
    assert result["answer"] == "[b]"
    assert Decimal(result["cost_usd"]) <= Decimal("0.005")


async def test_without_money_there_is_no_answer_and_no_call(run: Invoke) -> None:
    chat = echo()
    result = await run(graph_of(chat, budget_usd=0), "q")
    assert (result["answer"], result["stop_reason"]) == ("", "budget")
    assert result["steps"]["s3"]["output"] is None
    assert chat.calls == []
    assert [type(message) for message in result["messages"]] == [HumanMessage]


@pytest.mark.parametrize("role", ["decomposer", "allocator", "executor", "verifier"])
async def test_a_limit_ends_a_run_wherever_it_is_reached(run: Invoke, role: str) -> None:
    planner = CheckpointDecomposer(member("planner", scripted("s1: a")))
    chooser = CheckpointAllocator(member("chooser", scripted("m1")))
    graph = graph_of(
        echo(), scripted("yes"), decomposer=planner, allocator=chooser, verifier=JudgeVerifier()
    )
    before = ["decomposer", "allocator", "executor", "verifier"].index(role)
    # One call fewer than it takes to get past this role; the first limit that a model can allow is
    # one, so the planner's is reached by the clock.
    limits = {"max_calls": before} if before else {"deadline_s": 1e-9}
    result = await run(graph, "q", context={"limits": limits})
    assert result["stop_reason"] == ("calls" if before else "deadline")
    assert result["answer"] == ("[a]" if role == "verifier" else "")
    assert set(result) == RESULT_KEYS


async def test_a_model_that_hangs_ends_with_the_deadline(run: Invoke) -> None:
    graph = graph_of(echo(delay_s=1.0), limits=Limits(deadline_s=0.1))
    result = await run(graph, "q")
    assert (result["answer"], result["stop_reason"]) == ("", "deadline")


async def test_a_rejected_answer_is_kept_when_a_limit_stops_its_successor(run: Invoke) -> None:
    planner = Planned("s1: a", "s1: b\ns2: c {s1}")
    graph = graph_of(
        echo(), decomposer=planner, answer_verifier=accepts("[x]"), limits=Limits(max_calls=2)
    )
    result = await run(graph, "q")
    assert (result["answer"], result["stop_reason"]) == ("[a]", "calls")


async def test_steps_of_a_plan_that_was_given_up_do_not_answer_for_the_next(run: Invoke) -> None:
    graph = graph_of(
        echo(),
        decomposer=Planned("s1: a", "s1: b\nanswer: new {s1}"),
        allocator=CheckpointAllocator(member("chooser", scripted("m1"))),
        answer_verifier=accepts("new [b]"),
        limits=Limits(max_calls=2),
    )
    result = await run(graph, "q")
    assert (result["answer"], result["stop_reason"]) == ("[a]", "calls")
    assert result["steps"] == {}


async def test_runs_side_by_side_keep_their_own_books() -> None:
    graph = graph_of(echo(delay_s=0.001))
    results = await asyncio.gather(*(graph.ainvoke(f"q{i}") for i in range(50)))
    assert {result["cost_usd"] for result in results} == {results[0]["cost_usd"]}
    assert len({result["run_id"] for result in results}) == 50


# Ways to run


def test_batches_run() -> None:
    graph = create_r2_graph(pool_of(echo()))
    results = graph.batch(["a", {"query": "b"}], {"max_concurrency": 1})
    assert [result["answer"] for result in results] == ["[a]", "[b]"]


async def test_asynchronous_batches_run() -> None:
    graph = create_r2_graph(pool_of(echo()))
    results = await graph.abatch(["a", "b"])
    assert [result["answer"] for result in results] == ["[a]", "[b]"]


def test_a_stream_tells_what_happens() -> None:
    graph = graph_of(echo(), echo(), plan="s1: a", verifier=accepts("none", "[a]"))
    events = [event["event"] for event in graph.stream("q", stream_mode="custom")]
    assert events == ["plan", "allocation", "asked", "attempt", "step", "answer"]
    nodes = [list(update) for update in graph.stream("q", stream_mode="updates")]
    assert nodes == [["decompose"], ["allocate"], ["step"], ["execute_step"], ["verify"]]


async def test_an_asynchronous_stream_tells_the_same() -> None:
    graph = graph_of(echo(), plan="s1: a")
    events = [event["event"] async for event in graph.astream("q", stream_mode="custom")]
    assert events == ["plan", "allocation", "asked", "attempt", "step", "answer"]
    last = [state async for state in graph.astream("q", stream_mode="values")][-1]
    assert last["answer"] == "[a]"


async def events_of(graph: R2Graph, mode: str) -> list[dict[str, Any]]:
    if mode == "sync":
        return list(graph.stream("q", stream_mode="custom"))
    return [event async for event in graph.astream("q", stream_mode="custom")]


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_before_each_attempt_of_a_step_a_stream_tells_who_is_asked(mode: str) -> None:
    down = scripted(ProviderError(401))
    graph = graph_of(scripted("wrong"), down, echo(), verifier=accepts("[a]", "[b]", "[[a] [b]]"))
    told = await events_of(graph, mode)
    tries = [
        [(e["event"], e["member"]) for e in told if e.get("step") == step]
        for step in ("s1", "s2", "s3")
    ]
    up = [(event, name) for name in ("m1", "m2", "m3") for event in ("asked", "attempt")]
    assert tries == [up, up, up]


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_stream_tells_of_each_call_its_role_and_never_its_prompt(mode: str) -> None:
    graph = graph_of(
        echo(),
        scripted("yes"),
        decomposer=CheckpointDecomposer(member("planner", scripted("s1: a\ns2: b {s1}"))),
        allocator=CheckpointAllocator(member("chooser", scripted("m1 m1", "m1"))),
        verifier=JudgeVerifier(),
    )
    asked = [event for event in await events_of(graph, mode) if event["event"] == "asked"]
    assert [(each["step"], each["member"], each["role"]) for each in asked] == [
        (None, "planner", "decomposer"),
        (None, "chooser", "allocator"),
        ("s1", "m1", "executor"),
        ("s1", "m2", "verifier"),
        ("s2", "chooser", "allocator"),
        ("s2", "m1", "executor"),
        ("s2", "m2", "verifier"),
    ]
    assert all(each.keys() == {"event", "step", "member", "role"} for each in asked)


def test_only_what_steps_say_is_streamed_as_messages() -> None:
    planner = CheckpointDecomposer(member("planner", scripted("s1: a")))
    graph = graph_of(echo(), decomposer=planner)
    said = [message.text for message, _ in graph.stream("q", stream_mode="messages")]
    assert "s1: a" not in said
    assert "[a]" in said


async def test_the_graph_can_be_a_node_of_another(run: Invoke) -> None:
    outer = StateGraph(MessagesState)
    outer.add_node("ask", create_r2_graph(pool_of(echo())))
    outer.add_edge(START, "ask")
    outer.add_edge("ask", END)
    result = await run(outer.compile(), {"messages": [HumanMessage("inner")]})
    assert [message.text for message in result["messages"]] == ["inner", "[inner]"]


def test_the_drawing_shows_the_way_back() -> None:
    edges = {
        (edge.source, edge.target) for edge in create_r2_graph(pool_of(echo())).get_graph().edges
    }
    assert edges == {
        ("__start__", "decompose"),
        ("decompose", "allocate"),
        ("allocate", "execute_step"),
        ("execute_step", "verify"),
        ("verify", "decompose"),
        ("verify", "__end__"),
    }


def test_a_copy_with_a_config_is_still_the_graph() -> None:
    graph = create_r2_graph(pool_of(echo()), name="mine").with_config(tags=["x"])
    assert isinstance(graph, R2Graph)
    assert graph.name == "mine"
    assert graph.invoke("q")["answer"] == "[q]"


def test_a_servers_schemas_can_be_made() -> None:
    graph = create_r2_graph(pool_of(echo()))
    assert set(graph.get_input_jsonschema()["properties"]) == {"query", "messages"}
    assert set(graph.get_output_jsonschema()["properties"]) == RESULT_KEYS
    context = graph.get_context_jsonschema()
    assert context is not None
    assert set(context["properties"]) == {"quality", "budget_usd", "limits", "pool"}
    json.dumps(context)


# General models


def natural(*chats: FakeChat, **options: Any) -> R2Graph:
    return create_r2_graph(pool_of(*chats, language="any"), **options)


async def test_a_pool_of_general_models_is_routed_without_a_router(run: Invoke) -> None:
    plan = {"subtasks": [{"id": "s1", "text": "length?"}, {"id": "s2", "text": "half of {s1}?"}]}

    def strong(text: str) -> str:
        if "<answer>" in text:
            return "yes" if "2850" in text else "no"
        return json.dumps(plan)

    weak = FakeChat(answer=lambda text: "2850 km" if text.startswith("length?") else "unsure")
    middle = FakeChat(answer=lambda text: "yes" if "2850" in text else "1425 km")
    query = (
        "What is half the length of the Danube, from where it rises to where it flows into the sea?"
    )
    result = await run(natural(weak, middle, FakeChat(answer=strong)), query)
    assert result["steps"]["s1"]["member"] == "m1"
    assert result["steps"]["s2"]["prompt"] == "half of 2850 km?"
    assert result["plan"]["answer"] is None
    assert "one step of a larger task" in weak.prompts[0]
    assert Decimal(result["router_cost_usd"]) > 0
    assert Decimal(result["verifier_cost_usd"]) > 0


async def test_a_sure_answer_to_a_simple_query_takes_one_call(run: Invoke) -> None:
    weak, strong = scripted("Oslo", logprob=-0.01), scripted("no")
    result = await run(natural(weak, strong), "What is the capital of Norway?")
    assert (result["answer"], result["stop_reason"]) == ("Oslo", "verified")
    assert (len(weak.calls), len(strong.calls)) == (1, 0)


TALK = {"messages": [("system", "Be brief."), ("user", "1?"), ("ai", "One."), ("user", "2?")]}


@pytest.mark.parametrize(
    ("language", "heard"),
    [("any", ["Be brief.", "1?", "One.", "2?"]), ("test", ["2?"])],
    ids=["general models", "models of a trained language"],
)
async def test_what_was_said_before_reaches_those_who_understand_it(
    run: Invoke, language: str, heard: list[str]
) -> None:
    chat = ListeningChat(answer=lambda _: "Two.")
    await run(create_r2_graph(pool_of(chat, language=language)), TALK)
    assert chat.heard == [heard]


async def test_a_model_that_refuses_log_probabilities_still_answers(run: Invoke) -> None:
    stubborn = echo(refuses=frozenset({"logprobs"}))
    result = await run(natural(stubborn), "q")
    assert result["answer"] == "[q]"
    assert result["steps"]["s1"]["attempts"][0]["reason"] == "nobody is strong enough to judge"


async def test_an_attempt_knows_what_it_answers(run: Invoke) -> None:
    seen: list[Attempt] = []
    checks = CallableVerifier(lambda tried: seen.append(tried))
    await run(
        graph_of(echo(), plan="s1: a\ns2: b {s1}", verifier=checks, answer_verifier=checks), "q"
    )
    assert [(a.step, a.task, a.output, a.member) for a in seen] == [
        ("s1", "a", "[a]", "m1"),
        ("s2", "b [a]", "[b [a]]", "m1"),
        (None, "q", "[b [a]]", "m1"),
    ]
