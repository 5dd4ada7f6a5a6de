"""A storm: a fifth of all calls meet a fault, many runs at once, and nearly all are answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from r2graph.errors import R2Error
from r2graph.graph import create_r2_graph
from r2graph.ledger import Ledger, Line
from r2graph.limits import Limits
from r2graph.verify import FormatVerifier
from tests.conftest import Figure
from tests.fakes import Planned
from tests.reliability.provider import Till, pool, providers

SIZES = [60, pytest.param(1_000, marks=pytest.mark.slow)]
PLAN = """\
s1: one
s2: two
s3: three {s1}
s4: four {s1} {s2}
s5: five
s6: six {s3} {s4}
s7: seven {s5}
s8: eight {s6} {s7}"""
SHARE = 0.2
PATIENT = Limits(deadline_s=600, call_timeout_s=600)  # a busy machine is no fault of the storm's


@dataclass
class Weather:
    """What became of a storm."""

    ends: Counter[str]
    answers: int
    bill: Decimal
    till: Till
    lines: list[Line]
    seconds: float

    @property
    def calls_per_useful_call(self) -> float:
        return self.till.calls / self.till.useful


async def storm(runs: int, limits: Limits = PATIENT) -> Weather:
    chats = providers(4, share=SHARE, delay_s=0.01)
    with Ledger(":memory:") as ledger:
        graph = create_r2_graph(
            pool(chats),
            decomposer=Planned(PLAN),
            verifier=FormatVerifier(),
            limits=limits,
            ledger=ledger,
        )
        ends: Counter[str] = Counter()
        answers = 0
        bill = Decimal(0)

        async def one(number: int) -> None:
            nonlocal answers, bill
            try:
                result: Any = await graph.ainvoke({"query": f"query {number}"})
            except R2Error as error:
                bill += Decimal(error.cost_usd or "nan")
                ends[type(error).__name__] += 1
            else:
                bill += Decimal(result["cost_usd"])
                ends[result["stop_reason"]] += 1
                answers += bool(result["answer"]) and result["stop_reason"] == "unverified"

        began = time.monotonic()
        await asyncio.gather(*(one(number) for number in range(runs)))
        seconds = time.monotonic() - began
        return Weather(ends, answers, bill, chats[0].till, ledger.lines(), seconds)


@pytest.mark.parametrize("runs", SIZES)
async def test_a_storm_leaves_answers_few_wasted_calls_and_an_exact_bill(
    runs: int, figure: Figure
) -> None:
    got = await storm(runs)
    name, till = f"storm of {runs} runs", got.till
    replies = [line for line in got.lines if line.state == "reply"]
    delivered = sum((line.usd for line in replies), Decimal(0))
    figure(f"{name}: answers", f"{got.answers} (bar {runs * 995 // 1_000}); {dict(got.ends)}")
    figure(f"{name}: calls per useful one", f"{got.calls_per_useful_call:.3f} (bar 1.30)")
    figure(f"{name}: our bill for replies less the meter's", f"${delivered - till.delivered}")
    figure(f"{name}: provider's whole meter; bill", f"${till.owed}; ${got.bill}")
    figure(f"{name}: seconds on {till.calls} calls", f"{got.seconds:.1f} (bar 90 for 1,000 runs)")
    assert sum(got.ends.values()) == runs
    assert got.answers >= runs * 0.995
    assert got.calls_per_useful_call <= 1.30
    assert abs(delivered - till.delivered) <= Decimal("0.000001")
    assert got.bill == sum((line.usd for line in got.lines), Decimal(0))
    assert till.owed <= got.bill
    assert {line.state for line in got.lines} == {"reply", "failed"}


async def test_without_further_tries_and_other_members_the_storm_wins(figure: Figure) -> None:
    runs = 60
    unprotected = PATIENT.model_copy(update={"max_retries": 0, "max_attempts_per_step": 1})
    got = await storm(runs, unprotected)
    figure(f"control, storm without retries or escalation: answers of {runs}", got.answers)
    assert got.answers < runs * 0.995
