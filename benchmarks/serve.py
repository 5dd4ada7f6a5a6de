"""What the server adds to a run: latency of lab queries over HTTP, and of the bare graph.

    python -m benchmarks.serve [--queries N]

`r2graph serve` runs in a process of its own, the bare graph in this one; they take turns with the
same queries, asked by 1, 16 and 64 clients at once. The server lets 64 runs in, as the bare graph
does, so that neither has a queue of its own. Latencies are from asking to the whole answer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from statistics import quantiles

import httpx

from r2graph import create_r2_graph, load_pool
from r2graph.graph import R2Graph
from r2graph.lab import benchmarks

CLIENTS = 1, 16, 64
ROUNDS = 4
Ask = Callable[[str], Awaitable[None]]


@contextmanager
def server() -> Iterator[str]:
    """`r2graph serve` on a free port."""
    environment = {key: value for key, value in os.environ.items() if key != "R2GRAPH_API_KEY"}
    code = "from r2graph.cli import app; app()"
    options = ["serve", "--port", "0", "--max-runs", str(CLIENTS[-1])]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        told = process.stdout.readline()
        assert "http://" in told, "the server did not start"
        yield told.split()[-1]
    finally:
        process.terminate()
        process.wait(30)


def over_http(client: httpx.AsyncClient) -> Ask:
    async def ask(query: str) -> None:
        body = {"model": "lab", "messages": [{"role": "user", "content": query}]}
        response = await client.post("/v1/chat/completions", json=body)
        response.raise_for_status()

    return ask


def directly(graph: R2Graph) -> Ask:
    async def ask(query: str) -> None:
        await graph.ainvoke({"query": query})

    return ask


async def latencies(ask: Ask, queries: list[str], clients: int) -> list[float]:
    """Milliseconds of each query; each client asks the next one when it has its answer."""
    left = iter(queries)
    taken: list[float] = []

    async def client() -> None:
        for query in left:
            began = time.perf_counter()
            await ask(query)
            taken.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(client() for _ in range(clients)))
    return taken


async def measure(url: str, graph: R2Graph, queries: list[str]) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        asks = directly(graph), over_http(client)
        for ask in asks:
            await latencies(ask, queries[:32], 4)  # warm up
        print(f"{len(queries) * ROUNDS} queries of each; ms")
        print("clients  bare p50     p99   serve p50     p99   p50 added")
        for clients in CLIENTS:
            taken: tuple[list[float], list[float]] = ([], [])
            for _ in range(ROUNDS):
                for ask, column in zip(asks, taken, strict=True):
                    column += await latencies(ask, queries, clients)
            cuts = [quantiles(column, n=100) for column in taken]
            bare, served = ((each[49], each[98]) for each in cuts)
            print(
                f"{clients:7} {bare[0]:9.1f} {bare[1]:7.1f} {served[0]:11.1f} {served[1]:7.1f} "
                f"{served[0] - bare[0]:11.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--queries", type=int, default=128, help=f"in each of {ROUNDS} rounds")
    count = parser.parse_args().queries
    names = "scan-simple", "scan-length", "arith", "geo"
    lists = [[task.query for task in benchmarks.tasks(name, count)] for name in names]
    queries = list(islice(cycle(q for row in zip(*lists, strict=True) for q in row), count))
    with server() as url:
        graph = create_r2_graph(load_pool("lab"), router="lab")
        for spec in graph.defaults.pool.members:
            spec.chat.get_num_tokens("")  # loads it
        asyncio.run(measure(url, graph, queries))


if __name__ == "__main__":
    main()
