"""The server as others' clients see it: the official `openai` one and `langchain-openai`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal

import openai
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI

from r2graph import create_r2_graph, load_pool
from r2graph.limits import Limits
from r2graph.serve import create_app
from tests.fakes import FakeChat, ProviderError, echo, pool_of, scripted
from tests.serving import graph_of, serving

KEY = "sk-canary-2"
ANSWER = "[two [one]]"


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A server with a key, of a graph that answers and one whose models fail."""
    broken = FakeChat(answer=lambda _: ProviderError(401))
    graphs = {
        "fakes": graph_of(pool_of(echo(), echo())),
        "broken": graph_of(pool_of(broken), "s1: a", limits=Limits(max_retries=0)),
    }
    with serving(create_app(graphs, key=KEY)) as server:
        yield f"{server.url}/v1"


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key=KEY) as client:
        yield client


def test_openai_gets_a_completion(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="fakes-q0.5",
        messages=[{"role": "user", "content": "q"}],
        extra_body={"budget_usd": "0.5"},
    )
    done = raw.parse()
    assert done.choices[0].message.content == ANSWER
    assert done.choices[0].finish_reason == "stop"
    assert done.usage is not None
    assert done.usage.total_tokens > 0
    assert done.model_extra is not None
    assert done.model_extra["r2"]["quality"] == 0.5
    assert Decimal(raw.headers["x-r2-cost-usd"]) > 0
    assert raw.headers["x-r2-models"] == "m1"


def test_openai_streams_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fakes",
            messages=[{"role": "user", "content": "q"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["r2"]["stop_reason"]


def test_openai_s_stream_helper_adds_the_chunks_up(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="fakes", messages=[{"role": "user", "content": "q"}]
    ) as stream:
        done = stream.get_final_completion()
    assert done.choices[0].message.content == ANSWER


async def test_openai_awaits(base_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY) as client:
        done = await client.chat.completions.create(
            model="fakes", messages=[{"role": "user", "content": "q"}]
        )
        stream = await client.chat.completions.create(
            model="fakes", messages=[{"role": "user", "content": "q"}], stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert done.choices[0].message.content == "".join(pieces) == ANSWER


def test_openai_sends_an_answer_back_as_history(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(
        model="fakes", messages=[{"role": "user", "content": "q"}]
    )
    again = client.chat.completions.create(
        model="fakes",
        messages=[
            {"role": "user", "content": "q"},
            first.choices[0].message.model_dump(),  # type: ignore[list-item]
            {"role": "user", "content": "and now?"},
        ],
    )
    assert again.choices[0].message.content == ANSWER


def test_openai_lists_models(client: openai.OpenAI) -> None:
    assert {"fakes", "fakes-q0.8", "broken"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("fakes-q0.61").id == "fakes-q0.61"


def test_openai_raises_its_own_errors(client: openai.OpenAI, base_url: str) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="gpt-5", messages=[{"role": "user", "content": "q"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        create(model="fakes", messages=[{"role": "user", "content": "q"}], n=2)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "n")
    with (
        openai.OpenAI(base_url=base_url, api_key="wrong") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    with pytest.raises(openai.APIStatusError) as broke:
        create(model="fakes-b0", messages=[{"role": "user", "content": "q"}])
    assert (broke.value.status_code, broke.value.code) == (402, "budget_exceeded")


def test_openai_does_not_repeat_a_run_that_failed() -> None:
    broken = scripted(ProviderError(500))
    app = create_app(graph_of(pool_of(broken), "s1: a", limits=Limits(max_retries=0)))
    with (
        serving(app) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client,
        pytest.raises(openai.InternalServerError) as failed,
    ):
        client.chat.completions.create(model="fakes", messages=[{"role": "user", "content": "q"}])
    assert failed.value.code == "model_server"
    assert len(broken.calls) == 1


def test_openai_raises_what_goes_wrong_in_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="broken", messages=[{"role": "user", "content": "q"}], stream=True
    )
    with pytest.raises(openai.APIError) as failed:
        list(stream)
    assert failed.value.code == "model_auth"
    assert "SECRET" not in str(failed.value)


async def test_openai_waits_as_long_as_it_is_told_and_then_gets_through() -> None:
    app = create_app(graph_of(pool_of(echo(delay_s=0.3)), "s1: a"), max_runs=1, max_waiting=0)
    with serving(app) as server:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=4) as client:
            asked = [
                client.chat.completions.create(
                    model="fakes", messages=[{"role": "user", "content": "q"}]
                )
                for _ in range(2)
            ]
            done = await asyncio.gather(*asked)
    assert [each.choices[0].message.content for each in done] == ["[a]", "[a]"]


def test_langchain_gets_answers_and_usage(base_url: str) -> None:
    chat = ChatOpenAI(
        model="fakes",
        base_url=base_url,
        api_key=KEY,
        extra_body={"quality": 0.5},  # type: ignore[arg-type]
    )
    message = chat.invoke("q")
    assert message.content == ANSWER
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] > 0
    assert message.response_metadata["model_name"] == "fakes"


async def test_langchain_streams_and_awaits(base_url: str) -> None:
    chat = ChatOpenAI(model="fakes", base_url=base_url, api_key=KEY, stream_usage=True)  # type: ignore[arg-type]
    assert (await chat.ainvoke([("system", "be brief"), ("user", "q")])).content == ANSWER
    whole = AIMessageChunk("")
    async for chunk in chat.astream("q"):
        whole += chunk  # type: ignore[assignment]
    assert whole.content == ANSWER
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["total_tokens"] > 0


def test_the_lab_answers_the_openai_client() -> None:
    pool = load_pool("lab")
    for spec in pool.members:  # before anyone waits: to load torch may take longer than a call may
        spec.chat.get_num_tokens("")
    with (
        serving(create_app(create_r2_graph(pool, router="lab"))) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client,
    ):
        done = client.chat.completions.create(
            model="lab-q0.9", messages=[{"role": "user", "content": "( 12 + 7 ) * 6 - -3"}]
        )
        assert done.choices[0].message.content == "117"
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                model="lab", messages=[{"role": "user", "content": "Who was Ada Lovelace?"}]
            )
    assert refused.value.code == "unsupported_query"
