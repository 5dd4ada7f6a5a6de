"""What a run costs in CPU, database and memory: `benchmarks.capacity` measures it by these.

All in seconds of CPU, for the machine may be busy with other things.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any
from urllib.parse import unquote

import psutil

from benchmarks.orchestration import PLAN, SUBTASKS, ainvoke, r2_graph
from benchmarks.simulation import Shape, Step
from r2graph import Budget, Ledger, OutcomeCache, create_r2_graph, load_pool
from r2graph.allocate import CheapestFirst
from r2graph.lab import benchmarks
from r2graph.state import R2Output
from r2graph.verify import FormatVerifier
from tests.fakes import Planned, echo, pool_of
from tests.postgres import new_schema, running_server

ROUNDS = 3
QUERIES = 200
TOKENS = 16


def pace_ms() -> float:
    """Milliseconds of CPU of a plain loop: on a busy machine a second of CPU does less."""
    taken = []
    for _ in range(ROUNDS * 5):
        began, total = process_time(), 0
        for number in range(300_000):
            total += number * number % 7
        taken.append((process_time() - began) * 1_000)
    return median(taken)


# The lab: whom runs ask, and in what order.


def lab_queries(count: int) -> list[str]:
    names = "scan-simple", "scan-length", "arith", "geo"
    lists = [[task.query for task in benchmarks.tasks(name, count)] for name in names]
    return list(islice(cycle(q for row in zip(*lists, strict=True) for q in row), count))


def shape_of(result: R2Output, asked: Sequence[dict[str, Any]], ranks: dict[str, int]) -> Shape:
    """The calls of a run, as its events tell them; models that are no members are the router's."""
    places = {name: place for place, name in enumerate(result["steps"])}
    steps = []
    for name, step in result["steps"].items():
        needs = dict.fromkeys(re.findall(r"{(s\d+)}", step["text"]))
        own = tuple(ranks.get(each["member"], 0) for each in asked if each["step"] == name)
        steps.append(Step(tuple(places[need] for need in needs), own))
    return Shape(sum(each["step"] not in places for each in asked), tuple(steps))


def measure_lab(home: Path) -> dict[str, Any]:
    """Runs of the lab's router as they are, and again with every reply in an outcome cache."""
    pool = load_pool("lab")
    for spec in pool.members:
        spec.chat.get_num_tokens("")  # loads it
    queries = lab_queries(QUERIES)
    ranks = {name: rank for rank, name in enumerate(pool.names, start=1)}
    with OutcomeCache(home / "outcomes.sqlite") as outcomes:
        graph = create_r2_graph(pool, router="lab", outcomes=outcomes)

        async def shapes() -> list[Shape]:
            gate = asyncio.Semaphore(64)

            async def run(query: str) -> Shape:
                asked = []
                async with gate:
                    async for mode, told in graph.astream(
                        {"query": query}, stream_mode=["custom", "values"]
                    ):
                        if mode == "values":
                            result = told
                        elif told["event"] == "asked":
                            asked.append(told)
                return shape_of(result, asked, ranks)

            return await asyncio.gather(*map(run, queries))

        began = process_time()
        found = asyncio.run(shapes())
        live_s = (process_time() - began) / len(queries)
        began = process_time()
        asyncio.run(shapes())
        cached_s = (process_time() - began) / len(queries)
    return {
        "shapes": found,
        "live_cpu_ms": live_s * 1_000,
        "cached_cpu_ms": cached_s * 1_000,
        "token_cpu_ms": {spec.name: token_cpu_ms(spec.chat, queries[:8]) for spec in pool.members},
    }


def token_cpu_ms(chat: Any, texts: Sequence[str]) -> float:
    """Milliseconds of CPU for each token that a model writes, one call at a time."""
    chat.invoke(texts[0], max_tokens=TOKENS)
    began = process_time()
    replies = [chat.invoke(text, max_tokens=TOKENS) for text in texts]
    tokens = sum(reply.usage_metadata["output_tokens"] for reply in replies)
    return (process_time() - began) * 1_000 / tokens


# The graph by itself, with models that answer at once.


def run_cpu_ms(ledger: Ledger | None, runs: int = 20) -> float:
    """Milliseconds of CPU of this process for a run of eight steps; a median."""
    graph = r2_graph(echo(), ledger)
    ainvoke(graph, runs)
    taken = []
    for _ in range(ROUNDS):
        began = process_time()
        ainvoke(graph, runs)
        taken.append((process_time() - began) * 1_000 / runs)
    return median(taken)


def measure_graph(home: Path, server: str | None) -> dict[str, Any]:
    figures = {"steps": len(SUBTASKS), "plain_cpu_ms": run_cpu_ms(None)}
    with Ledger(home / "ledger.sqlite") as ledger:
        figures["sqlite_cpu_ms"] = run_cpu_ms(ledger)
        lines = len(ledger.lines())
    # Closed, or the log before the file would count twice.
    figures["sqlite_bytes_a_call"] = (home / "ledger.sqlite").stat().st_size / lines
    if server is not None:
        with Ledger(new_schema(server)) as ledger:
            figures["postgres_cpu_ms"] = run_cpu_ms(ledger)
    return figures | {"checkpoint_bytes": checkpoint_bytes(home)}


def checkpoint_bytes(home: Path, runs: int = 50) -> float:
    """Of a run of eight steps in LangGraph's SQLite checkpointer."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    path = home / "checkpoints.sqlite"
    with SqliteSaver.from_conn_string(str(path)) as saver:
        graph = create_r2_graph(
            pool_of(echo()),
            decomposer=Planned(PLAN),
            allocator=CheapestFirst(),
            verifier=FormatVerifier(),
            checkpointer=saver,
        )
        for run in range(runs):
            graph.invoke({"query": "count"}, {"configurable": {"thread_id": str(run)}})
    return path.stat().st_size / runs


# The ledger's database.


@contextmanager
def durable_server() -> Iterator[tuple[str, int]]:
    """The URL of PostgreSQL as the tests start it, but with fsync, and the id of its process."""
    with running_server() as url:
        data = Path(unquote(url.split("host=")[1])) / "data"
        program = (data / "postmaster.opts").read_text().split()[0].strip('"')
        control = [str(Path(program).with_name("pg_ctl")), "-D", str(data), "-w"]
        options = f"-k {data.parent} -h '' -c max_connections=200"
        subprocess.run(
            [*control, "-l", str(data.parent / "log"), "-o", options, "restart"],
            user=data.stat().st_uid,
            cwd=data.parent,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        yield url, int((data / "postmaster.pid").read_text().split()[0])


def database_cpu_s(process: int) -> float:
    """Of all processes that the server has now or had before."""
    server = psutil.Process(process)
    gone = server.cpu_times()
    there = [child.cpu_times() for child in server.children()]
    return float(gone.children_user + gone.children_system) + sum(
        each.user + each.system for each in there
    )


def write_calls(url: str, scope: str, threads: int, seconds: float) -> tuple[int, float, float]:
    """Calls entered and settled by threads of this process; seconds of CPU and of wall a call."""
    budget = Budget(usd=Decimal(1_000_000), scope=scope)
    ends = time.monotonic() + seconds
    with Ledger(url) as ledger, ThreadPoolExecutor(threads) as pool:

        def write(thread: int) -> list[float]:
            taken = []
            while (began := time.monotonic()) < ends:
                name = f"{os.getpid()}-{thread}-{len(taken)}"
                page = ledger.page(name, "executor", "m1", "s1", [], budget)
                page.lines()
                page.intend(Decimal("0.001"))
                page.reply(1, Decimal("0.0005"), {"text": "done", "seconds": 0.1})
                taken.append(time.monotonic() - began)
            return taken

        began = process_time()
        taken = [each for calls in pool.map(write, range(threads)) for each in calls]
    return len(taken), (process_time() - began) / len(taken), median(taken)


def measure_database(url: str, process: int, seconds: float = 4.0) -> dict[str, Any]:
    """What a call of the ledger takes, and how many of them one row of a budget bears."""
    import psycopg

    schema = new_schema(url)
    with psycopg.connect(schema, autocommit=True) as connection:
        with Ledger(schema):
            pass  # makes the tables

        def told(query: str) -> int:
            return int(connection.execute(query).fetchone()[0])  # type: ignore[index]

        committed = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        began = told(committed)
        before_s = database_cpu_s(process)
        calls, client_s, call_s = write_calls(schema, "alone", 1, seconds)
        connection.execute("SELECT pg_stat_clear_snapshot()")
        transactions = (told(committed) - began) / calls
        bytes_a_call = told("SELECT pg_total_relation_size('r2graph_calls')") / calls
        held = []
        connection.autocommit = False
        for _ in range(300):  # as the ledger does it: the total last, then the commit
            connection.execute("SELECT 1")
            began_s = perf_counter()
            connection.execute("UPDATE r2graph_totals SET pico = pico + 1 WHERE scope = 'alone'")
            connection.commit()
            held.append(perf_counter() - began_s)
    rates = {}
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for scopes in (["one", "one"], ["one", "two"]):
            args = [schema] * 2, scopes, [4] * 2, [seconds] * 2
            rates[len(set(scopes))] = sum(n for n, *_ in pool.map(write_calls, *args)) / seconds
    database_s = database_cpu_s(process) - before_s
    written = calls + sum(rates.values()) * seconds
    return {
        "commits_a_call": transactions,
        "call_wall_ms": call_s * 1_000,
        "call_client_cpu_ms": client_s * 1_000,
        "call_database_cpu_ms": database_s * 1_000 / written,
        "row_held_ms": median(held) * 1_000,
        "calls_a_second_one_row": rates[1],
        "calls_a_second_two_rows": rates[2],
        "bytes_a_call": bytes_a_call,
    }
