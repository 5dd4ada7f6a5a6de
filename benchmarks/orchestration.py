"""What the graph itself costs: CPU per step, less that of a bare LangGraph with the same dataflow.

    python -m benchmarks.orchestration [--runs N]

Both graphs have the same four nodes, run the same plan as LangGraph tasks and call the same model,
which answers at once. They take turns in one process; the figure is the difference. What it buys:
prices, limits, deadlines, the bill, checks, escalation, typed errors, events. The last column is
the difference with a call ledger in a file, which makes three transactions of each call.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any, TypedDict

from langchain_core.messages import HumanMessage
from langgraph.func import task
from langgraph.graph import END, START, StateGraph

from r2graph import create_r2_graph
from r2graph.allocate import CheapestFirst
from r2graph.ledger import Ledger
from r2graph.plan import fill, parse_text
from r2graph.verify import FormatVerifier
from tests.fakes import Planned, echo, pool_of

PLAN = """\
s1: one
s2: two
s3: three {s1}
s4: four {s1} {s2}
s5: five
s6: six {s3} {s4}
s7: seven {s5}
s8: eight {s6} {s7}"""
SUBTASKS = parse_text(PLAN).subtasks
ROUNDS = 15


class State(TypedDict, total=False):
    query: str
    plan: str
    outputs: dict[str, str]
    answer: str


def bare_graph(chat: Any) -> Any:
    """Plain functions as nodes, for `invoke`."""

    @task
    def step(text: str, needed: dict[str, Any]) -> str:
        inputs = {name: future.result() for name, future in needed.items()}
        return str(chat.invoke([HumanMessage(fill(text, inputs))]).text)

    def execute(state: State) -> State:
        return {"outputs": {name: future.result() for name, future in started(step).items()}}

    return compiled(
        lambda state: {"plan": PLAN},
        lambda state: {},
        execute,
        lambda state: {"answer": state["outputs"]["s8"]},
    )


def bare_async_graph(chat: Any) -> Any:
    """The same as coroutines, for `ainvoke`: a sync node would cost it a thread."""

    @task
    async def step(text: str, needed: dict[str, Any]) -> str:
        inputs = {name: await future for name, future in needed.items()}
        return str((await chat.ainvoke([HumanMessage(fill(text, inputs))])).text)

    async def decompose(state: State) -> State:
        return {"plan": PLAN}

    async def allocate(state: State) -> State:
        return {}

    async def execute(state: State) -> State:
        return {"outputs": {name: await future for name, future in started(step).items()}}

    async def verify(state: State) -> State:
        return {"answer": state["outputs"]["s8"]}

    return compiled(decompose, allocate, execute, verify)


def started(run: Callable[..., Any]) -> dict[str, Any]:
    """A task for each step of the plan, with the tasks it needs."""
    futures: dict[str, Any] = {}
    for subtask in parse_text(PLAN).subtasks:
        futures[subtask.id] = run(subtask.text, {n: futures[n] for n in subtask.depends_on})
    return futures


def compiled(*nodes: Callable[..., Any]) -> Any:
    builder = StateGraph(State)
    names = ("decompose", "allocate", "execute_step", "verify")
    for name, work in zip(names, nodes, strict=True):
        builder.add_node(name, work)
    for edge in pairwise((START, *names, END)):
        builder.add_edge(*edge)
    return builder.compile()


def r2_graph(chat: Any, ledger: Ledger | None = None) -> Any:
    return create_r2_graph(
        pool_of(chat),
        ledger=ledger,
        decomposer=Planned(PLAN),
        allocator=CheapestFirst(),
        verifier=FormatVerifier(),
    )


def invoke(graph: Any, runs: int) -> None:
    for _ in range(runs):
        graph.invoke({"query": "count"})


def ainvoke(graph: Any, runs: int) -> None:
    async def several() -> None:
        for _ in range(runs):
            await graph.ainvoke({"query": "count"})

    asyncio.run(several())


def cpu_ms_per_step(call: Callable[[Any, int], None], graph: Any, runs: int) -> float:
    began = process_time()
    call(graph, runs)
    return (process_time() - began) * 1_000 / (runs * len(SUBTASKS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20, help=f"of each graph, in {ROUNDS} rounds")
    runs = parser.parse_args().runs
    print(f"{runs * ROUNDS} runs of {len(SUBTASKS)} steps; CPU milliseconds a step, medians")
    print("           bare  r2graph  difference  with a ledger")
    with TemporaryDirectory() as home, Ledger(Path(home) / "ledger.sqlite") as ledger:
        for call, bare in ((invoke, bare_graph(echo())), (ainvoke, bare_async_graph(echo()))):
            graphs = bare, r2_graph(echo()), r2_graph(echo(), ledger)
            for graph in graphs:
                call(graph, runs)  # warm up
            rounds = [
                [cpu_ms_per_step(call, graph, runs) for graph in graphs] for _ in range(ROUNDS)
            ]
            plain, own, _ = (median(column) for column in zip(*rounds, strict=True))
            without, kept = (median(each[i] - each[0] for each in rounds) for i in (1, 2))
            print(f"{call.__name__:8} {plain:6.2f} {own:8.2f} {without:11.2f} {kept:14.2f}")


if __name__ == "__main__":
    main()
