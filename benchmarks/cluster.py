"""What a Ray cluster of two nodes changes: the time that it takes, and nothing else.

    python -m benchmarks.cluster [--parts same,lost,speed,dollar] [--queries N] [--ledger URL]

Both nodes are of this machine, with a core each; the ledger is in PostgreSQL, which is started.

same    the router answers lab queries here and on the nodes: how many outcomes differ
lost    the same with a ledger, and a node is killed when four tenths are done; then the same with a
        pool that answers after 50 ms and writes down what it was asked, so that what was sent is
        known without the ledger
speed   queries a second of that pool with one worker and with two, in turns
dollar  that pool with --max-usd 1: what was sent, in dollars
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult

from r2graph import Ledger, ModelPool
from r2graph.evaluation.outcomes import Outcome
from r2graph.evaluation.run import Evaluation, evaluate
from r2graph.evaluation.setup import Setup
from r2graph.pool import ModelSpec
from r2graph.pricing import Price
from tests.postgres import new_schema, running_server

LAB = ("scan-simple", "scan-length", "arith", "geo")
DELAY_S, CALL_USD = 0.05, Decimal("0.002")
SENT = 10  # tokens that it says a call has, fewer than the worst case
PAIRS = 3
FEW = 4  # queries at once in a worker, where both cores must have time to spare


class Slow(BaseChatModel):
    """Says one word after a while, and writes down that it was asked."""

    log: str

    @property
    def _llm_type(self) -> str:
        return "slow"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return asyncio.run(self._agenerate(messages))

    async def _agenerate(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> ChatResult:
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"{os.getpid()} {time.time()}\n".encode())
        os.close(file)
        await asyncio.sleep(DELAY_S)
        usage = UsageMetadata(input_tokens=SENT, output_tokens=1, total_tokens=SENT + 1)
        message = AIMessage("I_JUMP", usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


def slow_pool(log: Path) -> ModelPool:
    price = Price(input_per_mtok=CALL_USD * 1_000_000 / SENT, output_per_mtok=Decimal(0))
    member = ModelSpec(name="slow", model=Slow(log=str(log)), price=price)
    return ModelPool(name="slow", members=(member,), language="lab")


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster of this machine, with the caller connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(cluster.address, log_to_driver=False)
    try:
        yield cluster, nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


def run(
    setup: Setup, names: Sequence[str], on_done: Callable[[int], None] = lambda _: None, **how: Any
) -> Evaluation:
    """`on_done` is told how many queries are done."""
    done = 0

    def tick(benchmark: str, method: str) -> None:
        nonlocal done
        done += 1
        on_done(done)

    return evaluate(setup, names, tick, **how)


def said(outcome: Outcome) -> Outcome:
    """Without the time it took."""
    return replace(outcome, cpu_s=0.0)


def differing(one: Evaluation, other: Evaluation) -> int:
    pairs = zip(one.outcomes, other.outcomes, strict=True)
    return sum(said(a) != said(b) for a, b in pairs)


def lost(setup: Setup, names: Sequence[str]) -> Evaluation:
    """A node is killed when four tenths are done."""
    total = len(names) * (setup.limit or 0)
    with two_nodes() as (cluster, nodes):

        def on_done(done: int) -> None:
            if done >= 0.4 * total and len(nodes) == 2:
                cluster.remove_node(nodes.pop(), allow_graceful=False)

        found = run(setup, names, on_done, engine="ray", workers=2)
    assert len(nodes) == 1, "all was done before a node could be lost"
    return found


def bought(ledger: str) -> dict[str, int]:
    """Calls in a ledger that were answered, that were answered twice, and that are in doubt."""
    import psycopg

    with psycopg.connect(ledger) as database:
        times = database.execute(
            "SELECT count(*) FROM r2graph_calls WHERE state = 'reply' GROUP BY key"
        ).fetchall()
    with Ledger(ledger) as opened:
        doubt = sum(map(opened.is_in_doubt, opened.lines()))
    return {"answered": len(times), "again": sum(n > 1 for (n,) in times), "doubt": doubt}


def rate(setup: Setup, workers: int, log: Path) -> float:
    """Queries a second, from when the last worker began to when the first one was done."""
    log.unlink(missing_ok=True)
    run(setup, ["scan-simple"], engine="ray", workers=workers)
    calls: dict[str, list[float]] = {}
    for line in log.read_text().splitlines():
        process, at = line.split()
        calls.setdefault(process, []).append(float(at))
    assert len(calls) == workers, "a worker had nothing to do"
    begin, end = max(map(min, calls.values())), min(map(max, calls.values()))
    within = sum(begin <= at <= end for each in calls.values() for at in each)
    return within / (end - begin)


def same_part(queries: int) -> dict[str, Any]:
    setup = lab(queries)
    with two_nodes():
        there = run(setup, LAB, engine="ray", workers=2)
    return {"queries": len(there.outcomes), "differing": differing(run(setup, LAB), there)}


def lost_part(queries: int, server: str, log: Path) -> dict[str, Any]:
    ledger, setup = new_schema(server), lab(queries)
    there = lost(replace(setup, ledger=ledger), LAB)
    here = run(setup, LAB)
    found = {"queries": len(here.outcomes), "lost": len(here.outcomes) - len(there.outcomes)}
    found |= bought(ledger) | {"differing": differing(here, there)}
    found["answers_differing"] = sum(
        a.right != b.right for a, b in zip(here.outcomes, there.outcomes, strict=True)
    )
    ledger = new_schema(server)
    slow = Setup(slow_pool(log), ("single-1",), limit=queries, concurrency=8, ledger=ledger)
    done = len(lost(slow, ["scan-simple"]).outcomes)
    sent = len(log.read_text().splitlines())
    return {"lab": found, "slow": {"queries": queries, "done": done, "sent": sent} | bought(ledger)}


def speed_part(queries: int, log: Path) -> dict[str, Any]:
    setup = Setup(slow_pool(log), ("single-1",), limit=queries, concurrency=FEW)
    with two_nodes():
        pairs = [(rate(setup, 1, log), rate(setup, 2, log)) for _ in range(PAIRS)]
    one, two = (median(rates) for rates in zip(*pairs, strict=True))
    return {"one": one, "two": two, "efficiency": median(b / a / 2 for a, b in pairs)}


def dollar_part(server: str, log: Path) -> dict[str, Any]:
    ledger = new_schema(server)
    setup = Setup(slow_pool(log), ("single-1",), limit=1000, concurrency=8, max_usd=Decimal(1))
    with two_nodes():
        done = run(replace(setup, ledger=ledger), ["scan-simple"], engine="ray", workers=2)
    sent = len(log.read_text().splitlines())
    return {"sent_usd": str(sent * CALL_USD), "done": len(done.outcomes), "stopped": done.stopped}


def lab(queries: int) -> Setup:
    return Setup("lab", ("router",), "lab", limit=queries, concurrency=16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", default="same,lost,speed,dollar")
    parser.add_argument("--queries", type=int, default=500, help="of each of four benchmarks")
    parser.add_argument("--ledger", help="PostgreSQL, postgresql://…, in which schemas are made")
    given = parser.parse_args()
    with (
        nullcontext(given.ledger) if given.ledger else running_server() as server,
        TemporaryDirectory() as folder,
    ):
        log = Path(folder) / "log"
        parts = {
            "same": lambda: same_part(given.queries),
            "lost": lambda: lost_part(given.queries, server, log),
            "speed": lambda: speed_part(given.queries, log),
            "dollar": lambda: dollar_part(server, log),
        }
        for part in given.parts.split(","):
            print(json.dumps({part: parts[part]()}), flush=True)
            log.unlink(missing_ok=True)


if __name__ == "__main__":
    from benchmarks import cluster as here  # by the name under which workers find what is pickled

    here.main()
