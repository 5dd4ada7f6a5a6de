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
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.loaded_server import SLOTS, cheapest_first, measure_server
from benchmarks.service_times import (
    durable_server,
    measure_database,
    measure_graph,
    measure_lab,
    pace_ms,
)
from benchmarks.simulation import Latency, Outcome, Service, Shape, Step, System, simulate
from tests.postgres import NoServerError, new_schema

# A call of the ledger is a read and two writes; a write is seven statements, two of which, the
# total and the commit, have the row of the budget locked.
TRANSACTIONS, TRIPS, TRIPS_HELD = 3, 7, 2


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
