"""The server with tools and schemas: a call that is not split, as `ChatR2` makes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from r2graph import create_r2_graph, load_pool
from r2graph.serve import create_app
from tests.chat_fakes import ToolChat, calling, saying, tool_user
from tests.fakes import FakeChat, ProviderError, echo, pool_of, scripted
from tests.serving import graph_of, serving, until

CHAT = "/v1/chat/completions"
PROMPT = "CANARY-PROMPT"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
ADD: Any = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
STRICT: Any = ADD | {"function": ADD["function"] | {"strict": True}}
CALL: Any = {
    "id": "call-1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
}
USER: Any = {"role": "user", "content": "What is 1 + 2?"}
CALLED: Any = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT: Any = {"role": "tool", "content": "3", "tool_call_id": "call-1"}
FORM = {"name": "sum", "strict": True, "schema": SCHEMA | {"required": ["a"]}}


@contextmanager
def server_of(*chats: BaseChatModel, **options: Any) -> Iterator[str]:
    with serving(create_app(graph_of(pool_of(*chats), **options))) as server:
        yield server.url


@contextmanager
def client_of(*chats: BaseChatModel, **options: Any) -> Iterator[openai.OpenAI]:
    with (
        server_of(*chats, **options) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client,
    ):
        yield client


def post(url: str, messages: Sequence[Any] = (USER,), **fields: Any) -> httpx.Response:
    data = {"model": "fakes", "messages": list(messages), "tools": [ADD]} | fields
    return httpx.post(url + CHAT, json=data, timeout=20)


def user() -> ToolChat:
    return tool_user("add", a=1, b=2)


# An agent


def test_a_client_calls_the_tool_and_gets_the_answer() -> None:
    plain, able = echo(), user()
    with client_of(plain, able) as client:
        create = client.chat.completions.with_raw_response.create
        raw = create(model="fakes", messages=[USER], tools=[ADD])
        first = raw.parse()
        said = first.choices[0].message
        assert first.choices[0].finish_reason == "tool_calls"
        assert said.content is None
        assert said.tool_calls is not None
        assert [call.model_dump() for call in said.tool_calls] == [CALL]
        talk: list[Any] = [USER, said.model_dump(), RESULT]
        last = create(model="fakes", messages=talk, tools=[ADD]).parse()
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].message.content == "It is 3."
    assert last.choices[0].message.tool_calls is None
    assert plain.calls == []
    assert [message.type for message in able.heard[1]] == ["human", "ai", "tool"]
    assert able.heard[1][1].tool_calls[0]["args"] == {"a": 1, "b": 2}  # type: ignore[attr-defined]
    assert first.model_extra is not None
    r2 = first.model_extra["r2"]
    assert (r2["models"], r2["stop_reason"]) == (["m2"], "unverified")
    assert raw.headers["x-r2-models"] == "m2"
    assert Decimal(raw.headers["x-r2-cost-usd"]) == Decimal(r2["cost_usd"]) > 0
    assert first.usage is not None
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (10, 5)


@pytest.mark.parametrize("streaming", [False, True])
async def test_an_agent_of_langchain_runs_on_the_server(streaming: bool) -> None:
    asked: list[tuple[int, int]] = []

    @tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        asked.append((a, b))
        return a + b

    with server_of(user()) as url:
        model = ChatOpenAI(
            model="fakes",
            base_url=f"{url}/v1",
            api_key="any",  # type: ignore[arg-type]
            streaming=streaming,
        )
        agent = create_agent(model, [add], system_prompt="Be brief.")
        result = await agent.ainvoke({"messages": [("user", "What is 1 + 2?")]})
    assert asked == [(1, 2)]
    assert [each.type for each in result["messages"]] == ["human", "ai", "tool", "ai"]
    assert result["messages"][-1].text == "It is 3."


def test_an_agent_gets_an_answer_of_a_schema() -> None:
    class Sum(BaseModel):
        a: int
        b: int

    chat = FakeChat(answer=lambda _: '{"a": 1, "b": 2}', speaks_json=True)
    with client_of(scripted("{}", speaks_json=True), chat) as client:
        done = client.chat.completions.parse(model="fakes", messages=[USER], response_format=Sum)
    assert done.choices[0].message.parsed == Sum(a=1, b=2)
    assert done.choices[0].finish_reason == "stop"
    assert done.model_extra is not None
    assert done.model_extra["r2"]["models"] == ["m1", "m2"]  # the first left keys out
    form = chat.calls[0][1]["response_format"]
    assert (form["title"], form["required"]) == ("Sum", ["a", "b"])


# Streams


def test_a_stream_brings_the_calls_in_openai_s_chunks() -> None:
    with server_of(user()) as url:
        response = post(url, stream=True, stream_options={"include_usage": True})
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    *chunks, last = [json.loads(line) for line in lines[:-1]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta["tool_calls"] for delta in deltas if "tool_calls" in delta] == [
        [{"index": 0, **CALL}]
    ]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None, None, None, "tool_calls"]
    assert last["usage"]["total_tokens"] == 15
    assert last["r2"]["models"] == ["m1"]


def test_clients_add_the_chunks_up() -> None:
    two = calling("add", a=1, b=2)
    two.tool_calls.append({"name": "add", "args": {"a": 3, "b": 4}, "id": "call-2"})
    two.content = "Both."
    with client_of(saying(two)) as client:
        with client.chat.completions.stream(
            model="fakes", messages=[USER], tools=[STRICT]
        ) as stream:
            said = stream.get_final_completion().choices[0].message
        chat = ChatOpenAI(model="fakes", base_url=str(client.base_url), api_key="any")  # type: ignore[arg-type]
        whole = AIMessageChunk("")
        for chunk in chat.bind_tools([ADD]).stream("q"):
            whole += chunk  # type: ignore[assignment]
    assert said.content == whole.text == "Both."
    assert said.tool_calls is not None
    assert [call.id for call in said.tool_calls] == ["call-1", "call-2"]
    assert [call["args"] for call in whole.tool_calls] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


def test_a_stream_whose_call_fails_has_a_status() -> None:
    with server_of(saying(ProviderError(401))) as url:
        failed = post(url, stream=True)
    assert (failed.status_code, failed.json()["error"]["code"]) == (502, "model_auth")
    assert "SECRET" not in failed.text


# What is asked for


@pytest.mark.parametrize(
    ("choice", "bound"),
    [
        (None, None),
        ("auto", None),
        ("required", "any"),
        ({"type": "function", "function": {"name": "add"}}, "add"),
    ],
)
def test_a_tool_choice_reaches_the_member_in_langchain_s_words(choice: Any, bound: Any) -> None:
    chat = user()
    with server_of(chat) as url:
        assert post(url, tool_choice=choice).status_code == 200
    [(_, options)] = chat.calls
    assert options.get("tool_choice") == bound
    assert options["tools"] == [ADD]


def test_a_query_with_tools_that_must_not_be_called_is_planned() -> None:
    with server_of(echo()) as url:
        done = post(url, tool_choice="none").json()
    assert done["choices"][0]["message"]["content"] == "[two [one]]"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_of_the_wrong_form_moves_up(stream: bool) -> None:
    weak, strong = saying("I would say three."), user()
    with client_of(weak, strong) as client:
        chat = ChatOpenAI(
            model="fakes",
            base_url=str(client.base_url),
            api_key="any",  # type: ignore[arg-type]
            streaming=stream,
        )
        message = chat.bind_tools([ADD], tool_choice="add").invoke("q")
    assert [call["args"] for call in message.tool_calls] == [{"a": 1, "b": 2}]
    assert len(weak.calls) == len(strong.calls) == 1


BROKEN = AIMessage(
    "",
    invalid_tool_calls=[
        {"name": "add", "args": "{1", "id": None, "error": None, "type": "invalid_tool_call"}
    ],
)


def test_a_call_that_nobody_gets_right_is_told_as_written_and_may_be_sent_back() -> None:
    chat = ToolChat(turn=lambda talk: AIMessage("Sorry.") if len(talk) > 1 else BROKEN)
    with server_of(chat) as url:
        first = post(url).json()
        said = first["choices"][0]["message"]
        result = RESULT | {"tool_call_id": said["tool_calls"][0]["id"]}
        again = post(url, [USER, said, result]).json()
    assert first["r2"]["stop_reason"] == "attempts"
    assert said["tool_calls"][0]["function"] == {"name": "add", "arguments": "{1"}
    assert again["choices"][0]["message"]["content"] == "Sorry."
    heard: Any = chat.heard[1][1]
    assert [call["args"] for call in heard.invalid_tool_calls] == ["{1"]


def test_one_call_at_a_time_is_the_first_of_them() -> None:
    two = calling("add", a=1, b=2)
    two.tool_calls.append({"name": "add", "args": {"a": 3, "b": 4}, "id": "call-2"})
    with server_of(saying(two)) as url:
        for asked, calls in ((True, 2), (None, 2), (False, 1)):
            done = post(url, parallel_tool_calls=asked).json()["choices"][0]["message"]
            assert [call["id"] for call in done["tool_calls"]] == ["call-1", "call-2"][:calls]


def test_a_reply_that_was_cut_off_says_so() -> None:
    cut = calling("add", a=1, b=2)
    cut.response_metadata = {"finish_reason": "length"}
    with server_of(saying(cut)) as url:
        assert post(url).json()["choices"][0]["finish_reason"] == "length"


# What is refused


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [RESULT]}, "messages"),
        ({"messages": [USER, RESULT]}, "messages"),
        ({"messages": [USER, CALLED]}, "messages"),
        ({"messages": [USER, CALLED, USER]}, "messages"),
        ({"messages": [USER, CALLED, RESULT | {"tool_call_id": "call-2"}]}, "messages"),
        ({"messages": [USER, CALLED, RESULT, RESULT]}, "messages"),
        ({"messages": [USER, CALLED | {"tool_calls": [CALL, CALL]}, RESULT]}, "messages"),
        ({"messages": [USER, CALLED, {"role": "tool", "content": "3"}]}, "messages"),
        ({"messages": [USER, CALLED, RESULT | {"content": None}]}, "messages"),
        ({"messages": [USER, CALLED, RESULT | {"content": [{"type": "image"}]}]}, "messages"),
        ({"messages": [USER, CALLED | {"tool_calls": [{"id": "call-1"}]}, RESULT]}, "messages"),
        ({"messages": [USER, {"role": "assistant"}, USER]}, "messages"),
        ({"messages": [USER | {"tool_calls": [CALL]}, RESULT]}, "messages"),
        ({"messages": [USER | {"role": PROMPT}]}, "messages"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [ADD | {"function": {"name": "two words"}}]}, "tools"),
        ({"tools": [ADD | {"function": {"name": "add", "colour": "red"}}]}, "tools"),
        ({"tools": ADD}, "tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"parallel_tool_calls": "maybe"}, "parallel_tool_calls"),
        (
            {"response_format": {"type": "json_schema", "json_schema": FORM}},
            "response_format",
        ),
        (
            {"tools": [], "response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format",
        ),
        ({"functions": [ADD["function"]]}, "functions"),
    ],
)
def test_what_is_malformed_is_refused_before_anyone_is_asked(
    fields: dict[str, Any], param: str, able: tuple[str, ToolChat]
) -> None:
    url, chat = able
    refused = post(url, **fields)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert PROMPT not in refused.text
    assert chat.calls == []


@pytest.fixture(scope="module")
def able() -> Iterator[tuple[str, ToolChat]]:
    chat = user()
    with server_of(chat) as url:
        yield url, chat


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({}, "tools", "no member of pool 'lab' takes tools"),
        (
            {"tools": [], "response_format": {"type": "json_schema", "json_schema": FORM}},
            "response_format",
            "no member of pool 'lab' gives structured output",
        ),
    ],
)
def test_the_lab_takes_neither_tools_nor_schemas(
    fields: dict[str, Any], param: str, says: str
) -> None:
    graph = create_r2_graph(load_pool("lab"), router="lab")
    with serving(create_app(graph)) as server:
        refused = post(server.url, model="lab", **fields)
    assert refused.status_code == 400
    assert refused.headers["x-r2-cost-usd"] == "0"
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", param)
    assert says in error["message"]


# Money and load


def test_a_budget_bounds_a_call_with_tools() -> None:
    chat = user()
    with server_of(chat, budget_usd=1) as url:
        broke = post(url, model="fakes-b0.0001")
        assert post(url, model="fakes-b0.01").status_code == 200
        assert post(url, budget_usd=2).status_code == 400
    assert (broke.status_code, broke.json()["error"]["code"]) == (402, "budget_exceeded")
    assert broke.headers["x-r2-cost-usd"] == "0"
    assert len(chat.calls) == 1


def test_a_pool_s_budget_bounds_an_agent() -> None:
    chat = user()
    with server_of(chat, pool_budget="0.0013") as url:
        codes = [post(url).status_code for _ in range(10)]
    assert codes[0] == 200
    assert codes[-1] == 402
    assert len(chat.calls) == codes.count(200)


def test_a_limit_leaves_the_call_that_there_is() -> None:
    weak, strong = saying(calling("subtract", a=1, b=2)), user()
    with server_of(weak, strong) as url:
        done = post(url, budget_usd="0.004").json()
    assert done["r2"]["stop_reason"] == "budget"
    assert done["choices"][0]["finish_reason"] == "length"
    assert done["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "subtract"


def test_a_call_with_tools_is_counted_and_ends_when_its_client_goes() -> None:
    chat = user()
    chat.delay_s = 0.3
    data = {"model": "fakes", "messages": [USER], "tools": [ADD]}
    with server_of(chat) as url:
        cost = post(url).headers["x-r2-cost-usd"]
        told = httpx.get(url + "/metrics").text
        assert 'r2graph_runs_total{model="fakes",stop_reason="unverified"} 1.0' in told
        assert f'r2graph_cost_usd_total{{model="fakes"}} {float(cost)}' in told
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + CHAT, json=data, timeout=0.1)
        until(lambda: 'cancelled_total{model="fakes"} 1.0' in httpx.get(url + "/metrics").text)
        told = httpx.get(url + "/metrics").text
    [spent] = [line for line in told.splitlines() if line.startswith("r2graph_cost_usd_total")]
    assert float(spent.split()[-1]) > float(cost), "it had been sent, so it may be billed"
    assert "r2graph_runs_running 0.0" in told
    assert len(chat.calls) == 1
