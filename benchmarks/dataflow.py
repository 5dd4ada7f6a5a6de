"""How close a run comes to its critical path: 100 random plans of steps of 20 to 100 ms.

    python -m benchmarks.dataflow [--plans N] [--seed N]

A step's model waits as long as its prompt says. The critical path is the longest chain of waits: no
scheduler can be faster. A barrier between waves of steps would be slower on most of these plans.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from random import Random
from statistics import quantiles
from time import perf_counter
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult

from r2graph import Plan, create_r2_graph
from r2graph.allocate import CheapestFirst
from r2graph.plan import parse_text
from r2graph.verify import FormatVerifier
from tests.fakes import FakeChat, Planned, pool_of


class WaitingChat(FakeChat):
    """Waits for as many milliseconds as the prompt's first word says."""

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        time.sleep(wait_s(str(messages[-1].text)))
        return self._result(messages, options)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        await asyncio.sleep(wait_s(str(messages[-1].text)))
        return self._result(messages, options)


def wait_s(text: str) -> float:
    return int(text.split()[0]) / 1_000


def random_plan(rng: Random) -> str:
    """3 to 12 steps; each refers to up to three earlier ones."""
    lines = []
    for i in range(1, rng.randint(3, 12) + 1):
        needed = sorted(rng.sample(range(1, i), rng.randint(0, min(3, i - 1))))
        lines.append(f"s{i}: {rng.randint(20, 100)} " + " ".join(f"{{s{n}}}" for n in needed))
    return "\n".join(line.strip() for line in lines)


def critical_path_s(plan: Plan) -> float:
    """The longest chain of waits through the plan."""
    ends: dict[str, float] = {}
    for step in plan.subtasks:
        ends[step.id] = wait_s(step.text) + max((ends[n] for n in step.depends_on), default=0.0)
    return max(ends.values())


def invoke(graph: Any) -> None:
    graph.invoke("go")


def ainvoke(graph: Any) -> None:
    asyncio.run(graph.ainvoke("go"))


def ratio(call: Callable[[Any], None], plan: str) -> float:
    """Wall time of a run over the critical path of its plan."""
    graph = create_r2_graph(
        pool_of(WaitingChat(answer=lambda _: "done")),
        decomposer=Planned(plan),
        allocator=CheapestFirst(),
        verifier=FormatVerifier(),
    )
    began = perf_counter()
    call(graph)
    return (perf_counter() - began) / critical_path_s(parse_text(plan))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = Random(arguments.seed)
    plans = [random_plan(rng) for _ in range(arguments.plans)]
    print(f"{len(plans)} plans; wall time / critical path   p50    p90    max")
    for call in (invoke, ainvoke):
        ratio(call, plans[0])  # warm up
        ratios = [ratio(call, plan) for plan in plans]
        cuts = quantiles(ratios, n=10)
        print(f"{call.__name__:36} {cuts[4]:6.3f} {cuts[8]:6.3f} {max(ratios):6.3f}")


if __name__ == "__main__":
    main()
