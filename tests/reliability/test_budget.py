"""Budgets: whatever runs at the same time, the provider is never owed more than the cap.

What a provider is owed only grows, so what it is owed in the end is the most it ever was. A price
that is not known is refused in `tests/test_pool.py`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from r2graph.allocate import FixedAllocator
from r2graph.attempt import Books
from r2graph.calls import Flow, ModelCall, Reply
from r2graph.door import Door, adrive
from r2graph.errors import LimitExceeded, ModelCallError
from r2graph.graph import create_r2_graph
from r2graph.ledger import Budget, Ledger, Page
from r2graph.limits import Limits, Meter
from r2graph.verify import FormatVerifier
from tests.conftest import Figure
from tests.fakes import Planned
from tests.reliability.provider import REPLY_TOKENS, Provider, pool, providers
from tests.reliability.spender import THRIFTY, graph_of, spend

ROOT = Path(__file__).parents[2]
CAP = Decimal("1.00")
ENOUGH_TO_PASS = 3  # times the cap is what all runs would cost

slow = pytest.mark.slow


def once(chat: Provider, text: str) -> Flow[Reply]:
    return (yield ModelCall("executor", pool([chat])[0], [HumanMessage(text)]))


def dollars(runs: int) -> str:
    """A price per million tokens at which so many runs would cost several times the cap."""
    calls, tokens = 3 * runs, 22
    return str(ENOUGH_TO_PASS * CAP * 1_000_000 / (calls * tokens))


class Unreserved(Page):
    """The control: what a call may cost is looked at when it has cost it."""

    def intend(self, worst: Decimal) -> Any:
        return super().intend(Decimal(0))


class AfterTheFact(Ledger):
    def page(self, *args: Any, **options: Any) -> Page:
        page = super().page(*args, **options)
        return Unreserved(*(getattr(page, field.name) for field in fields(page)))


@pytest.mark.parametrize("runs", [40, pytest.param(500, marks=slow)])
async def test_many_runs_together_do_not_pass_the_cap(
    runs: int, tmp_path: Path, figure: Figure
) -> None:
    budget = Budget(usd=CAP)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        graph, owed = graph_of(ledger, budget, dollars(runs))
        ends = await spend(graph, runs)
        left = ledger.left(budget)
        total = sum((line.usd for line in ledger.lines()), Decimal(0))
    figure(f"cap $1.00, {runs} runs: provider's meter at most", f"${owed[-1]:.6f}; {dict(ends)}")
    assert owed[-1] <= CAP - left <= CAP
    assert owed[-1] > CAP / 2  # it was of use
    assert ends["pool_budget"] > 0
    assert abs(total - (CAP - left)) <= Decimal("0.000001")


async def test_a_cap_that_is_looked_at_after_the_fact_is_passed(
    tmp_path: Path, figure: Figure
) -> None:
    with AfterTheFact(tmp_path / "ledger.sqlite") as ledger:
        graph, owed = graph_of(ledger, Budget(usd=CAP), dollars(40))
        await spend(graph, 40)
    figure("control, cap $1.00 without reservation: provider's meter at most", f"${owed[-1]:.6f}")
    assert owed[-1] > CAP


@pytest.mark.parametrize(("processes", "runs"), [(3, 15), pytest.param(20, 25, marks=slow)])
def test_processes_that_share_a_ledger_do_not_pass_the_cap(
    processes: int, runs: int, tmp_path: Path, figure: Figure
) -> None:
    ledger, till = tmp_path / "ledger.sqlite", tmp_path / "till"
    till.write_text("0")
    price = dollars(processes * runs)
    command = [sys.executable, "-m", "tests.reliability.spender", str(ledger), str(till)]
    started = [
        subprocess.Popen(
            [*command, str(runs), str(CAP), price, str(seed)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(processes)
    ]
    ended = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0] * processes, ended
    owed = Decimal(till.read_text()).scaleb(-6)
    with Ledger(ledger) as opened:
        left = opened.left(Budget(usd=CAP))
        states = {line.state for line in opened.lines()}
    figure(f"cap $1.00, {processes} processes: provider's meter at most", f"${owed:.6f}")
    assert owed <= CAP - left + Decimal("0.001")  # the till counts whole micro-dollars
    assert CAP / 2 < owed <= CAP
    assert states == {"reply", "failed"}
    assert any("pool_budget" in said for said, _ in ended)
    assert not list(tmp_path.glob("ledger.sqlite-*[0-9a-f]"))  # nobody is left


@pytest.mark.parametrize("runs", [20, pytest.param(200, marks=slow)])
async def test_no_run_passes_its_own_budget(runs: int, figure: Figure) -> None:
    cap, most = Decimal("0.01"), Decimal(0)
    plan = "\n".join(f"s{number}: step {number}" for number in range(1, 13))
    for number in range(runs):  # each on a provider of its own, twelve calls at once
        [chat] = providers(1, dollars="30", share=0.2, faults=("reset", "server"))
        chat.seed = number
        graph = create_r2_graph(
            pool([chat]),
            decomposer=Planned(plan),
            allocator=FixedAllocator("m1"),
            verifier=FormatVerifier(),
            limits=THRIFTY.model_copy(update={"max_retries": 0}),
            budget_usd=cap,
        )
        with suppress(ModelCallError):
            result: Any = await graph.ainvoke({"query": f"query {number}"})
            assert Decimal(result["cost_usd"]) <= cap
        most = max(most, chat.till.owed)
    figure(f"cap $0.01 a run, {runs} runs: provider's meter at most", f"${most}")
    assert cap / 4 < most <= cap


class AfterTheFactMeter(Meter):
    """The control."""

    def reserve(self, worst_case: Decimal) -> int:
        if self.budget is not None and self.spent >= self.budget:
            raise LimitExceeded("budget")
        return super().reserve(Decimal(0))


@pytest.mark.parametrize("meter", [Meter, AfterTheFactMeter])
async def test_only_what_is_reserved_before_keeps_to_a_runs_budget(
    meter: type[Meter], figure: Figure
) -> None:
    cap = Decimal("0.01")
    [chat] = providers(1, dollars="100", delay_s=0.01)
    through = Door(meter(Limits(max_output_tokens=REPLY_TOKENS), cap))
    calls = [adrive(once(chat, f"number {number}"), through) for number in range(60)]
    await asyncio.gather(*calls, return_exceptions=True)
    if meter is Meter:
        assert chat.till.owed <= cap
    else:
        figure(
            "control, cap $0.01 a run without reservation: provider's meter", f"${chat.till.owed}"
        )
        assert chat.till.owed > cap


class Rolling(Budget):
    """A budget whose calendar the test turns."""

    def period_at(self, when: float) -> str:
        return TODAY[0]


TODAY = ["2026-11-24"]


async def test_a_new_period_has_a_budget_of_its_own(tmp_path: Path) -> None:
    budget = Rolling(usd=Decimal("0.02"), period="day")
    [chat] = providers(1, dollars="100")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:

        async def spend_all(run: str) -> Decimal:
            through = Door(
                Meter(Limits(max_output_tokens=REPLY_TOKENS)),
                books=Books(ledger, run, budget=budget),
            )
            before = chat.till.owed
            with pytest.raises(LimitExceeded, match="pool_budget"):
                await asyncio.wait_for(_endlessly(through, chat), 60)
            return chat.till.owed - before

        first = await spend_all("run 1")
        assert budget.usd / 2 < first <= budget.usd
        assert await spend_all("run 2") == 0
        TODAY[0] = "2026-11-25"
        assert ledger.left(budget) == budget.usd
        assert await spend_all("run 3") == first
        TODAY[0] = "2026-11-24"
        assert ledger.left(budget) == budget.usd - first


async def _endlessly(through: Door, chat: Provider) -> None:
    for number in range(10**6):
        await adrive(once(chat, f"number {number}"), through)


async def test_what_is_settled_after_midnight_counts_to_the_day_it_was_reserved_in(
    tmp_path: Path,
) -> None:
    budget = Rolling(usd=Decimal("0.02"), period="day")
    TODAY[0] = "2026-12-31"
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        page = ledger.page("run", "executor", "m1", None, "a request", budget)
        page.intend(Decimal("0.02"))
        TODAY[0] = "2027-01-01"
        page.reply(1, Decimal("0.01"), {})
        assert ledger.left(budget) == Decimal("0.02")
        TODAY[0] = "2026-12-31"
        assert ledger.left(budget) == Decimal("0.01")


@pytest.mark.parametrize(
    ("period", "name"),
    [(None, ""), ("hour", "2026-11-25T23"), ("day", "2026-11-25"), ("month", "2026-11")],
)
def test_periods_are_those_of_the_calendar_in_utc(period: Any, name: str) -> None:
    budget = Budget(usd=CAP, period=period)
    last_second = 1_795_651_199.0  # 2026-11-25T23:59:59Z
    assert budget.period_at(last_second) == name
    assert (budget.period_at(last_second + 1) == name) is (period in (None, "month"))
