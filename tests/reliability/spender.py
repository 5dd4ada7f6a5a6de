"""A process that spends from a budget which it shares; started by `test_budget.py`.

    python -m tests.reliability.spender LEDGER TILL RUNS BUDGET DOLLARS_PER_MTOK SEED

TILL is a file of one number, what the provider is owed by all processes together, in micro-dollars.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from r2graph.allocate import FixedAllocator
from r2graph.errors import R2Error
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.ledger import Budget, Ledger
from r2graph.limits import Limits
from r2graph.verify import FormatVerifier
from tests.fakes import Planned
from tests.reliability.provider import REPLY_TOKENS, pool, providers

PLAN = "s1: one\ns2: two\ns3: three {s1} {s2}"
THRIFTY = Limits(max_output_tokens=REPLY_TOKENS, deadline_s=600, call_timeout_s=600)


def shared_till(path: Path) -> Callable[[Decimal], None]:
    """Adds each reply's cost to the number in the file."""

    def ring_up(cost: Decimal) -> None:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            owed = int(file.read() or 0) + int(cost.scaleb(6).to_integral_value())
            file.seek(0)
            file.truncate()
            file.write(str(owed))

    return ring_up


def graph_of(
    ledger: Ledger,
    budget: Budget,
    dollars: str,
    *,
    seed: int = 0,
    on_reply: Callable[[Decimal], None] | None = None,
) -> tuple[R2Graph, list[Decimal]]:
    """A graph that loses some replies, and what its provider is owed after each reply."""
    owed: list[Decimal] = [Decimal(0)]
    [chat] = providers(1, dollars=dollars, share=0.1, faults=("reset", "server"), delay_s=0.01)
    chat.seed = seed

    def rung_up(cost: Decimal) -> None:
        owed.append(owed[-1] + cost)
        if on_reply is not None:
            on_reply(cost)

    chat.on_reply = rung_up
    graph = create_r2_graph(
        pool([chat]),
        decomposer=Planned(PLAN),
        allocator=FixedAllocator("m1"),
        verifier=FormatVerifier(),
        limits=THRIFTY,
        pool_budget=budget,
        ledger=ledger,
    )
    return graph, owed


async def spend(graph: R2Graph, runs: int) -> Counter[str]:
    """How the runs ended."""
    ends: Counter[str] = Counter()

    async def one(number: int) -> None:
        try:
            result = await graph.ainvoke({"query": f"query {number}"})
        except R2Error as error:
            ends[type(error).__name__] += 1
        else:
            ends[str(result["stop_reason"])] += 1

    await asyncio.gather(*(one(number) for number in range(runs)))
    return ends


def main(path: str, till: str, runs: str, usd: str, dollars: str, seed: str) -> None:
    with Ledger(path) as ledger:
        graph, _ = graph_of(
            ledger,
            Budget(usd=Decimal(usd)),
            dollars,
            seed=int(seed),
            on_reply=shared_till(Path(till)),
        )
        print(dict(asyncio.run(spend(graph, int(runs)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
