"""Outages: members that fail, that never answer, that never end; runs that are cancelled or run on.

Every run ends in time, in an answer or a typed error, and leaves nothing reserved, open or running.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Never

import pytest

from r2graph.allocate import AllocateContext, Allocator, CheapestFirst, Choice, StrongestAllocator
from r2graph.breaker import FAILURES_IN_A_ROW, REST_S, Health
from r2graph.calls import Flow, ModelCall, Role
from r2graph.decompose import DecomposeContext, Decomposer, PromptedDecomposer
from r2graph.errors import ModelCallError, PlanError, R2Error
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.ledger import Budget, Ledger, Page
from r2graph.limits import Limits
from r2graph.plan import MAX_SUBTASKS, Plan, Subtask, parse_text
from r2graph.pool import ModelPool
from r2graph.verify import (
    AgreementVerifier,
    AllOf,
    Attempt,
    CallableVerifier,
    FormatVerifier,
    JudgeVerifier,
    Verdict,
    Verifier,
    VerifyContext,
)
from tests.conftest import Figure
from tests.fakes import FakeChat, Planned, member
from tests.reliability.provider import (
    DrippingProvider,
    SilentProvider,
    pool,
    providers,
)
from tests.reliability.virtual import run

PLAN = "s1: one\ns2: two\ns3: three {s1} {s2}"
DEADLINE_S = 0.3
GRACE_S = 2.0

slow = pytest.mark.slow


# A member that fails for a while.


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class NeverResting(Health):
    """The control: breakers that never open."""

    def is_open(self, member: str) -> bool:
        return False

    def admit(self, member: str) -> Any:
        given = super().admit(member)
        self._breakers[member].in_a_row = 0
        self._breakers[member].recent.clear()
        self._breakers[member].failed = 0
        return given


def brown_out(health: Health, clock: Clock, runs: int) -> tuple[int, int, Counter[int]]:
    """Runs on the best member, which is down from 10 s to 70 s of 100; then a few when it is well.

    Returns how many were answered, how many calls met the outage, and how many in each second.
    """
    during: Counter[int] = Counter()

    def is_down() -> bool:
        if down := 10 <= clock.now < 70:
            during[int(clock.now)] += 1
        return down

    chats = providers(3)
    chats[-1].is_down = is_down
    graph = create_r2_graph(
        pool(chats),
        decomposer=Planned(PLAN),
        allocator=StrongestAllocator(),
        verifier=FormatVerifier(),
    )
    graph.defaults.health["provider"] = health
    answered = 0

    async def all_runs() -> None:
        nonlocal answered
        for number in range(runs):
            clock.now = 100 * number / runs
            answered += (await graph.ainvoke({"query": f"query {number}"}))["answer"] != ""

    run(all_runs())
    return answered, sum(during.values()), during


@pytest.mark.parametrize("runs", [50, pytest.param(200, marks=slow)])
def test_a_best_member_that_is_down_is_left_alone_and_all_runs_succeed(
    runs: int, figure: Figure
) -> None:
    clock = Clock()
    health = Health(("m1", "m2", "m3"), clock)
    answered, met, during = brown_out(health, clock, runs)
    probes = 1  # at 40 s; after it the rest is twice as long
    figure(f"brown-out, {runs} runs: answered; calls that met it", f"{answered}; {met}")
    assert answered == runs
    assert met <= FAILURES_IN_A_ROW + probes
    assert sum(number for second, number in during.items() if second > 10 + REST_S) <= probes
    assert not health.is_open("m3") or clock.now < 10 + 3 * REST_S


def test_without_a_breaker_the_best_member_is_asked_all_the_same(figure: Figure) -> None:
    clock = Clock()
    _, met, _ = brown_out(NeverResting(("m1", "m2", "m3"), clock), clock, 50)
    figure("control, brown-out without breaker: calls of 50 runs that met it", met)
    assert met > FAILURES_IN_A_ROW + 1


@pytest.mark.parametrize("fault", ["server", "rate_limit", "refused", "reset", "timeout"])
def test_when_all_members_are_down_a_run_says_so_within_two_seconds(
    fault: Any, figure: Figure
) -> None:
    waits: list[float] = []
    for seed in range(20):  # pauses are drawn
        graph = create_r2_graph(
            pool(providers(4, share=1.0, faults=(fault,))),
            decomposer=Planned(PLAN),
            verifier=FormatVerifier(),
        )

        async def one(graph: R2Graph = graph, query: str = f"query {seed}") -> None:
            with pytest.raises(ModelCallError):
                await graph.ainvoke({"query": query})

        waits.append(run(one())[1])
    figure(f"all down ({fault}): seconds waited, longest of 20", f"{max(waits):.2f} (bar 2)")
    assert max(waits) < 2


class Tireless(NeverResting):
    """The control: as many retries as anyone likes, of members that are never left alone."""

    def may_retry(self) -> bool:
        return True


def test_without_a_bound_on_retries_an_outage_takes_longer(figure: Figure) -> None:
    graph = create_r2_graph(
        pool(providers(4, share=1.0, faults=("server",))),
        decomposer=Planned(PLAN),
        verifier=FormatVerifier(),
        limits=Limits(max_retries=10, max_calls=1_000),
    )
    graph.defaults.health["provider"] = Tireless(())

    async def one() -> None:
        with pytest.raises(ModelCallError):
            await graph.ainvoke({"query": "anyone?"})

    _, waited_s = run(one())
    figure("control, all down without a bound on retries: seconds waited", f"{waited_s:.2f}")
    assert waited_s > 2


# Members that never answer, or never end.


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def nothing_is_reserved(ledger: Ledger, budget: Budget) -> None:
    """Each call is settled or in doubt, and the total is theirs."""
    lines = ledger.lines()
    assert {line.state for line in lines} <= {"reply", "failed", "in_doubt"}
    total = sum((line.usd for line in lines), Decimal(0))
    assert budget.usd - ledger.left(budget) == total


def hanging(
    kind: type[SilentProvider], ledger: Ledger, budget: Budget, deadline_s: float = DEADLINE_S
) -> tuple[R2Graph, Any]:
    chats = providers(3, kind)
    graph = create_r2_graph(
        pool(chats),
        decomposer=Planned(PLAN),
        verifier=FormatVerifier(),
        limits=Limits(deadline_s=deadline_s),
        pool_budget=budget,
        ledger=ledger,
    )
    return graph, chats


HANGING = [
    *[
        pytest.param(kind, 20, id=f"{name}-20")
        for kind, name in ((SilentProvider, "silent"), (DrippingProvider, "dripping"))
    ],
    *[
        pytest.param(kind, 200, id=f"{name}-200", marks=slow)
        for kind, name in ((SilentProvider, "silent"), (DrippingProvider, "dripping"))
    ],
]
RICH = Budget(usd=Decimal(1_000))


@pytest.mark.parametrize(("kind", "runs"), HANGING)
async def test_a_provider_that_does_not_answer_holds_no_run_up(
    kind: type[SilentProvider], runs: int, ledger: Ledger, figure: Figure
) -> None:
    graph, chats = hanging(kind, ledger, RICH)
    await graph.ainvoke({"query": "the first opens what stays open"})
    descriptors_before, threads_before = descriptors(), threading.active_count()
    late: list[float] = []

    async def one(number: int) -> None:
        began = time.monotonic()
        result = await graph.ainvoke({"query": f"query {number}"})
        late.append(time.monotonic() - began - DEADLINE_S)
        assert result["stop_reason"] == "deadline"

    for first in range(0, runs, 10):
        await asyncio.gather(*(one(number) for number in range(first, first + 10)))
    descriptors_after, threads_after = descriptors(), threading.active_count()
    name = f"{kind.__name__}, {runs} runs async"
    figure(f"{name}: seconds past the deadline", f"{max(late):.2f} (bar {GRACE_S:g})")
    figure(
        f"{name}: descriptors, threads more",
        (f"{descriptors_after - descriptors_before}, {threads_after - threads_before}"),
    )
    assert max(late) < GRACE_S
    assert abs(descriptors_after - descriptors_before) <= 5
    assert threads_after - threads_before <= 4  # those that write the ledger
    assert chats[0].till.calls > runs
    nothing_is_reserved(ledger, RICH)


@pytest.mark.parametrize(("kind", "runs"), HANGING)
def test_a_provider_that_blocks_its_thread_holds_no_run_up(
    kind: type[SilentProvider], runs: int, ledger: Ledger, figure: Figure
) -> None:
    graph, chats = hanging(kind, ledger, RICH)
    over = chats[0].over
    for chat in chats:
        chat.over = over
    descriptors_before, threads_before = descriptors(), threading.active_count()

    def one(number: int) -> float:
        began = time.monotonic()
        result = graph.invoke({"query": f"query {number}"})
        assert result["stop_reason"] == "deadline"
        return time.monotonic() - began - DEADLINE_S

    try:
        with ThreadPoolExecutor(10) as threads:
            late = list(threads.map(one, range(runs)))
        descriptors_after, threads_after = descriptors(), threading.active_count()
        hung = chats[0].till.calls
    finally:
        over.set()
    name = f"{kind.__name__}, {runs} runs sync"
    figure(f"{name}: seconds past the deadline", f"{max(late):.2f} (bar {GRACE_S:g})")
    figure(
        f"{name}: descriptors, threads more than {hung} that hang",
        (f"{descriptors_after - descriptors_before}, {threads_after - threads_before - hung}"),
    )
    assert max(late) < GRACE_S
    assert abs(descriptors_after - descriptors_before) <= 5
    assert threads_after - threads_before <= hung
    nothing_is_reserved(ledger, RICH)
    deadline = time.monotonic() + 10
    while threading.active_count() > threads_before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= threads_before


async def test_without_a_deadline_a_silent_provider_holds_a_run_up(ledger: Ledger) -> None:
    graph, _ = hanging(SilentProvider, ledger, RICH, deadline_s=60)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(DEADLINE_S + GRACE_S):
            await graph.ainvoke({"query": "anyone?"})
    nothing_is_reserved(ledger, RICH)


class Forgetful(Page):
    """The control: whoever is stopped does not say so."""

    def doubt(self, number: int) -> None:
        pass


class ForgetfulLedger(Ledger):
    def page(self, *args: Any, **options: Any) -> Page:
        page = super().page(*args, **options)
        return Forgetful(*(getattr(page, field.name) for field in fields(page)))


async def test_a_ledger_that_is_not_told_of_a_cancelled_call_has_it_reserved_for_ever(
    tmp_path: Path,
) -> None:
    with ForgetfulLedger(tmp_path / "ledger.sqlite") as ledger:
        graph, chats = hanging(SilentProvider, ledger, RICH)
        task = asyncio.ensure_future(graph.ainvoke({"query": "anyone?"}))
        async with asyncio.timeout(10):
            while not chats[0].till.calls:  # noqa: ASYNC110 - a number
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "intent" in {line.state for line in ledger.lines()}


@pytest.mark.parametrize("runs", [10, pytest.param(100, marks=slow)])
async def test_a_cancelled_run_leaves_nothing_behind(
    runs: int, ledger: Ledger, figure: Figure
) -> None:
    chats = providers(3, share=0.2, delay_s=0.02)
    graph = create_r2_graph(
        pool(chats),
        decomposer=Planned(PLAN),
        verifier=FormatVerifier(),
        pool_budget=RICH,
        ledger=ledger,
    )
    await graph.ainvoke({"query": "the first opens what stays open"})
    descriptors_before, threads_before = descriptors(), threading.active_count()
    draw = Random(1)
    cancelled = 0
    for number in range(runs):
        task = asyncio.ensure_future(graph.ainvoke({"query": f"query {number}"}))
        await asyncio.sleep(draw.uniform(0, 0.06))
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            cancelled += 1
        except R2Error:
            pass
    descriptors_after, threads_after = descriptors(), threading.active_count()
    await asyncio.sleep(0.1)
    states = Counter(line.state for line in ledger.lines())
    figure(f"cancel, {runs} runs: cancelled; ledger", f"{cancelled}; {dict(states)}")
    assert cancelled > runs / 4  # or little was tested
    assert abs(descriptors_after - descriptors_before) <= 5
    assert threads_after - threads_before <= 4
    assert len([task for task in asyncio.all_tasks() if not task.done()]) == 1
    nothing_is_reserved(ledger, RICH)


# Deciders that never have enough.


class Endless(Decomposer, Verifier, Allocator):
    """Asks a model again and again, and is never content."""

    def __init__(self, draw: Random) -> None:
        self.draw = draw

    def _asked(self, role: Role, pool: ModelPool) -> Flow[Never]:
        number = 0
        while True:
            number += 1
            spec = pool[self.draw.choice(pool.names)]
            try:
                yield ModelCall(role, spec, [], temperature=1.0, sample=number)
            except ModelCallError:
                continue

    def decompose(self, query: str, context: DecomposeContext) -> Flow[Plan]:
        return (yield from self._asked("decomposer", context.pool))

    def verify(self, attempt: Attempt, context: VerifyContext) -> Flow[Verdict]:
        return (yield from self._asked("verifier", context.pool))

    def allocate(self, steps: Sequence[Subtask], context: AllocateContext) -> Flow[list[Choice]]:
        return (yield from self._asked("allocator", context.pool))


class Circling(CheapestFirst):
    """Always knows one more member to try."""

    revises = True

    def escalate(self, member: str, context: AllocateContext) -> str:
        names = context.pool.names
        return names[context.pool.rank(member) % len(names)]


class Unending(Decomposer):
    """A new plan of twelve steps each time, valid or not."""

    def __init__(self, draw: Random, *, valid: bool) -> None:
        self.draw = draw
        self.valid = valid

    def decompose(self, query: str, context: DecomposeContext) -> Plan:
        if not self.valid:
            raise PlanError("never valid")
        lines = [f"s{i}: {self.draw.random()}" for i in range(1, MAX_SUBTASKS + 1)]
        return parse_text("\n".join(lines))


def a_no(_: Attempt) -> bool:
    return False


def twelve_steps(draw: Random) -> FakeChat:
    """A chat model that plans twelve new steps whenever it is asked."""

    def answer(_: str) -> str:
        steps = [f'{{"id": "s{i}", "text": "{draw.random()}"}}' for i in range(1, 13)]
        return f'{{"subtasks": [{", ".join(steps)}], "answer": null}}'

    return FakeChat(answer=answer)


def runaway(seed: int) -> tuple[R2Graph, list[Any]]:
    """A graph with at least one decider that has no end, and the models that count their calls."""
    draw = Random(seed)
    share = draw.choice([0.0, 0.0, 0.3])
    chats = providers(draw.choice([2, 4]), share=share)
    members = pool(chats)
    endless = Endless(draw)
    planner = twelve_steps(draw)
    planning = members.model_copy(
        update={"members": (*members.members, member("planner", planner, "100000"))}
    )
    decomposers: list[Decomposer] = [
        Unending(draw, valid=True),
        Unending(draw, valid=False),
        endless,
        Planned(PLAN),
        PromptedDecomposer(single_below=0),
    ]
    verifiers: list[Verifier] = [
        CallableVerifier(a_no),
        endless,
        AgreementVerifier(100, share=1.0),
        AllOf(JudgeVerifier(), CallableVerifier(a_no)),
        FormatVerifier("never"),
    ]
    allocators: list[Allocator] = [Circling(), endless, CheapestFirst()]
    limits = Limits(max_rounds=draw.choice([2, 1_000]), max_attempts_per_step=1_000)
    decomposer = decomposers[seed % len(decomposers)]
    graph = create_r2_graph(
        planning if isinstance(decomposer, PromptedDecomposer) else members,
        decomposer=decomposer,
        verifier=draw.choice(verifiers),
        answer_verifier=draw.choice(verifiers),
        allocator=draw.choice(allocators),
        limits=limits,
    )
    return graph, [chats[0], planner]


@pytest.mark.parametrize("scripts", [10, pytest.param(50, marks=slow)])
def test_deciders_that_run_on_make_no_more_calls_than_a_run_may(
    scripts: int, figure: Figure
) -> None:
    most, ends = 0, Counter[str]()
    for seed in range(scripts):
        graph, chats = runaway(seed)

        async def one(graph: R2Graph = graph, seed: int = seed) -> None:
            try:
                result = await graph.ainvoke({"query": f"query {seed}"})
            except R2Error as error:
                ends[type(error).__name__] += 1
            else:
                ends[str(result["stop_reason"])] += 1

        run(one())
        calls = chats[0].till.calls + len(chats[1].calls)
        most = max(most, calls)
    figure(f"runaways, {scripts} scripts: most calls", f"{most} (bar 64); {dict(ends)}")
    assert most <= 64
    assert ends["calls"] > scripts / 4
    assert sum(ends.values()) == scripts


def test_without_a_bound_on_calls_a_runaway_runs_on(figure: Figure) -> None:
    chats = providers(2)
    graph = create_r2_graph(
        pool(chats),
        decomposer=Planned(PLAN),
        verifier=CallableVerifier(a_no),
        allocator=Circling(),
        limits=Limits(max_calls=10**6, max_attempts_per_step=100),
    )
    run(graph.ainvoke({"query": "on"}))
    figure("control, runaway without a bound: calls", chats[0].till.calls)
    assert chats[0].till.calls > 64
