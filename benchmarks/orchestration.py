"""What the graph itself costs: CPU per step, less that of a bare LangGraph with the same dataflow.

    python -m benchmarks.orchestration [--runs N]

Both graphs have the same four nodes, run the same plan as LangGraph tasks and call the same model,
which answers at once. They take turns in one process; the figure is the difference. What it buys:
prices, limits, deadlines, the bill, checks, escalation, typed errors, events.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any, TypedDict

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.func import task
from langgraph.graph import END, START, StateGraph

from r2graph import create_r2_graph
from r2graph.allocate import CheapestFirst
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
    """The same nodes and the same dataflow, with nothing around the calls."""

    @task
    def step(text: str, needed: dict[str, Any]) -> str:
        inputs = {name: future.result() for name, future in needed.items()}
        return str(chat.invoke([HumanMessage(fill(text, inputs))]).text)

    @task
    async def astep(text: str, needed: dict[str, Any]) -> str:
        inputs = {name: await future for name, future in needed.items()}
        return str((await chat.ainvoke([HumanMessage(fill(text, inputs))])).text)

    def started(run: Callable[..., Any]) -> dict[str, Any]:
        futures: dict[str, Any] = {}
        for subtask in parse_text(PLAN).subtasks:
            futures[subtask.id] = run(subtask.text, {n: futures[n] for n in subtask.depends_on})
        return futures

    def execute(state: State) -> State:
        futures = started(step)
        return {"outputs": {name: future.result() for name, future in futures.items()}}

    async def aexecute(state: State) -> State:
        futures = started(astep)
        return {"outputs": {name: await future for name, future in futures.items()}}

    builder = StateGraph(State)
    builder.add_node("decompose", node(lambda state: {"plan": PLAN}))
    builder.add_node("allocate", node(lambda state: {}))
    builder.add_node("execute_step", RunnableLambda(execute, afunc=aexecute))
    builder.add_node("verify", node(lambda state: {"answer": state["outputs"]["s8"]}))
    for before, after in zip(
        (START, "decompose", "allocate", "execute_step", "verify"),
        ("decompose", "allocate", "execute_step", "verify", END),
        strict=True,
    ):
        builder.add_edge(before, after)
    return builder.compile()


def node(work: Callable[[State], State]) -> RunnableLambda[State, State]:
    """A node with both bodies: a sync one alone would cost a thread in `ainvoke`."""

    async def awork(state: State) -> State:
        return work(state)

    return RunnableLambda(work, afunc=awork)


def r2_graph(chat: Any) -> Any:
    return create_r2_graph(
        pool_of(chat),
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
    bare, ours = bare_graph(echo()), r2_graph(echo())
    assert bare.invoke({"query": "count"})["answer"] == ours.invoke("count")["answer"]
    print(f"{runs * ROUNDS} runs of {len(SUBTASKS)} steps; CPU milliseconds a step, medians")
    print("           bare  r2graph  difference")
    for call in (invoke, ainvoke):
        call(ours, runs)  # warm up
        rounds = [
            (cpu_ms_per_step(call, bare, runs), cpu_ms_per_step(call, ours, runs))
            for _ in range(ROUNDS)
        ]
        columns = [median(column) for column in zip(*rounds, strict=True)]
        difference = median(own - plain for plain, own in rounds)
        print(f"{call.__name__:8} {columns[0]:6.2f} {columns[1]:8.2f} {difference:11.2f}")


if __name__ == "__main__":
    main()
