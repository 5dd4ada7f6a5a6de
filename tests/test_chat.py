"""ChatR2: the graph as a chat model, with its steps, its bill, tools and structured output."""

from __future__ import annotations

import copy
import json
import operator
import pickle
from collections.abc import Awaitable, Callable
from decimal import Decimal
from functools import reduce
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from pydantic import BaseModel

from r2graph import ChatR2, load_pool
from r2graph.allocate import CheckpointAllocator
from r2graph.calls import ModelCall, worst_usage
from r2graph.door import Door
from r2graph.errors import (
    ConfigError,
    LimitExceeded,
    ModelCallError,
    QueryError,
    RouterMismatchError,
    UnsupportedQueryError,
)
from r2graph.ledger import Ledger
from r2graph.limits import Limits, Meter
from r2graph.outcome_cache import OutcomeCache
from r2graph.whole import fault
from tests.chat_fakes import calling, saying, tool_user
from tests.fakes import (
    FakeChat,
    ListeningChat,
    ProviderError,
    answering,
    echo,
    member,
    pool_of,
    reply,
    router_of,
    scripted,
)

Ask = Callable[..., Awaitable[Any]]
PATIENT = Limits(deadline_s=600, call_timeout_s=600)  # for models that have to be loaded first
QUERY = "jump twice and walk"
ROUTER = router_of(
    {QUERY: "s1: jump\ns2: walk\nanswer: {s1} {s1} {s2}"},
    lambda step: "m9" if step == "walk" else "m1",
)


async def invoke(chat: Any, *args: Any, **kwargs: Any) -> Any:
    return chat.invoke(*args, **kwargs)


async def ainvoke(chat: Any, *args: Any, **kwargs: Any) -> Any:
    return await chat.ainvoke(*args, **kwargs)


async def stream(chat: Any, *args: Any, **kwargs: Any) -> Any:
    return whole(list(chat.stream(*args, **kwargs)))


async def astream(chat: Any, *args: Any, **kwargs: Any) -> Any:
    return whole([chunk async for chunk in chat.astream(*args, **kwargs)])


def whole(chunks: list[Any]) -> Any:
    """Messages add up; of what parsers give, the last is the whole."""
    return reduce(operator.add, chunks) if isinstance(chunks[0], AIMessageChunk) else chunks[-1]


@pytest.fixture(params=[invoke, ainvoke, stream, astream], ids=lambda way: way.__name__)
def ask(request: pytest.FixtureRequest) -> Ask:
    chosen: Ask = request.param
    return chosen


def chat_of(*chats: FakeChat, language: str = "test", **fields: Any) -> ChatR2:
    return ChatR2(model=pool_of(*chats, language=language), **fields)


def planned(**fields: Any) -> ChatR2:
    """A pool of two with a router; m1 jumps, m2 walks."""
    chats = answering({"jump": "JUMP"}), answering({"walk": "WALK"})
    return chat_of(*chats, language="lab", router=ROUTER, **fields)


class Listener(BaseCallbackHandler):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.runs: list[UUID] = []
        self.calls = 0

    def on_chat_model_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.calls += 1
        self.runs.append(run_id)

    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        self.events.append((name, data))


# The main job


async def test_an_answer_comes_with_its_plan_and_its_bill(ask: Ask) -> None:
    message = await ask(planned(), QUERY)
    assert isinstance(message, AIMessage)
    assert message.content == "JUMP JUMP WALK"
    said = message.response_metadata
    assert said["model_name"] == "fakes"
    assert [step["text"] for step in said["plan"]["subtasks"]] == ["jump", "walk"]
    assert said["members"] == {"s1": "m1", "s2": "m2"}
    assert set(said["usage"]) == {"planner", "chooser", "m1", "m2"}
    costs = [Decimal(each["cost_usd"]) for each in said["usage"].values()]
    assert Decimal(said["cost_usd"]) == sum(costs) > Decimal(said["router_cost_usd"]) > 0
    assert Decimal(said["counterfactual_usd"]) > 0
    assert said["stop_reason"] == "unverified"
    assert UUID(said["run_id"])
    assert json.loads(json.dumps(said)) == said


async def test_usage_is_the_sum_over_all_models(ask: Ask) -> None:
    message = await ask(planned(), QUERY)
    used = message.response_metadata["usage"].values()
    sent, got = (sum(use[key] for use in used) for key in ("input_tokens", "output_tokens"))
    assert message.usage_metadata == {
        "input_tokens": sent,
        "output_tokens": got,
        "total_tokens": sent + got,
    }


def test_the_answer_is_streamed_in_words_and_its_usage_last() -> None:
    chunks = list(planned().stream(QUERY))
    assert [chunk.text for chunk in chunks] == ["JUMP", " JUMP", " WALK", ""]
    assert [chunk.usage_metadata is None for chunk in chunks] == [True, True, True, False]
    assert chunks[-1].chunk_position == "last"
    assert "plan" in chunks[-1].response_metadata


def test_white_space_of_an_answer_survives_a_stream() -> None:
    said = "a\n\n  b\tc"
    chunks = list(chat_of(scripted(said)).stream("q"))
    assert "".join(chunk.text for chunk in chunks) == said
    assert len(chunks) == 4


async def test_callbacks_are_told_of_the_steps(ask: Ask) -> None:
    listener = Listener()
    await ask(planned(), QUERY, {"callbacks": [listener]})
    names = [name for name, _ in listener.events]
    assert names[:4] == ["r2_asked", "r2_plan", "r2_asked", "r2_allocation"]
    assert sorted(names[4:-1]) == sorted(2 * ["r2_asked", "r2_attempt", "r2_step"])
    assert names[-1] == "r2_answer"
    assert {data["output"] for name, data in listener.events if name == "r2_step"} == {
        "JUMP",
        "WALK",
    }


async def test_whoever_counts_sees_one_call(ask: Ask) -> None:
    listener = Listener()
    with get_usage_metadata_callback() as counted:
        message = await ask(planned(), QUERY, {"callbacks": [listener]})
    assert listener.calls == 1
    assert counted.usage_metadata == {"fakes": message.usage_metadata}


async def test_tracers_see_what_a_call_consists_of() -> None:
    for way in (invoke, ainvoke):
        tracer = RunCollectorCallbackHandler()
        await way(planned(), QUERY, {"callbacks": [tracer]})
        assert {run.name for run in tracer.traced_runs} == {"ChatR2"}
        [graph] = tracer.traced_runs[0].child_runs
        assert graph.name == "r2graph"


def test_two_streams_side_by_side_tell_their_own_listeners() -> None:
    one, other = Listener(), Listener()
    first = planned().stream(QUERY, {"callbacks": [one]})
    second = chat_of(echo()).stream("q", {"callbacks": [other]})
    assert (next(first).text, next(second).text) == ("JUMP", "[q]")
    assert [name for name, _ in other.events].count("r2_step") == 1
    assert [name for name, _ in one.events].count("r2_step") == 2
    list(first), list(second)


async def test_what_was_said_before_reaches_general_models(ask: Ask) -> None:
    general = ListeningChat(answer=lambda _: "Two.")
    talk = [SystemMessage("Be brief."), HumanMessage("1?"), AIMessage("One."), HumanMessage("2?")]
    message = await ask(chat_of(general, language="any"), talk)
    assert message.text == "Two."
    assert general.heard == [["Be brief.", "1?", "One.", "2?"]]
    assert all(each.id is None for each in talk)  # a chat model leaves its input as it is


def test_a_message_that_is_said_twice_is_heard_twice() -> None:
    general, again = ListeningChat(answer=lambda _: "?"), HumanMessage("hi")
    chat_of(general, language="any").invoke([again, AIMessage("yes"), again])
    assert general.heard == [["hi", "yes", "hi"]]


def test_the_lab_is_a_chat_model() -> None:
    message = ChatR2(model="lab", limits=PATIENT).invoke("( 12 + 7 ) * 6 - -3")
    assert message.text == "117"
    assert "lab-decomposer" in message.response_metadata["usage"]  # its router by itself


# Settings


def test_a_pool_of_no_routers_language_has_none() -> None:
    message = chat_of(echo()).invoke("q")
    assert set(message.response_metadata["usage"]) == {"m1"}


def test_a_router_can_be_left_out() -> None:
    message = chat_of(echo(), language="lab", router=None).invoke("jump")
    assert (message.text, set(message.response_metadata["usage"])) == ("[jump]", {"m1"})


def test_a_router_of_another_language_is_refused() -> None:
    with pytest.raises(RouterMismatchError):
        chat_of(echo(), router="lab").invoke("q")


async def test_a_call_may_name_another_pool(ask: Ask) -> None:
    other = pool_of(scripted("other")).model_copy(update={"name": "others"})
    message = await ask(chat_of(echo()), "q", model=other)
    assert (message.text, message.response_metadata["model_name"]) == ("other", "others")


def test_a_call_may_have_another_quality() -> None:
    model = planned(quality=0.5)
    model.invoke(QUERY)
    model.invoke(QUERY, quality=1.0)
    model.bind(quality=1.0).invoke(QUERY)
    assert isinstance(ROUTER.allocator, CheckpointAllocator)
    chooser = ROUTER.allocator.model.chat
    assert isinstance(chooser, FakeChat)
    *_, low, high, bound = (text for text in chooser.prompts if "jump" in text and "walk" in text)
    assert low != high == bound


@pytest.mark.parametrize("option", [{"temperature": 0.5}, {"n": 2}, {"quality": 2}, {"stop": [""]}])
async def test_an_option_that_is_not_supported_is_an_error(
    ask: Ask, option: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        await ask(chat_of(echo()), "q", **option)


def test_a_pool_that_is_not_there_is_an_error_of_the_first_call() -> None:
    model = ChatR2(model="no-such-pool")
    with pytest.raises(ConfigError, match="no-such-pool"):
        model.invoke("q")


async def test_an_answer_ends_before_a_stop_word(ask: Ask) -> None:
    said = "Thought. Observation: x Final"
    assert (await ask(chat_of(scripted(said)), "q", stop=["Final", "Obs"])).text == "Thought. "
    assert (await ask(chat_of(scripted(said), stop=["Obs"]), "q")).text == "Thought. "
    assert (await ask(chat_of(scripted(said)), "q", stop=["none"])).text == said


def test_langchains_names_set_the_limits() -> None:
    model = chat_of(chat := echo(), max_tokens=7, limits=Limits(max_output_tokens=9))
    model.invoke("q")
    model.bind(max_tokens=5).invoke("q")
    assert [options["max_tokens"] for _, options in chat.calls] == [7, 5]
    with pytest.raises(LimitExceeded) as caught:
        chat_of(echo(delay_s=1.0), timeout=0.1).invoke("q")
    assert caught.value.limit == "deadline"


def test_all_calls_together_keep_to_the_pools_budget() -> None:
    # A call reserves 21 tokens of a dollar a million, and takes two.
    model = chat_of(echo(), pool_budget="0.00003", max_tokens=4)
    assert [model.invoke("q").text for _ in range(5)] == ["[q]"] * 5
    with pytest.raises(LimitExceeded) as caught:
        model.invoke("q")
    assert caught.value.limit == "pool_budget"


def test_calls_are_recorded_in_a_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path / "calls.sqlite") as ledger:
        plain = chat_of(echo(), ledger=ledger).invoke("q")
        called = chat_of(tool_user("add"), ledger=ledger).bind_tools([add]).invoke("q")
        for message in (plain, called):
            [line] = ledger.lines(message.response_metadata["run_id"])
            assert (line.member, line.state) == ("m1", "reply")


def test_a_used_model_can_be_copied_and_pickled() -> None:
    model = ChatR2(model="lab", quality=0.5, limits=PATIENT)
    model.invoke("walk")
    for twin in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (twin.model, twin.quality, twin.limits) == ("lab", 0.5, PATIENT)
        assert twin._graphs is not model._graphs


def test_a_copy_with_another_router_has_its_own_graph() -> None:
    model = planned()
    model.invoke(QUERY)
    alone = model.model_copy(update={"router": None})
    assert set(alone.invoke("jump").response_metadata["usage"]) == {"m1"}


def test_two_pools_do_not_answer_from_each_others_cache() -> None:
    cache = InMemoryCache()
    pools = [
        pool_of(scripted(said), language=said).model_copy(update={"name": said})
        for said in ("one", "other", "one")
    ]
    replies = [ChatR2(model=pool, cache=cache).invoke("q").text for pool in pools]
    assert replies == ["one", "other", "one"]
    model = chat_of(chat := echo(), cache=cache)
    assert model.invoke("q").text == model.invoke("q").text == "[q]"
    assert len(chat.calls) == 1


def test_how_members_are_set_up_is_not_shown() -> None:
    settings = {"base_url": "http://127.0.0.1:9/v1", "default_headers": {"x": "SECRET"}}
    one = {"name": "m", "model": "openai:x", "model_kwargs": settings, "price": PRICE}
    model = ChatR2(model=load_pool({"name": "p", "members": [one]}))
    assert "SECRET" not in f"{model!r} {model._identifying_params} {model._get_llm_string()}"


PRICE = {"input_per_mtok": "1", "output_per_mtok": "1"}


# What goes wrong


async def test_a_limit_that_leaves_no_answer_is_an_error(ask: Ask) -> None:
    with pytest.raises(LimitExceeded) as caught:
        await ask(chat_of(echo(), budget_usd=0), "q")
    assert (caught.value.limit, caught.value.cost_usd) == ("budget", "0")


async def test_a_limit_that_leaves_an_answer_is_in_its_metadata(ask: Ask) -> None:
    model = chat_of(scripted("A", logprob=-1.0), echo(), limits=Limits(max_calls=1))
    message = await ask(model, "q")
    assert (message.text, message.response_metadata["stop_reason"]) == ("A", "calls")


async def test_an_answer_without_text_is_an_error(ask: Ask) -> None:
    with pytest.raises(ModelCallError) as caught:
        await ask(chat_of(scripted(""), scripted(" ")), "q")
    assert caught.value.kind == "empty"
    assert Decimal(caught.value.cost_usd or 0) > 0


async def test_members_that_are_down_are_an_error(ask: Ask) -> None:
    with pytest.raises(ModelCallError):
        await ask(chat_of(scripted(ProviderError(401))), "q")


async def test_a_query_outside_the_lab_is_refused(ask: Ask) -> None:
    with pytest.raises(UnsupportedQueryError):
        await ask(planned(), "Hello")


async def test_what_is_no_text_is_refused(ask: Ask) -> None:
    image = [{"type": "image", "base64": "AAAA", "mime_type": "image/png"}]
    with pytest.raises(QueryError, match="text only"):
        await ask(chat_of(echo(), language="any"), [HumanMessage(image)])


# Tools


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


CALL = {"name": "add", "args": {"a": 1, "b": 2}, "id": "call-1", "type": "tool_call"}


async def test_a_call_with_tools_goes_to_the_cheapest_member_that_takes_them(ask: Ask) -> None:
    plain, able, strong = echo(), tool_user("add", a=1, b=2), tool_user("add", a=0, b=0)
    message = await ask(chat_of(plain, able, strong).bind_tools([add]), "What is 1 + 2?")
    assert message.tool_calls == [CALL]
    said = message.response_metadata
    assert (said["plan"], said["members"]) == (None, {"whole": "m2"})
    assert (said["stop_reason"], set(said["usage"])) == ("unverified", {"m2"})
    assert said["cost_usd"] == "0.00015"  # 15 tokens at ten dollars a million
    assert said["counterfactual_usd"] == "0.0015"
    assert message.usage_metadata["total_tokens"] == 15
    assert json.loads(json.dumps(said)) == said
    assert (len(plain.calls), len(strong.calls)) == (0, 0)


async def test_a_member_that_fails_is_followed_by_the_next(ask: Ask) -> None:
    members = saying(ProviderError(401)), tool_user("add", a=1, b=2)
    message = await ask(chat_of(*members).bind_tools([add]), "q")
    assert (message.tool_calls, message.response_metadata["members"]) == ([CALL], {"whole": "m2"})


BAD = {
    "no tool is called": AIMessage("three"),
    "another tool is called": calling("subtract", a=1, b=2),
    "arguments do not parse": AIMessage(
        "",
        invalid_tool_calls=[
            {"name": "add", "args": "{", "id": "1", "error": None, "type": "invalid_tool_call"}
        ],
    ),
    "the reply is cut off": AIMessage(
        "", tool_calls=[CALL], response_metadata={"finish_reason": "length"}
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_a_call_of_the_wrong_form_moves_up(ask: Ask, bad: AIMessage) -> None:
    model = chat_of(saying(bad), tool_user("add", a=1, b=2)).bind_tools([add], tool_choice="any")
    message = await ask(model, "q")
    assert message.tool_calls == [CALL]
    assert message.response_metadata["usage"]["m1"]["calls"] == 1


async def test_the_last_reply_is_taken_when_none_has_the_form(ask: Ask) -> None:
    members = saying("three"), saying("four")
    message = await ask(chat_of(*members).bind_tools([add], tool_choice="add"), "q")
    assert (message.text, message.response_metadata["stop_reason"]) == ("four", "attempts")


async def test_a_pool_without_tools_says_so(ask: Ask) -> None:
    with pytest.raises(ConfigError, match="no member of pool 'fakes' takes tools"):
        await ask(chat_of(echo(), echo()).bind_tools([add]), "q")


async def test_a_member_that_is_down_is_not_one_without_tools(ask: Ask) -> None:
    with pytest.raises(ModelCallError) as caught:
        await ask(chat_of(saying(ProviderError(401)), echo()).bind_tools([add]), "q")
    assert (caught.value.member, caught.value.kind) == ("m1", "auth")
    assert caught.value.cost_usd == "0"


async def test_a_call_with_tools_keeps_to_its_budget(ask: Ask) -> None:
    user = tool_user("add", a=1, b=2)
    with pytest.raises(LimitExceeded):
        await ask(chat_of(user, budget_usd="0.0001").bind_tools([add]), "q")
    assert user.calls == []
    model = chat_of(saying("three"), user, budget_usd="0.005").bind_tools([add], tool_choice="any")
    message = await ask(model, "q")
    assert (message.text, message.response_metadata["stop_reason"]) == ("three", "budget")


def test_tools_and_their_calls_count_in_the_worst_case() -> None:
    spec, talk = member("m", echo()), [HumanMessage("q")]
    bare = worst_usage(ModelCall("executor", spec, talk), 10).input_tokens
    tools = ({"type": "function", "function": {"name": "x" * 1000}},)
    assert (
        worst_usage(ModelCall("executor", spec, talk, tools=tools), 10).input_tokens > bare + 1000
    )
    called = [*talk, calling("add", a="y" * 1000)]
    assert worst_usage(ModelCall("executor", spec, called), 10).input_tokens > bare + 1000


async def test_the_member_hears_all_and_is_bound_as_the_caller_said(ask: Ask) -> None:
    user = tool_user("add", a=1, b=2)
    talk = [SystemMessage("Add."), HumanMessage("q"), calling("add", a=1, b=2)]
    talk.append(ToolMessage("3", tool_call_id="call-1"))
    message = await ask(chat_of(user).bind_tools([add], tool_choice="auto"), talk)
    assert message.text == "It is 3."
    assert [each.type for each in user.heard[0]] == ["system", "human", "ai", "tool"]
    assert user.calls[0][1]["tool_choice"] == "auto"
    assert user.calls[0][1]["tools"][0]["function"]["name"] == "add"


async def test_what_goes_on_after_a_tools_result_is_not_split(ask: Ask) -> None:
    user = tool_user("add")
    talk = [HumanMessage("q"), calling("add"), ToolMessage("3", tool_call_id="call-1")]
    message = await ask(chat_of(user, language="any"), talk)
    assert (message.text, message.response_metadata["plan"]) == ("It is 3.", None)


async def test_whoever_counts_sees_one_call_with_tools_too(ask: Ask) -> None:
    listener = Listener()
    model = chat_of(tool_user("add", a=1, b=2)).bind_tools([add])
    await ask(model, "q", {"callbacks": [listener]})
    assert listener.calls == 1


def test_tool_calls_are_kept_with_a_reply(tmp_path: Path) -> None:
    user = tool_user("add", a=1, b=2)
    spec, tools = member("m", user), ({"type": "function", "function": {"name": "add"}},)
    call = ModelCall("executor", spec, [HumanMessage("q")], tools=tools)
    with OutcomeCache(tmp_path / "outcomes.sqlite") as outcomes:
        first, kept = (Door(Meter(Limits()), outcomes=outcomes).call(call) for _ in range(2))
        assert first == kept
        assert kept.tool_calls == [CALL]
        Door(Meter(Limits()), outcomes=outcomes).call(
            ModelCall("executor", spec, [HumanMessage("q")], tools=tools, tool_choice="any")
        )
    assert len(user.calls) == 2


def test_tools_of_a_providers_own_have_no_names_to_check() -> None:
    call = ModelCall("executor", member("m", echo()), [], tools=({"type": "web_search"},))
    assert fault(reply("", tool_calls=[calling("search").tool_calls[0]]), call) is None
    assert fault(reply(""), call) == "it is empty"


# Structured output


class Sum(BaseModel):
    """A sum."""

    total: int


def json_speaker(said: str) -> FakeChat:
    return scripted(said, speaks_json=True)


async def test_structured_output_comes_from_the_cheapest_member_that_gives_it(ask: Ask) -> None:
    members = echo(), json_speaker('{"total": 3}'), json_speaker('{"total": 4}')
    assert await ask(chat_of(*members).with_structured_output(Sum), "q") == Sum(total=3)
    assert not members[0].calls


@pytest.mark.parametrize("said", ["three", "[3]", '{"sum": 3}', '{"total": '])
async def test_output_that_is_not_of_the_schema_moves_up(ask: Ask, said: str) -> None:
    model = chat_of(json_speaker(said), json_speaker('{"total": 3}'))
    assert await ask(model.with_structured_output(Sum.model_json_schema()), "q") == {"total": 3}


async def test_the_raw_message_comes_with_its_bill() -> None:
    model = chat_of(json_speaker('{"total": 3}'))
    result = await ainvoke(model.with_structured_output(Sum, include_raw=True), "q")
    assert (result["parsed"], result["parsing_error"]) == (Sum(total=3), None)
    assert result["raw"].response_metadata["members"] == {"whole": "m1"}
    model = chat_of(json_speaker('{"total": "three"}'))
    result = model.with_structured_output(Sum, include_raw=True).invoke("q")
    assert isinstance(result["parsing_error"], OutputParserException)


async def test_a_pool_without_structured_output_says_so(ask: Ask) -> None:
    with pytest.raises(ConfigError, match="gives structured output"):
        await ask(chat_of(echo()).with_structured_output(Sum), "q")


def test_a_stream_with_tools_adds_up_to_the_message() -> None:
    model = chat_of(tool_user("add", a=1, b=2)).bind_tools([add])
    chunks = list(model.stream("q"))
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    assert chunks[-1].tool_calls == model.invoke("q").tool_calls
