"""Pools of real servers and libraries: `transformers serve` and LangChain's Hugging Face models."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from r2graph import create_r2_graph, load_pool
from r2graph.lab import benchmarks

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
