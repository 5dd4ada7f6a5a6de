"""The server: who may ask, what is refused, what is told, and what happens under load."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from r2graph.cli import app as cli
from r2graph.decompose import CheckpointDecomposer, DecomposeContext, Decomposer
from r2graph.errors import ConfigError, PlanError, UnsupportedQueryError
from r2graph.limits import Limits
from r2graph.plan import Plan
from r2graph.serve import create_app
from r2graph.serve.guard import check_binding, read_key
from tests.fakes import (
    FakeChat,
    ListeningChat,
    ProviderError,
    echo,
    member,
    pool_of,
    scripted,
)
from tests.serving import graph_of, serving, until

ROOT = Path(__file__).parent.parent
KEY = "sk-canary-1"
PROMPT = "CANARY-PROMPT"
CHAT = "/v1/chat/completions"


class Failing(Decomposer):
    """Raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def decompose(self, query: str, context: DecomposeContext) -> Plan:
        raise self.error


def body(content: str = "q", model: str = "fakes", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}]} | fields


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of one graph, without a key; its runs may cost a dollar."""
    graph = graph_of(pool_of(echo(), echo()), budget_usd=1)
    with serving(create_app(graph, max_body_bytes=5000)) as server:
        yield server.url


def post(url: str, data: Any, path: str = CHAT, **options: Any) -> httpx.Response:
    return httpx.post(url + path, json=data, **({"timeout": 20} | options))


def events_of(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    told = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [event if event == "[DONE]" else json.loads(event) for event in told]


# Who may ask


def test_without_the_key_nothing_is_told_but_health_and_the_empty_page() -> None:
    with serving(create_app(graph_of(pool_of(echo())), key=KEY)) as server:
        for path in ("/v1/models", "/metrics", "/v1/models/fakes", "/nothing"):
            assert httpx.get(server.url + path).status_code == 401, path
        for path in ("/", "/page.js", "/page.css", "/healthz"):
            assert httpx.get(server.url + path).status_code == 200, path
        for given in (
            None,
            "",
            KEY,
            f"Basic {KEY}",
            "Bearer",
            f"Bearer {KEY}x",
            f"Bearer {KEY[:-1]}",
        ):
            headers = {} if given is None else {"authorization": given}
            for path in (CHAT, "/runs"):
                refused = post(server.url, body(), path, headers=headers)
                assert refused.status_code == 401, given
                assert refused.headers["www-authenticate"] == "Bearer"
                assert refused.json()["error"]["code"] == "invalid_api_key"
                assert KEY not in refused.text
        done = post(server.url, body(), headers={"authorization": f"Bearer {KEY}"})
        assert done.status_code == 200


def test_only_this_machine_is_served_without_a_key() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_binding(host, None)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", "", "::ffff:1.2.3.4"):
        check_binding(host, KEY)
        with pytest.raises(ConfigError, match="set R2GRAPH_API_KEY"):
            check_binding(host, None)


@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel", "line\n"])
def test_a_key_that_no_client_could_send_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="R2GRAPH_API_KEY"):
        read_key({"R2GRAPH_API_KEY": key})
    with pytest.raises(ConfigError):
        create_app(graph_of(pool_of(echo())), key=key)


def test_the_command_refuses_an_open_address_before_it_loads_anything() -> None:
    done = CliRunner().invoke(cli, ["serve", "--host", "0.0.0.0"], env={"R2GRAPH_API_KEY": None})
    assert done.exit_code == 2
    assert "set R2GRAPH_API_KEY" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_member_that_cannot_be_had_is_told_before_anyone_asks() -> None:
    done = CliRunner().invoke(cli, ["serve", "--pool", "openai"], env={"OPENAI_API_KEY": None})
    assert done.exit_code == 2
    assert "set OPENAI_API_KEY" in done.stderr


def test_a_page_from_elsewhere_cannot_spend_our_money(url: str) -> None:
    port = url.rpartition(":")[2]
    rebound = post(url, body(), headers={"host": f"evil.example:{port}"})
    assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "wrong_host")
    form = httpx.post(
        url + CHAT, content=json.dumps(body()), headers={"content-type": "text/plain"}
    )
    assert (form.status_code, form.json()["error"]["code"]) == (415, "wrong_content_type")
    origin = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    preflight = httpx.options(url + CHAT, headers=origin)
    assert preflight.status_code == 405
    for response in (preflight, post(url, body(), headers={"origin": "https://evil.example"})):
        assert not [name for name in response.headers if name.startswith("access-control")]
    for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}"):
        assert httpx.get(url + "/healthz", headers={"host": host}).status_code == 200


def test_responses_cannot_be_framed_sniffed_or_kept(url: str) -> None:
    for path in ("/", "/healthz", "/nothing"):
        headers = httpx.get(url + path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


# What is refused


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ({"n": 2}, "n", 400),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", 400),
        ({"logprobs": True}, "logprobs", 400),
        ({"temperature": 0}, "temperature", 400),
        ({"max_tokens": 5}, "max_tokens", 400),
        ({"stop": ["x"]}, "stop", 400),
        ({"seed": 1}, "seed", 400),
        ({"response_format": {"type": "json_object"}}, "response_format", 400),
        ({"store": True}, "store", 400),
        ({"colour": "red"}, "colour", 400),
        ({"quality": 1.1}, "quality", 400),
        ({"quality": "high"}, "quality", 400),
        ({"budget_usd": -1}, "budget_usd", 400),
        ({"budget_usd": 1.01}, "budget_usd", 400),
        ({"budget_usd": "NaN"}, "budget_usd", 400),
        ({"stream": "maybe"}, "stream", 400),
        ({"stream_options": {"include_usage": True, "x": 1}}, "stream_options", 400),
        ({"messages": []}, "messages", 400),
        ({"messages": "hi"}, "messages", 400),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages", 400),
        ({"messages": [{"role": "tool", "content": "hi", "tool_call_id": "1"}]}, "messages", 400),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", 400),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", 400),
        ({"model": None}, "model", 400),
        ({"model": "gpt-5"}, "model", 404),
        ({"model": "fakes-q1.5"}, "quality", 400),
        ({"model": "fakes-q0.5", "quality": 0.9}, "quality", 400),
        ({"model": "fakes-b2"}, "budget_usd", 400),
    ],
)
def test_what_cannot_be_done_is_refused_in_openai_s_form(
    fields: dict[str, Any], param: str, status: int, url: str
) -> None:
    refused = post(url, body(PROMPT) | fields)
    assert refused.status_code == status, refused.text
    error = refused.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert PROMPT not in refused.text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"a":' * 3000, b"\xff\xfe"])
def test_what_is_no_json_object_is_refused(content: bytes, url: str) -> None:
    headers = {"content-type": "application/json"}
    for path in (CHAT, "/runs"):
        refused = httpx.post(url + path, content=content[:4000], headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_json")


def test_a_body_that_is_too_large_is_refused_however_it_comes(url: str) -> None:
    headers = {"content-type": "application/json"}
    whole = httpx.post(url + CHAT, content=b" " * 5001, headers=headers)
    pieces = httpx.post(url + CHAT, content=(b" " * 1000 for _ in range(10)), headers=headers)
    for refused in (whole, pieces):
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")


def test_paths_and_methods_that_are_not_there_are_errors_in_openai_s_form(url: str) -> None:
    for response, status in (
        (httpx.get(url + "/v1/files"), 404),
        (httpx.get(url + CHAT), 405),
        (httpx.get(url + "/docs"), 404),
        (httpx.get(url + "/page/../app.py"), 404),
        (httpx.get(url + "/v1/models/gpt-5"), 404),
    ):
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_names_that_no_client_could_write_are_refused() -> None:
    graph = graph_of(pool_of(echo()))
    for graphs in ({"two words": graph}, {"": graph}, {}):
        with pytest.raises(ConfigError):
            create_app(graphs)


# What is answered


def test_a_completion_has_answer_usage_cost_and_savings_in_body_and_headers(url: str) -> None:
    done = post(url, body())
    told = done.json()
    assert told["object"] == "chat.completion"
    [choice] = told["choices"]
    assert choice["message"] == {"role": "assistant", "content": "[two [one]]", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert told["usage"]["total_tokens"] == (
        told["usage"]["prompt_tokens"] + told["usage"]["completion_tokens"]
    )
    r2 = told["r2"]
    assert told["id"] == f"chatcmpl-{r2['run_id']}"
    assert done.headers["x-r2-run-id"] == r2["run_id"]
    assert done.headers["x-r2-cost-usd"] == r2["cost_usd"]
    assert done.headers["x-r2-saved-usd"] == r2["saved_usd"]
    assert done.headers["x-r2-models"] == "m1"
    assert Decimal(r2["saved_usd"]) == Decimal(r2["counterfactual_usd"]) - Decimal(r2["cost_usd"])
    assert Decimal(r2["cost_usd"]) > 0


def test_parameters_that_ask_for_nothing_are_let_pass(url: str) -> None:
    nothing = {"n": 1, "temperature": 1.0, "top_p": 1, "tools": [], "tool_choice": "none"}
    nothing |= {"logprobs": False, "user": "u", "stop": None, "metadata": {"a": "b"}, "seed": None}
    nothing |= {"response_format": {"type": "text"}, "stream_options": None}
    assert post(url, body(**nothing)).status_code == 200


def test_quality_and_budget_come_from_the_name_or_from_fields(url: str) -> None:
    asked = [
        (body(), 0.9),
        (body(model="fakes-q0.5"), 0.5),
        (body(model="fakes-q1"), 1.0),
        (body(quality=0.3), 0.3),
        (body(model="fakes-q0.3", quality=0.3), 0.3),
        (body(model="fakes-q0.2-b0.5"), 0.2),
    ]
    for data, quality in asked:
        done = post(url, data)
        assert done.json()["r2"]["quality"] == quality, data
        assert done.json()["model"] == data["model"]
    for data in (body(model="fakes-b0.000001"), body(budget_usd="0.000001")):
        broke = post(url, data)
        assert broke.status_code == 402
        assert broke.json()["error"]["code"] == "budget_exceeded"
        assert broke.headers["x-r2-cost-usd"] == "0"


def test_a_graph_whose_name_looks_like_a_setting_is_found_first() -> None:
    graphs = {"a": graph_of(pool_of(echo())), "a-q0.5": graph_of(pool_of(scripted("other")))}
    with serving(create_app(graphs)) as server:
        assert post(server.url, body(model="a-q0.5")).json()["r2"]["quality"] == 0.9
        assert post(server.url, body(model="a-q0.6")).json()["r2"]["quality"] == 0.6


def test_the_models_are_the_graphs_and_some_qualities_of_each(url: str) -> None:
    told = httpx.get(url + "/v1/models").json()
    assert told["object"] == "list"
    names = [model["id"] for model in told["data"]]
    assert names == ["fakes", "fakes-q0.5", "fakes-q0.8", "fakes-q0.95"]
    one = httpx.get(url + "/v1/models/fakes-q0.77").json()
    assert (one["object"], one["r2"]["quality"], one["r2"]["budget_usd"]) == ("model", 0.77, "1")
    assert [member["name"] for member in one["r2"]["members"]] == ["m1", "m2"]


def test_the_conversation_reaches_the_models() -> None:
    chat = ListeningChat(answer=lambda text: "fine")
    graph = graph_of(pool_of(chat, language="any"), "s1: {query}".replace("{query}", "now"))
    said = [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}],
        },
        {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "and now?", "name": "ada"},
    ]
    with serving(create_app(graph)) as server:
        assert post(server.url, body() | {"messages": said}).status_code == 200
    assert chat.heard[0][:3] == ["be brief", "hello", "hi"]


def test_a_stream_is_chunks_of_one_id_with_r2_in_the_last(url: str) -> None:
    response = post(url, body(stream=True))
    *chunks, end = events_of(response)
    assert end == "[DONE]"
    assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{response.headers['x-r2-run-id']}"}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "[two [one]]"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert chunks[-1]["r2"]["models"] == ["m1"]
    assert not [chunk for chunk in chunks if "usage" in chunk]


def test_a_stream_has_usage_where_it_is_asked_for(url: str) -> None:
    asked = body(stream=True, stream_options={"include_usage": True})
    *chunks, last, _ = events_of(post(url, asked))
    assert last["choices"] == []
    assert last["usage"] == post(url, body()).json()["usage"]
    assert Decimal(last["r2"]["cost_usd"]) > 0
    assert all(chunk["usage"] is None for chunk in chunks)


def test_an_answer_that_a_limit_cut_short_says_so() -> None:
    graph = graph_of(pool_of(scripted("one")), "s1: a\nanswer: {s1}", limits=Limits(max_calls=1))
    with serving(create_app(graph)) as server:
        told = post(server.url, body()).json()
    assert told["choices"][0]["finish_reason"] in ("stop", "length")


# The page's runs


def test_a_watched_run_tells_all_events_and_then_the_bill() -> None:
    graph = graph_of(pool_of(scripted(""), echo()))
    with serving(create_app(graph)) as server:
        asked = {"model": "fakes", "query": "q", "quality": 0.4}
        events = events_of(post(server.url, asked, "/runs"))
        bad = post(server.url, asked | {"colour": "red"}, "/runs")
    kinds = [event["event"] for event in events]
    assert kinds[:2] == ["plan", "allocation"]
    assert kinds[-2:] == ["answer", "result"]
    first = next(event for event in events if event["event"] == "attempt")
    assert (first["member"], first["ok"]) == ("m1", False)
    result = events[-1]
    assert (result["answer"], result["quality"]) == ("[two [one]]", 0.4)
    assert result["usage"].keys() == {"m1", "m2"}
    assert bad.status_code == 400


# Errors


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnsupportedQueryError("outside the language"), 400, "unsupported_query"),
        (PlanError(f"no plan {PROMPT}"), 502, "no_plan"),
        (ConfigError("no such file"), 500, "configuration"),
        (RuntimeError(f"{PROMPT} {KEY}"), 500, "internal"),
    ],
)
def test_errors_have_a_status_and_a_code_and_no_foreign_text(
    error: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    graph = graph_of(pool_of(echo()), decomposer=Failing(error))
    with serving(create_app(graph)) as server:
        for fields in ({}, {"stream": True}):
            failed = post(server.url, body(PROMPT, **fields))
            assert (failed.status_code, failed.json()["error"]["code"]) == (status, code)
            assert PROMPT not in failed.text
            assert failed.headers.get("x-should-retry") == ("false" if status >= 500 else None)
        told = httpx.get(server.url + "/metrics").text
    assert f'r2graph_errors_total{{code="{code}"}} 2.0' in told
    assert PROMPT not in told
    logged = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("r2graph"))
    assert logged
    assert PROMPT not in logged
    assert KEY not in logged
    assert PROMPT not in "".join(r.exc_text or "" for r in caplog.records)


@pytest.mark.parametrize(
    ("given", "status", "code"),
    [
        (ProviderError(401), 502, "model_auth"),
        (ProviderError(400), 502, "model_bad_request"),
        (TimeoutError(), 504, "model_timeout"),
        (ProviderError(500), 503, "model_server"),
    ],
)
def test_a_pool_that_fails_is_an_error_in_our_words(
    given: Exception, status: int, code: str
) -> None:
    graph = graph_of(pool_of(scripted(given)), "s1: a", limits=Limits(max_retries=0))
    with serving(create_app(graph)) as server:
        failed = post(server.url, body())
        streamed = post(server.url, body(stream=True))
        watched = post(server.url, {"model": "fakes", "query": "q"}, "/runs")
    assert (failed.status_code, failed.json()["error"]["code"]) == (status, code)
    assert "x-r2-cost-usd" in failed.headers
    for response in (streamed, watched):  # the plan was there, so it had begun
        assert response.status_code == 200
        assert events_of(response)[-1]["error"]["code"] == code
    assert "SECRET" not in failed.text + streamed.text + watched.text


def test_a_stream_whose_planner_was_asked_in_vain_still_has_a_status() -> None:
    planner = CheckpointDecomposer(member("planner", scripted("s1: {s9}")))
    with serving(create_app(graph_of(pool_of(echo()), decomposer=planner))) as server:
        streamed = post(server.url, body(stream=True))
        watched = events_of(post(server.url, {"model": "fakes", "query": "q"}, "/runs"))
    assert (streamed.status_code, streamed.json()["error"]["code"]) == (502, "no_plan")
    assert watched[0] == {"event": "asked", "step": None, "member": "planner", "role": "decomposer"}
    assert watched[-1]["error"]["code"] == "no_plan"


# Load


def test_a_full_server_says_when_to_come_back() -> None:
    slow = echo(delay_s=0.5)
    app = create_app(graph_of(pool_of(slow), "s1: a"), max_runs=1, max_waiting=1)
    with serving(app) as server, ThreadPoolExecutor(6) as threads:
        done = list(threads.map(lambda _: post(server.url, body()), range(6)))
        told = httpx.get(server.url + "/metrics").text
    codes = sorted(response.status_code for response in done)
    assert codes == [200, 200, 429, 429, 429, 429]
    refused = next(response for response in done if response.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert len(slow.calls) == 2
    assert 'r2graph_errors_total{code="busy"} 4.0' in told


def test_who_waits_too_long_is_sent_away_too() -> None:
    app = create_app(graph_of(pool_of(echo(delay_s=1)), "s1: a"), max_runs=1, max_wait_s=0.1)
    with serving(app) as server, ThreadPoolExecutor(2) as threads:
        codes = sorted(threads.map(lambda _: post(server.url, body()).status_code, range(2)))
    assert codes == [200, 429]


@pytest.mark.parametrize(
    ("path", "data"),
    [
        (CHAT, body()),
        (CHAT, body(stream=True)),
        ("/runs", {"model": "fakes", "query": "q"}),
    ],
)
def test_a_run_ends_when_its_client_goes(path: str, data: dict[str, Any]) -> None:
    chat = echo(delay_s=1.0)
    with serving(create_app(graph_of(pool_of(chat)), max_runs=1)) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + path, json=data, timeout=0.3).raise_for_status()
        until(lambda: 'cancelled_total{model="fakes"} 1.0' in metrics(server.url))
        assert "r2graph_runs_running 0.0" in metrics(server.url)
        time.sleep(1.0)
    assert chat.prompts == []  # a fake's call counts when it is answered: the first was cancelled


def metrics(url: str) -> str:
    return httpx.get(url + "/metrics").text


def test_a_server_that_is_told_to_end_finishes_its_runs() -> None:
    chat = echo(delay_s=0.5)
    with serving(create_app(graph_of(pool_of(chat)))) as server, ThreadPoolExecutor(2) as threads:
        whole = threads.submit(post, server.url, body())
        stream = threads.submit(post, server.url, body(stream=True))
        until(lambda: "r2graph_runs_running 2.0" in metrics(server.url))
        server.tell_to_end()
        assert whole.result().json()["choices"][0]["message"]["content"] == "[two [one]]"
        assert events_of(stream.result())[-1] == "[DONE]"


def test_a_slow_body_does_not_hold_a_place() -> None:
    with serving(create_app(graph_of(pool_of(echo())), max_runs=1, max_waiting=0)) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as dawdler:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            dawdler.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
            assert post(server.url, body()).status_code == 200


# Metrics


def test_metrics_count_runs_dollars_tokens_and_time() -> None:
    with serving(create_app(graph_of(pool_of(scripted(""), echo())))) as server:
        costs = [Decimal(post(server.url, body()).headers["x-r2-cost-usd"]) for _ in range(2)]
        told = metrics(server.url)
    assert 'r2graph_runs_total{model="fakes",stop_reason="' in told
    assert 'r2graph_run_seconds_count{model="fakes"} 2.0' in told
    [spent] = re.findall(r'r2graph_cost_usd_total\{model="fakes"\} (\S+)', told)
    assert float(spent) == pytest.approx(float(sum(costs)))
    assert 'r2graph_calls_total{member="m2",model="fakes"} 4.0' in told
    assert 'r2graph_tokens_total{direction="output",member="m2",model="fakes"}' in told
    assert 'r2graph_breaker_open{member="m1",model="fakes"} 0.0' in told
    assert PROMPT not in told


def test_an_open_breaker_shows_in_the_metrics() -> None:
    broken = FakeChat(answer=lambda _: ProviderError(500))
    graph = graph_of(pool_of(broken, echo()), "s1: a", limits=Limits(max_retries=0))
    with serving(create_app(graph)) as server:
        for _ in range(6):
            assert post(server.url, body()).status_code == 200
        told = metrics(server.url)
    assert 'r2graph_breaker_open{member="m1",model="fakes"} 1.0' in told
    assert 'r2graph_breaker_open{member="m2",model="fakes"} 0.0' in told


# The command


def test_the_command_serves_with_a_key_until_it_is_told_to_end(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    member = {"model": "openai:none", "model_kwargs": {"base_url": nowhere}}
    member["price"] = {"input_per_mtok": 1, "output_per_mtok": 1}
    members = [{"name": name, **member} for name in ("m1", "m2")]
    (tmp_path / "pool.yaml").write_text(json.dumps({"name": "mine", "members": members}))
    code = "from r2graph.cli import app; app()"
    options = ["--port", "0", "--pool", str(tmp_path / "pool.yaml"), "--pool-budget", "1"]
    with subprocess.Popen(
        [sys.executable, "-c", code, "serve", *options],
        env=os.environ | {"R2GRAPH_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        try:
            assert re.fullmatch(r"r2graph serves mine: http://127\.0\.0\.1:\d+\n", told), told
            url = told.split()[-1]
            until(lambda: answers(url))
            assert post(url, body(model="mine")).status_code == 401
            key = {"authorization": f"Bearer {KEY}"}
            failed = post(url, body(PROMPT, model="mine"), headers=key, timeout=120)
        finally:
            process.terminate()
            _, logged = process.communicate(timeout=60)
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "model_server")
    assert process.returncode == -signal.SIGTERM
    assert failed.headers["x-r2-run-id"] in logged
    assert PROMPT not in logged
    assert KEY not in logged


def answers(url: str) -> bool:
    try:
        return httpx.get(url + "/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'fastapi', 'uvicorn', 'langchain_core', 'langgraph', 'prometheus_client'}"
    code = (
        "import sys; from r2graph.cli import app\n"
        "try: app(['serve', '--help'])\n"
        f"except SystemExit as end: print(end.code, {heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 set()", done.stderr
