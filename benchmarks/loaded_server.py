"""`r2graph serve` under load, between clients and a provider that are both this process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from statistics import mean, median, quantiles
from time import perf_counter
from typing import Any

import httpx
import psutil
import yaml

from benchmarks.service_times import ROUNDS
from benchmarks.simulation import Latency, Shape, Step

SLOTS = 9


class Provider:
    """OpenAI's chat completions in little: plans by number, steps that fail as told."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes = shapes
        self.latency = Latency(0.0, 0.0)
        self._random = Random(1)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"content-length: (\d+)", head, re.I)[1])  # type: ignore[index]
                body = json.loads(await reader.readexactly(length))
                await asyncio.sleep(self.latency.draw(self._random))
                said = json.dumps(completion(self._text(body))).encode()
                kind = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d"
                writer.write(kind % len(said) + b"\r\n\r\n" + said)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()

    def _text(self, body: dict[str, Any]) -> str:
        asked = str(body["messages"][-1]["content"])
        if found := re.search(r"shape (\d+)", asked):
            return json.dumps(plan_of(self.shapes[int(found[1])]))
        tries = int(re.search(r"in (\d+) tries", asked)[1])  # type: ignore[index]
        return "done" if int(body["model"][1:]) >= tries else ""


def plan_of(shape: Shape) -> dict[str, Any]:
    subtasks = []
    for number, step in enumerate(shape.steps, start=1):
        needed = " ".join(f"{{s{need + 1}}}" for need in step.needs)
        text = f"Do part {number} in {len(step.asked)} tries {needed}"
        subtasks.append({"id": f"s{number}", "text": text})
    return {"subtasks": subtasks, "answer": None}


def completion(text: str) -> dict[str, Any]:
    token = {"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": []}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": [token]},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def cheapest_first(shape: Shape) -> Shape:
    """The same plan, prompted, with each step tried from the cheapest member up."""
    steps = []
    for step in shape.steps:
        tries = max(1, sum(slot > 0 for slot in step.asked))
        steps.append(Step(step.needs, tuple(range(1, tries + 1))))
    return Shape(1, tuple(steps))


@contextmanager
def server(home: Path, provider: str, ledger: str | None = None) -> Iterator[Served]:
    """`r2graph serve` on a pool of nine members of that provider."""
    member = {
        "model_kwargs": {"base_url": provider},
        "price": {"input_per_mtok": 1, "output_per_mtok": 1},
    }
    members = [{"name": f"m{n}", "model": f"openai:m{n}", **member} for n in range(1, SLOTS + 1)]
    path = home / "provided.yaml"
    path.write_text(yaml.safe_dump({"name": "provided", "members": members}))
    options = ["serve", "--pool", str(path), "--port", "0", "--max-runs", "1000"]
    options += ["--ledger", ledger] if ledger else []
    environment = {key: value for key, value in os.environ.items() if key != "R2GRAPH_API_KEY"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from r2graph.cli import app; app()", *options],
        env=environment | {"OPENAI_API_KEY": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        told = process.stdout.readline()
        assert "http://" in told, "the server did not start"
        yield Served(told.split()[-1], psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(60)


@dataclass(frozen=True)
class Served:
    url: str
    process: psutil.Process

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def scheduled_s(self) -> tuple[float, float]:
        """Seconds on a core, and waiting for one, of the thread with the event loop (Linux)."""
        on, waiting, _ = Path(f"/proc/{self.process.pid}/schedstat").read_text().split()
        return int(on) / 1e9, int(waiting) / 1e9


@dataclass(frozen=True)
class Load:
    """What a number of clients, each with one request at a time, got of the server."""

    clients: int
    latency: Latency
    throughput: float
    p50_s: float
    p95_s: float
    cpu_s: float
    """Of a run."""
    speed: float
    """The share of a core that its event loop got when it wanted one."""


async def load(
    served: Served,
    client: httpx.AsyncClient,
    numbers: Sequence[int],
    clients: int,
    latency: Latency,
) -> Load:
    left, taken = iter(numbers), []

    async def ask() -> None:
        for number in left:
            query = (
                f"shape {number} " + "of the plans of the lab, in words enough to be planned " * 2
            )
            body = {"model": "provided", "messages": [{"role": "user", "content": query}]}
            began = perf_counter()
            response = await client.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            taken.append(perf_counter() - began)

    began, cpu_s, (on_s, waiting_s) = perf_counter(), served.cpu_s(), served.scheduled_s()
    await asyncio.gather(*(ask() for _ in range(clients)))
    wall_s, cpu_s = perf_counter() - began, served.cpu_s() - cpu_s
    after_on_s, after_waiting_s = served.scheduled_s()
    on_s, waiting_s = after_on_s - on_s, after_waiting_s - waiting_s
    cuts = quantiles(taken, n=20)
    speed = on_s / (on_s + waiting_s)
    rate = len(taken) / wall_s
    return Load(clients, latency, rate, cuts[9], cuts[18], cpu_s / len(taken), speed)


async def in_flight(
    served: Served, client: httpx.AsyncClient, provider: Provider
) -> dict[str, Any]:
    """Memory and files of a run that waits for its models, of `clients` at once."""
    clients = 200
    await load(served, client, [0] * 64, 16, provider.latency)  # warm up
    provider.latency = Latency(4.0, 4.0)
    memory, files = served.process.memory_info().rss, served.process.num_fds()
    most = [memory, files]
    asking = asyncio.create_task(load(served, client, [0] * clients, clients, provider.latency))
    while not asking.done():
        await asyncio.sleep(0.2)
        most[0] = max(most[0], served.process.memory_info().rss)
        most[1] = max(most[1], served.process.num_fds())
    provider.latency = Latency(0.0, 0.0)
    await asking
    return {
        "idle_mb": memory / 1e6,
        "run_kb": (most[0] - memory) / clients / 1e3,
        "run_files": (most[1] - files) / clients,
    }


async def measure_server(
    home: Path, shapes: Sequence[Shape], schema: str | None, count: int
) -> dict[str, Any]:
    """CPU of runs of few and of many calls, one at a time; then what 16 and 64 clients get."""
    shapes = [cheapest_first(shape) for shape in shapes]
    provider = Provider(shapes)
    listening = await asyncio.start_server(provider.answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    by_calls = sorted(range(len(shapes)), key=lambda number: shapes[number].calls)
    third = len(by_calls) // 3
    groups = by_calls[:third], by_calls[-third:]
    numbers = list(islice(cycle(range(len(shapes))), count))
    figures: dict[str, Any] = {"loads": []}
    for ledger in (None, schema) if schema else (None,):
        kind = "ledger" if ledger else "plain"
        with server(home, url, ledger) as served:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=served.url, timeout=600, limits=limits) as client:
                if ledger is None:
                    figures |= await in_flight(served, client, provider)
                else:
                    await load(served, client, [0] * 64, 16, provider.latency)
                points: list[tuple[float, float]] = []
                for _ in range(ROUNDS):
                    for group in groups:
                        asked = list(islice(cycle(group), count // ROUNDS))
                        got = await load(served, client, asked, 1, provider.latency)
                        points.append((mean(shapes[n].calls for n in asked), got.cpu_s))
                figures[kind] = [
                    tuple(map(median, zip(*points[start::2], strict=True))) for start in (0, 1)
                ]
                for latency in (Latency(0.5, 0.5), Latency(0.3, 1.5)):
                    for clients in (16, 64):
                        provider.latency = latency
                        asked = list(islice(cycle(numbers), max(count, 5 * clients)))
                        got = await load(served, client, asked, clients, latency)
                        figures["loads"].append(asdict(got) | {"kind": kind, "runs": len(asked)})
                provider.latency = Latency(0.0, 0.0)
    listening.close()
    return figures
