"""Pools and routers on real servers: `transformers serve`, and LangChain's Hugging Face models."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from functools import reduce
from operator import add
from pathlib import Path

import httpx
import pytest
import yaml

from r2graph import create_r2_graph, load_pool
from r2graph.allocate import FixedAllocator
from r2graph.lab import benchmarks
from r2graph.pool import ModelPool
from tests.chat_fakes import openai_server
from tests.fakes import Planned

# LangChain keeps one connection pool for a URL: it must not outlive its event loop.
one_loop = pytest.mark.asyncio(loop_scope="module")

ARTEFACTS = Path(benchmarks.__file__).parent / "artefacts"
QUERY = "jump opposite left twice and walk around right"
ANSWER = (
    "I_TURN_LEFT I_TURN_LEFT I_JUMP " * 2 + "I_TURN_RIGHT I_WALK " * 4
).strip()  # by the rules of SCAN
PRICE = {"input_per_mtok": "0.1", "output_per_mtok": "0.3"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The base URL of a real OpenAI-compatible server on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    settings = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *settings],
        env=os.environ | offline,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(120):
            if process.poll() is not None:
                pytest.fail("the server ended before it was ready")
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=10)


def pool_file(base_url: str) -> dict[str, object]:
    members = [
        {
            "name": name,
            "model": f"openai:{ARTEFACTS / name}",
            "model_kwargs": {"base_url": base_url},
            "price": PRICE,
        }
        for name in ("m4", "m7")
    ]
    return {"name": "served", "language": "lab", "members": members}


def test_a_pool_on_an_openai_compatible_server_does_the_main_job(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    graph = create_r2_graph(load_pool(pool_file(server)), router="lab")
    result = graph.invoke(QUERY)
    assert result["answer"] == ANSWER
    assert len(result["plan"]["subtasks"]) == 2
    served = {name: use for name, use in result["usage"].items() if name in ("m4", "m7")}
    tokens = sum(use["input_tokens"] for use in served.values())
    assert tokens > 0
    assert all("estimated" not in use for use in served.values())
    cost = sum(Decimal(use["cost_usd"]) for use in served.values())
    output = sum(use["output_tokens"] for use in served.values())
    assert cost == (tokens * Decimal("0.1") + output * Decimal("0.3")) / 1_000_000


@one_loop
async def test_a_served_pool_streams_and_awaits(server: str) -> None:
    graph = create_r2_graph(load_pool(pool_file(server)), router="lab")
    updates = [chunk async for chunk in graph.astream(QUERY, stream_mode="updates")]
    nodes = [name for update in updates for name in update if name != "step"]  # its tasks
    assert nodes == ["decompose", "allocate", "execute_step", "verify"]


def test_a_hugging_face_chat_model_is_a_member() -> None:
    from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

    pipeline = HuggingFacePipeline.from_model_id(
        str(ARTEFACTS / "m7"),
        task="text-generation",
        device=None,
        pipeline_kwargs={"max_new_tokens": 64, "do_sample": False, "return_full_text": False},
    )
    member = {"name": "m7", "model": ChatHuggingFace(llm=pipeline), "price": PRICE}
    pool = load_pool({"name": "hf", "language": "lab", "members": [member]})
    result = create_r2_graph(pool, router="lab").invoke(QUERY)
    assert result["answer"] == ANSWER
    assert Decimal(result["usage"]["m7"]["cost_usd"]) > 0


@one_loop
async def test_a_hugging_face_endpoint_answers_sync_async_and_in_pieces_and_counts(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf-test")
    own = {"base_url": server}
    member = {"name": "m7", "model": f"huggingface:{ARTEFACTS / 'm7'}", "model_kwargs": own}
    pool = load_pool(
        {
            "name": "hf",
            "language": "lab",
            "members": [member | {"key_env": "HF_TOKEN", "price": PRICE}],
        }
    )
    chat = pool[0].chat
    query = "walk around right"
    replies = [chat.invoke(query), await chat.ainvoke(query), reduce(add, chat.stream(query))]
    assert [reply.text.strip() for reply in replies] == [" ".join(["I_TURN_RIGHT I_WALK"] * 4)] * 3
    assert len({str(reply.usage_metadata) for reply in replies}) == 1
    assert replies[0].usage_metadata
    result = create_r2_graph(pool, router="lab").invoke(QUERY)
    assert result["answer"] == ANSWER
    assert "estimated" not in result["usage"]["m7"]


@one_loop
async def test_langchains_own_hugging_face_endpoint_is_a_member() -> None:
    from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

    with openai_server() as url:
        chat = ChatHuggingFace(llm=HuggingFaceEndpoint(endpoint_url=url))
        member = {"name": "hf", "model": chat, "price": PRICE}
        graph = create_r2_graph(load_pool({"name": "hf", "members": [member]}))
        result = await graph.ainvoke("Good evening")
        assert result["answer"] == graph.invoke("Good evening")["answer"] == "Well met."
    assert result["usage"]["hf"]["input_tokens"] == 10 * result["usage"]["hf"]["calls"]
    assert "estimated" not in result["usage"]["hf"]


def mixed_pool(base_url: str) -> ModelPool:
    """A model of each kind: weights in this process, a server of one's own, and somebody else's."""
    near = {"name": "near", "model": f"local:{ARTEFACTS / 'm2'}"}
    own, cloud = (
        {
            "name": name,
            "model": f"openai:{ARTEFACTS / model}",
            "model_kwargs": {"base_url": base_url},
        }
        for name, model in (("own", "m4"), ("cloud", "m7"))
    )
    members = [near, own | {"tags": ["local"]}, cloud | {"key_env": "CLOUD_KEY"}]
    priced = [member | {"price": PRICE} for member in members]
    return load_pool({"name": "mixed", "language": "lab", "members": priced})


@one_loop
async def test_local_served_and_cloud_models_share_a_pool_and_a_bill(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_KEY", "sk-test")
    pool = mixed_pool(server)
    graph = create_r2_graph(
        pool,
        router="lab",
        decomposer=Planned("s1: walk around right\ns2: jump opposite left\ns3: run left"),
        allocator=FixedAllocator({"s1": "near", "s2": "own", "s3": "cloud"}),
    )
    for result in (graph.invoke("walk twice"), await graph.ainvoke("walk twice")):
        assert [step["output"] for step in result["steps"].values()] == [
            " ".join(["I_TURN_RIGHT I_WALK"] * 4),
            "I_TURN_LEFT I_TURN_LEFT I_JUMP",
            "I_TURN_LEFT I_RUN",
        ]
        assert result["local_share"] == pytest.approx(2 / 3)
        usage = result["usage"]
        assert usage.keys() == set(pool.names)
        for use in usage.values():
            assert use["calls"] == 1
            paid = Decimal("0.1") * use["input_tokens"] + Decimal("0.3") * use["output_tokens"]
            assert Decimal(use["cost_usd"]) == paid / 1_000_000 > 0
        total = sum(Decimal(use["cost_usd"]) for use in usage.values())
        assert Decimal(result["cost_usd"]) == total
    assert pool.local_only().names == ("near", "own")


def test_a_router_whose_modules_a_server_has_decides_as_with_its_weights_here(
    server: str, tmp_path: Path
) -> None:
    card = yaml.safe_load((ARTEFACTS / "router/router.yaml").read_text())
    served = {
        module: {
            "model": f"openai:{ARTEFACTS / 'router' / module}",
            "model_kwargs": {"base_url": server},
        }
        for module in ("decomposer", "allocator")
    }
    (tmp_path / "router.yaml").write_text(yaml.safe_dump(card | {"served": served}))
    here = create_r2_graph("lab", router="lab").invoke(QUERY)
    there = create_r2_graph("lab", router=tmp_path).invoke(QUERY)
    assert there["answer"] == here["answer"] == ANSWER
    assert there["plan"] == here["plan"]
    slots = [
        {step: choice["slot"] for step, choice in result["allocation"].items()}
        for result in (here, there)
    ]
    assert slots[0] == slots[1]
    for module in ("lab-decomposer", "lab-allocator"):
        assert there["usage"][module]["input_tokens"] > 0
        assert "estimated" not in there["usage"][module]
    assert Decimal(there["router_cost_usd"]) > 0
