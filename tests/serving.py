"""A real server on loopback, for tests of what it says to real clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import uvicorn
from fastapi import FastAPI

from r2graph.allocate import CheapestFirst
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.pool import ModelPool
from r2graph.verify import FormatVerifier
from tests.fakes import Planned

PLAN = "s1: one\ns2: two {s1}"


class Served:
    """A server in a thread of its own."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="warning", access_log=False, ws="none"
        )
        self._server = uvicorn.Server(config)
        self._socket = config.bind_socket()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = Thread(target=self._server.run, args=([self._socket],))

    def begin(self) -> None:
        self._thread.start()
        until(lambda: self._server.started)

    def tell_to_end(self) -> None:
        self._server.should_exit = True

    def end(self) -> None:
        self.tell_to_end()
        self._thread.join(20)
        self._socket.close()
        assert not self._thread.is_alive(), "the server does not end"


@contextmanager
def serving(app: FastAPI) -> Iterator[Served]:
    server = Served(app)
    server.begin()
    try:
        yield server
    finally:
        server.end()


def until(holds: object, seconds: float = 20.0) -> None:
    """Wait for something that is bound to happen."""
    ends = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)


async def auntil(holds: object, seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < ends, "it did not happen"
        await asyncio.sleep(0.01)


def graph_of(pool: ModelPool, plan: str = PLAN, **options: object) -> R2Graph:
    """A graph with a fixed plan, that starts each step on the cheapest member."""
    settings: dict[str, object] = {
        "decomposer": Planned(plan),
        "allocator": CheapestFirst(),
        "verifier": FormatVerifier(),
    }
    return create_r2_graph(pool, **(settings | options))  # type: ignore[arg-type]
