"""What a run costs in CPU, database and memory, and how many machines 1,000 users need.

    python -m benchmarks.capacity --figures runs/capacity.json [--users N --think-s S --cores C …]

Measures here, all in seconds of CPU, for the machine may be busy with other things: the graph with
models that answer at once, `r2graph serve` before a provider that this process plays, the ledger in
SQLite and PostgreSQL, the lab. Then `benchmarks.simulation` is tried against the server: what is
measured with one client foretells how long 16 and 64 wait. Last it projects. `--figures` keeps what
was measured, and if the file is there nothing is measured again. The latency of models is assumed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import mean, median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any
from urllib.parse import unquote

import httpx
import psutil
import yaml

from benchmarks.orchestration import PLAN, SUBTASKS, ainvoke, r2_graph
from benchmarks.simulation import Latency, Outcome, Service, Shape, Step, System, simulate
from r2graph import Budget, Ledger, OutcomeCache, create_r2_graph, load_pool
from r2graph.allocate import CheapestFirst
from r2graph.lab import benchmarks
from r2graph.state import R2Output
from r2graph.verify import FormatVerifier
from tests.fakes import Planned, echo, pool_of
from tests.postgres import NoServerError, new_schema, running_server

ROUNDS = 3
QUERIES = 200
SLOTS = 9
TOKENS = 16
# A call of the ledger is a read and two writes; a write is seven statements, two of which, the
# total and the commit, have the row of the budget locked.
TRANSACTIONS, TRIPS, TRIPS_HELD = 3, 7, 2


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


# The server, between clients and a provider that are both this process.


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


# From figures to a projection.


def service_of(figures: dict[str, Any], kind: str, trip_s: float) -> Service:
    """`kind` is `plain` or `ledger`; `trip_s` is a round trip to the database and back."""
    few, many = figures["server"]["plain"]
    call_s = (many[1] - few[1]) / (many[0] - few[0])
    service = Service(few[1] - few[0] * call_s, call_s)
    if kind == "plain":
        return service
    database = figures["database"]
    pairs = zip(figures["server"]["ledger"], figures["server"]["plain"], strict=True)
    client_s = mean((books - plain) / calls for (calls, books), (_, plain) in pairs) / TRANSACTIONS
    held_s = client_s * TRIPS_HELD / TRIPS
    return replace(
        service,
        written_s=client_s - held_s,
        held_s=held_s,
        trips_s=(TRIPS - TRIPS_HELD) * trip_s,
        row_s=TRIPS_HELD * trip_s + max(0.0, database["row_held_ms"] / 1e3 - held_s),
        database_s=database["call_database_cpu_ms"] / 1e3 / TRANSACTIONS,
        reads=1,
        writes=2,
    )


def validate(figures: dict[str, Any]) -> None:
    """What one client's CPU foretells of many clients, beside what they got."""
    shapes = [cheapest_first(shape) for shape in shapes_in(figures)]
    print("\nthe simulator and the server; runs a second, seconds")
    print(
        "ledger  latency      clients  speed   runs/s simulated   off     p50 simulated   off"
        "     p95 simulated   off"
    )
    for each in figures["server"]["loads"]:
        latency = Latency(**each["latency"])
        system = System(
            users=each["clients"],
            replicas=1,
            service=service_of(figures, each["kind"], 0.0),
            shapes=shapes,
            latency=[latency] * (SLOTS + 1),
            database_cores=1 if each["kind"] == "ledger" else math.inf,
            speed=each["speed"],
            seconds=math.inf,
            runs=each["runs"],
            warm_up_s=0.0,
        )
        outcome = simulate(system)
        pairs = (
            (each["throughput"], each["runs"] / outcome.lasted_s),
            (each["p50_s"], outcome.quantile(0.5)),
            (each["p95_s"], outcome.quantile(0.95)),
        )
        shown = "  ".join(
            f"{real:7.2f} {ours:9.2f} {ours / real - 1:+5.0%}" for real, ours in pairs
        )
        kind = "yes" if each["kind"] == "ledger" else "no"
        of = f"{latency.median_s:.1f} to {latency.p99_s:.1f}"
        print(f"{kind:7} {of:12} {each['clients']:7} {each['speed']:6.2f}  {shown}", flush=True)


def latencies(arguments: argparse.Namespace) -> list[Latency]:
    """Of the router and of each slot; between the cheapest and the strongest geometrically."""
    (low, low99), (high, high99) = arguments.cheapest, arguments.strongest
    shares = [slot / (SLOTS - 1) for slot in range(SLOTS)]
    slots = [
        Latency(low * (high / low) ** share, low99 * (high99 / low99) ** share) for share in shares
    ]
    return [Latency(*arguments.router), *slots]


def project(figures: dict[str, Any], arguments: argparse.Namespace) -> None:
    kind = "ledger" if figures["database"] else "plain"
    base = System(
        users=arguments.users,
        replicas=math.inf,
        service=service_of(figures, kind, arguments.trip_ms / 1e3),
        shapes=shapes_in(figures),
        latency=latencies(arguments),
        think_s=arguments.think_s,
        database_cores=arguments.database_cores,
        scopes=arguments.scopes,
        seconds=arguments.seconds,
        warm_up_s=arguments.seconds / 4,
    )
    endless = simulate(replace(base, database_cores=math.inf))
    models = simulate(replace(base, database_cores=math.inf, service=Service(0.0, 0.0)))
    print(
        f"\n{base.users:,} users who think for {base.think_s:g} s; machines of {arguments.cores} "
        f"cores, a process each; {base.scopes} budget rows\n"
        "machines   runs/s    p50    p95    p99   added p99  replicas  database   row"
    )
    shown(models, "models alone", endless)
    shown(endless, "endless", endless)
    enough = None
    for machines in arguments.machines:
        outcome = simulate(replace(base, replicas=machines * arguments.cores))
        added_s = shown(outcome, str(machines), endless)
        if enough is None and added_s <= arguments.bound_s:
            enough = machines
    told = f"{enough} machines are enough" if enough else "none of these is enough"
    print(f"{told} to add no more than {arguments.bound_s:g} s to the p99")


def shown(outcome: Outcome, name: str, endless: Outcome) -> float:
    """Print a line; returns the seconds added to the p99 of endless machines."""
    added_s = outcome.quantile(0.99) - endless.quantile(0.99)
    cuts = " ".join(f"{outcome.quantile(share):6.2f}" for share in (0.5, 0.95, 0.99))
    print(
        f"{name:>12} {outcome.throughput:6.1f} {cuts} {added_s:11.2f} {outcome.replica_load:9.0%} "
        f"{outcome.database_load:9.0%} {outcome.row_load:5.0%}",
        flush=True,
    )
    return added_s


def measure(figures: dict[str, Any], path: Path, count: int) -> None:
    """Measure what the figures lack, and keep each part as it comes."""
    with TemporaryDirectory() as name, _database() as (url, process):
        home = Path(name)
        schema = new_schema(url) if url else None
        parts: dict[str, Callable[[], Any]] = {
            "lab": lambda: measure_lab(home),
            "graph": lambda: measure_graph(home, url),
            "database": lambda: measure_database(url, process) if url else None,
            "server": lambda: asyncio.run(measure_server(home, shapes_in(figures), schema, count)),
        }
        for part, work in parts.items():
            if part not in figures:
                print(f"measuring: {part}", file=sys.stderr, flush=True)
                figures[part] = work()
                figures[f"{part}_pace_ms"] = pace_ms()
                path.write_text(json.dumps(figures))


@contextmanager
def _database() -> Iterator[tuple[str | None, int]]:
    """PostgreSQL if it is here."""
    with ExitStack() as stack:
        try:
            found: tuple[str | None, int] = stack.enter_context(durable_server())
        except NoServerError as error:
            print(f"no figures of PostgreSQL: {error}", file=sys.stderr)
            found = None, 0
        yield found


def shapes_in(figures: dict[str, Any]) -> list[Shape]:
    return [
        Shape(before, tuple(Step(tuple(needs), tuple(asked)) for needs, asked in steps))
        for before, steps in figures["lab"]["shapes"]
    ]


def tell(figures: dict[str, Any]) -> None:
    shapes = shapes_in(figures)
    calls = mean(shape.calls for shape in shapes)
    steps = mean(len(shape.steps) for shape in shapes)
    print(f"{len(shapes)} runs of the lab, of {calls:.2f} calls and {steps:.2f} steps")
    for part in ("lab", "graph", "database", "server"):
        print(f"{part:9} {'pace_ms':24} {figures[f'{part}_pace_ms']:10.2f}")
        for name, value in (figures[part] or {}).items():
            match value:
                case dict():
                    told = "  ".join(f"{key} {each:.2f}" for key, each in value.items())
                case [[few, few_s], [many, many_s]]:
                    told = f"{few:.1f} calls {few_s * 1e3:.1f} ms, {many:.1f} {many_s * 1e3:.1f} ms"
                case list():
                    continue
                case _:
                    told = f"{value:10.2f}"
            print(f"{part:9} {name:24} {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--figures", type=Path, required=True, help="a JSON file")
    parser.add_argument("--requests", type=int, default=300, help="of the server, each time")
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--think-s", type=float, default=10.0)
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--cores", type=int, default=4, help="of a machine, a process each")
    parser.add_argument("--database-cores", type=int, default=4)
    parser.add_argument("--scopes", type=int, default=1, help="budgets over which runs are spread")
    parser.add_argument("--trip-ms", type=float, default=0.5, help="to the database and back")
    parser.add_argument("--bound-s", type=float, default=0.5, help="what may be added to the p99")
    parser.add_argument("--seconds", type=float, default=240.0, help="that are simulated")
    pair = {"type": float, "nargs": 2, "metavar": ("MEDIAN_S", "P99_S")}
    parser.add_argument("--router", default=[0.5, 2.0], **pair)
    parser.add_argument("--cheapest", default=[0.4, 2.0], **pair)
    parser.add_argument("--strongest", default=[2.0, 10.0], **pair)
    arguments = parser.parse_args()
    path: Path = arguments.figures
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = json.loads(path.read_text()) if path.exists() else {}
    measure(figures, path, arguments.requests)
    tell(figures)
    validate(figures)
    project(figures, arguments)


if __name__ == "__main__":
    main()
