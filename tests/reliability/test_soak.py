"""A soak: run after run in one process, and nothing piles up.

What a step costs in CPU time is measured by `benchmarks/orchestration.py`, not here: a figure of a
busy machine proves nothing.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter
from itertools import count
from pathlib import Path
from resource import getpagesize
from time import process_time
from typing import Any

import pytest

from r2graph.breaker import WINDOW_S, Health
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.ledger import Ledger
from r2graph.verify import FormatVerifier
from tests.conftest import Figure
from tests.fakes import Planned
from tests.reliability.provider import pool, providers

SIZES = [300, pytest.param(10_000, marks=pytest.mark.slow)]
MIB = 2**20
PLAN = "s1: one\ns2: two\ns3: three {s1} {s2}"


def resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * getpagesize()


def soaking(ledger: Ledger | None = None) -> R2Graph:
    return create_r2_graph(
        pool(providers(4, share=0.02, faults=("malformed", "empty", "surrogate"))),
        decomposer=Planned(PLAN),
        verifier=FormatVerifier(),
        ledger=ledger,
    )


async def soak(graph: R2Graph, runs: int) -> tuple[Counter[str], int, float]:
    """How the runs ended, bytes that were not there after a tenth of them, and CPU seconds."""
    ends: Counter[str] = Counter()
    began, before = process_time(), 0
    for number in range(runs):
        if number == runs // 10:
            before = resident()
        result: Any = await graph.ainvoke({"query": f"query {number}"})
        ends[result["stop_reason"]] += 1
    return ends, resident() - before, process_time() - began


@pytest.mark.parametrize("kept", [False, True], ids=["no ledger", "ledger"])
@pytest.mark.parametrize("runs", SIZES)
async def test_run_after_run_needs_no_more_memory(
    runs: int, kept: bool, tmp_path: Path, figure: Figure
) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        graph = soaking(ledger if kept else None)
        threads = threading.active_count()
        ends, grown, seconds = await soak(graph, runs)
        name = f"soak, {runs} runs{' with a ledger' if kept else ''}"
        figure(f"{name}: MiB more", f"{grown / MIB:.1f} (bar 50)")
        figure(f"{name}: CPU milliseconds a run of 3 steps", f"{1_000 * seconds / runs:.2f}")
        assert ends["unverified"] == runs
        assert grown <= 50 * MIB
        assert threading.active_count() - threads <= 4  # those that write the ledger
        assert len(graph.defaults.health) == 1
        assert ledger._awaited == set()
        assert len(ledger.lines()) >= 3 * runs * kept


def test_what_is_kept_of_a_pools_health_is_bounded_by_the_window(figure: Figure) -> None:
    ticks = count()
    health = Health(("m1", "m2"), lambda: next(ticks) / 100)
    for number in range(100_000):
        leave = health.admit("m1")
        assert leave is not None
        health.fail(leave) if number % 3 == 0 else health.succeed(leave)
    kept = len(health._breakers["m1"].recent)
    figure("soak, breaker after 100,000 calls: outcomes kept", kept)
    assert kept <= WINDOW_S * 100 + 1


async def test_a_leak_would_be_seen(figure: Figure) -> None:
    """The control: an answer that is never forgotten."""
    leaked: list[bytes] = []

    class Leaking(FormatVerifier):
        def verify(self, attempt: Any, context: Any) -> Any:
            leaked.append(b"x" * 500_000)
            return super().verify(attempt, context)

    graph = create_r2_graph(pool(providers(4)), decomposer=Planned(PLAN), verifier=Leaking())
    _, grown, _ = await soak(graph, 60)
    figure("control, soak of 60 runs that leak 500 kB a step: MiB more", f"{grown / MIB:.1f}")
    assert grown > 50 * MIB
