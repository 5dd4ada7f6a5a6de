"""The door: what is tried again, what it costs when it fails, and that nothing stays reserved."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from r2graph.attempt import Books
from r2graph.breaker import FAILURES_IN_A_ROW, REST_S, RETRY_BURST, Health
from r2graph.calls import Flow, ModelCall, Reply
from r2graph.door import Door, adrive, drive
from r2graph.errors import LedgerError, LimitExceeded, ModelCallError
from r2graph.ledger import Budget, Ledger, Line
from r2graph.limits import Limits, Meter
from r2graph.outcome_cache import OutcomeCache
from r2graph.request import content
from r2graph.response import may_be_billed, retry_after_s
from tests.fakes import FakeChat, ProviderError, echo, member, scripted

Drive = Callable[[Flow[Any], Door], Awaitable[Any]]
WORST = 1024  # tokens, and dollars, that a call generates at most


async def in_sync(flow: Flow[Any], door: Door) -> Any:
    return drive(flow, door)


@pytest.fixture(params=[in_sync, adrive], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Drive:
    chosen: Drive = request.param
    return chosen


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def call(chat: BaseChatModel, text: str = "hello there", **fields: Any) -> ModelCall:
    spec = member("m1", chat, "1000000")  # a dollar a token
    return ModelCall("executor", spec, [HumanMessage(text)], **fields)


def once(chat: BaseChatModel, text: str = "hello there") -> Flow[Reply]:
    return (yield call(chat, text))


def door(
    *,
    budget: int | None = None,
    ledger: Ledger | None = None,
    pool_budget: Budget | None = None,
    health: Health | None = None,
    outcomes: OutcomeCache | None = None,
    agate: asyncio.Semaphore | None = None,
    gate: threading.Semaphore | None = None,
    **limits: Any,
) -> Door:
    books = None if ledger is None else Books(ledger, "run 1", budget=pool_budget)
    meter = Meter(Limits(**limits), None if budget is None else Decimal(budget))
    return Door(meter, gate, agate, outcomes=outcomes, health=health, books=books)


def held(through: Door) -> int:
    return len(through.meter._held)


def states(ledger: Ledger) -> list[str]:
    return [line.state for line in ledger.lines()]


def status_error(status: int, **headers: str) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/")
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx.Response(status, headers=names, request=request)
    return httpx.HTTPStatusError("SECRET", request=request, response=response)


class StoppedError(BaseException):
    """As `KeyboardInterrupt`: no error of the provider's, and nothing that may be held back."""


class StoppingChat(FakeChat):
    """Raises what is no `Exception`."""

    def invoke(self, *_: Any, **__: Any) -> AIMessage:
        raise StoppedError

    async def ainvoke(self, *_: Any, **__: Any) -> AIMessage:
        raise StoppedError


class Gathering(FakeChat):
    """Says when it was asked, and answers when it may."""

    asked: threading.Event = Field(default_factory=threading.Event)
    may_answer: threading.Event = Field(default_factory=threading.Event)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        self.asked.set()
        assert self.may_answer.wait(10)
        return self._result(messages, options)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        self.asked.set()
        while not self.may_answer.is_set():  # noqa: ASYNC110 - an event of threads
            await asyncio.sleep(0.005)
        return self._result(messages, options)


class SayingChat(BaseChatModel):
    """Answers with a message as it was made."""

    message: AIMessage

    @property
    def _llm_type(self) -> str:
        return "saying"

    def _generate(self, messages: Any, stop: Any = None, *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.message)])


# What is tried again.


async def test_what_was_no_fault_of_the_call_is_tried_again(run: Drive) -> None:
    chat = scripted(ProviderError(500), ProviderError(429), "yes")
    through = door()
    assert (await run(once(chat), through)).text == "yes"
    assert through.meter.calls == len(chat.calls) == len(through.bill) == 3
    assert [entry["ok"] for entry in through.bill] == [False, False, True]


@pytest.mark.parametrize("retries", [0, 1, 2])
async def test_there_are_only_so_many_further_tries(run: Drive, retries: int) -> None:
    chat = scripted(ProviderError(500))
    through = door(max_retries=retries)
    with pytest.raises(ModelCallError) as caught:
        await run(once(chat), through)
    assert caught.value.kind == "server"
    assert through.meter.calls == len(chat.calls) == retries + 1


async def test_every_try_counts_as_a_call(run: Drive) -> None:
    chat = scripted(ProviderError(500))
    with pytest.raises(LimitExceeded) as caught:
        await run(once(chat), door(max_calls=2))
    assert caught.value.limit == "calls"
    assert len(chat.calls) == 2


@pytest.mark.parametrize(
    "error",
    [
        ProviderError(400),
        ProviderError(401),
        ProviderError(404),
        ProviderError(408),
        TimeoutError(),
        httpx.ReadTimeout("SECRET"),
        json.JSONDecodeError("SECRET", "", 0),
        RuntimeError("SECRET"),
    ],
    ids=lambda error: getattr(error, "status_code", type(error).__name__),
)
async def test_what_would_fail_again_or_took_its_time_is_not(run: Drive, error: Exception) -> None:
    chat = scripted(error)
    with pytest.raises(ModelCallError):
        await run(once(chat), door())
    assert len(chat.calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("SECRET"),
        ConnectionRefusedError("SECRET"),
        httpx.ReadError("SECRET"),
        httpx.ConnectError("SECRET"),
        httpx.RemoteProtocolError("SECRET"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_lost_connection_is_tried_again(run: Drive, error: Exception) -> None:
    assert (await run(once(scripted(error, "yes")), door())).text == "yes"


async def test_the_provider_says_how_long_to_wait_in_seconds(run: Drive) -> None:
    chat = scripted(status_error(429, retry_after="0.4"), "yes")
    began = time.monotonic()
    await run(once(chat), door())
    assert 0.4 <= time.monotonic() - began < 2


async def test_the_provider_says_how_long_to_wait_as_a_date(run: Drive) -> None:
    when = datetime.now(UTC) + timedelta(seconds=2)  # a date has no fractions of a second
    chat = scripted(status_error(503, Retry_After=format_datetime(when, usegmt=True)), "yes")
    began = time.monotonic()
    await run(once(chat), door())
    assert 0.5 <= time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("-3", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("soon", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("", None),
    ],
)
def test_any_retry_after_is_read_or_let_be(value: str, seconds: float | None) -> None:
    assert retry_after_s(status_error(429, retry_after=value)) == seconds


async def test_nobody_waits_past_the_deadline_for_another_try(run: Drive) -> None:
    chat = scripted(status_error(429, retry_after="3"), "yes")
    began = time.monotonic()
    with pytest.raises(ModelCallError) as caught:
        await run(once(chat), door(deadline_s=1))
    assert caught.value.kind == "rate_limit"
    assert time.monotonic() - began < 1
    assert len(chat.calls) == 1


async def test_nobody_waits_long_while_another_member_can_be_asked(run: Drive) -> None:
    began = time.monotonic()
    through = door(health=Health(("m1", "m2")))
    with pytest.raises(ModelCallError):
        await run(once(scripted(status_error(429, retry_after="9"), "yes")), through)
    assert time.monotonic() - began < 1


async def test_a_pool_in_an_outage_is_spared_further_tries(run: Drive) -> None:
    health = Health(("m1",))
    chat = scripted(ProviderError(500))
    for _ in range(20):
        with pytest.raises(ModelCallError):
            await run(once(chat), door(health=health, max_retries=1))
    assert len(chat.calls) - 20 <= RETRY_BURST + 0.3 * len(chat.calls)


async def test_a_member_that_is_left_alone_is_not_called(run: Drive) -> None:
    health = Health(("m1", "m2"))
    chat = scripted(ProviderError(500))
    for _ in range(FAILURES_IN_A_ROW):
        with suppress(ModelCallError):
            await run(once(chat), door(health=health, max_retries=0))
    through = door(health=health)
    with pytest.raises(ModelCallError) as caught:
        await run(once(chat), through)
    assert caught.value.kind == "unavailable"
    assert (len(chat.calls), through.meter.calls, through.bill) == (FAILURES_IN_A_ROW, 0, [])


async def test_the_try_that_opens_the_breaker_is_the_last(run: Drive) -> None:
    health = Health(("m1", "m2"))
    chat = scripted(ProviderError(500))
    for _ in range(2):
        with pytest.raises(ModelCallError):
            await run(once(chat), door(health=health))
    assert len(chat.calls) == FAILURES_IN_A_ROW


async def test_a_request_that_is_refused_says_nothing_about_the_member(run: Drive) -> None:
    health = Health(("m1", "m2"))
    for _ in range(20):
        with pytest.raises(ModelCallError):
            await run(once(scripted(ProviderError(400))), door(health=health))
    assert not health.is_open("m1")


# What a failed call costs.


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class APIConnectionError(Exception):
    """What SDKs make of whatever happened to the connection."""


class InvalidError(Exception):
    """A success whose body does not read."""

    status_code = 200


BILLED = [
    ConnectionResetError(),
    BrokenPipeError(),
    TimeoutError(),
    httpx.ReadError(""),
    httpx.ReadTimeout(""),
    httpx.RemoteProtocolError(""),
    json.JSONDecodeError("", "", 0),
    caused(APIConnectionError(), httpx.ReadError("")),
    caused(APIConnectionError(), httpx.ReadTimeout("")),
    ProviderError(408),
    ProviderError(504),
    InvalidError(),
    KeyError("choices"),
]
NOT_BILLED = [
    ProviderError(429),
    ProviderError(500),
    ProviderError(401),
    ConnectionRefusedError(),
    httpx.ConnectError(""),
    httpx.ConnectTimeout(""),
    caused(APIConnectionError(), httpx.ConnectError("")),
    caused(APIConnectionError(), caused(OSError(), ConnectionRefusedError())),
]


@pytest.mark.parametrize("error", BILLED, ids=repr)
async def test_what_may_have_been_billed_counts_in_full(run: Drive, error: Exception) -> None:
    assert may_be_billed(error)
    through = door(max_retries=0)
    with pytest.raises(ModelCallError):
        await run(once(scripted(error)), through)
    assert through.meter.spent > WORST
    assert [entry["estimated"] for entry in through.bill] == [True]
    assert held(through) == 0


@pytest.mark.parametrize("error", NOT_BILLED, ids=repr)
async def test_what_the_provider_says_failed_costs_nothing(run: Drive, error: Exception) -> None:
    assert not may_be_billed(error)
    through = door(max_retries=0)
    with pytest.raises(ModelCallError):
        await run(once(scripted(error)), through)
    assert through.meter.spent == 0
    assert through.meter.calls == 1
    assert "estimated" not in through.bill[0]
    assert held(through) == 0


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("a", response_metadata={"logprobs": {"content": [{"token": "a"}]}}),
        AIMessage("a", response_metadata={"logprobs": "none"}),
        AIMessage("a", usage_metadata={"input_tokens": -5, "output_tokens": 1, "total_tokens": -4}),
        AIMessage("a", response_metadata={"cpu_s": object()}),
    ],
    ids=["half a token", "no tokens", "negative usage", "no number"],
)
async def test_a_reply_that_does_not_read_is_a_failed_call_that_was_billed(
    run: Drive, ledger: Ledger, message: AIMessage
) -> None:
    through = door(ledger=ledger)
    with pytest.raises(ModelCallError) as caught:
        await run(once(SayingChat(message=message)), through)
    assert caught.value.kind == "other"
    assert through.meter.spent > WORST
    assert (held(through), states(ledger)) == (0, ["failed"])


async def test_half_of_a_surrogate_pair_does_not_get_any_further(run: Drive) -> None:
    got = await run(once(scripted("a\ud800b \ud83d\ude00")), door())
    assert got.text == "a\ufffdb 😀"


# Whoever is stopped leaves nothing behind.


async def test_an_interrupt_settles_what_was_sent(run: Drive, ledger: Ledger) -> None:
    clock = [0.0]
    health = resting(clock)
    through = door(ledger=ledger, health=health, budget=10_000)
    with pytest.raises(StoppedError):
        await run(once(StoppingChat(answer=str)), through)
    assert held(through) == 0
    assert through.meter.spent > WORST
    assert [(entry["ok"], entry["estimated"]) for entry in through.bill] == [(False, True)]
    assert states(ledger) == ["in_doubt"]
    assert ledger.is_in_doubt(ledger.lines()[0])
    assert health.admit("m1")  # the probe was given back


def resting(clock: list[float]) -> Health:
    """Health whose m1 has rested and awaits its probe."""
    health = Health(("m1", "m2"), lambda: clock[0])
    for _ in range(FAILURES_IN_A_ROW):
        sent = health.admit("m1")
        assert sent
        health.fail(sent)
    clock[0] += REST_S
    return health


async def test_a_cancelled_call_settles_what_was_sent(ledger: Ledger) -> None:
    clock = [0.0]
    health = resting(clock)
    through = door(ledger=ledger, health=health, budget=10_000)
    chat = Gathering(answer=str)
    task = asyncio.create_task(adrive(once(chat), through))
    await asked(chat)
    assert held(through) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held(through) == 0
    assert through.meter.spent > WORST
    assert states(ledger) == ["in_doubt"]
    assert health.admit("m1")


async def asked(chat: Gathering) -> None:
    async with asyncio.timeout(10):
        while not chat.asked.is_set():  # noqa: ASYNC110 - an event of threads
            await asyncio.sleep(0.005)


async def test_a_call_cancelled_before_another_try_has_cost_nothing(ledger: Ledger) -> None:
    through = door(ledger=ledger)
    chat = scripted(status_error(429, retry_after="30"))
    task = asyncio.create_task(adrive(once(chat), through))
    async with asyncio.timeout(10):
        while not through.bill:  # noqa: ASYNC110 - a list
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (held(through), int(through.meter.spent), states(ledger)) == (0, 0, ["failed"])


@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_call_cancelled_while_the_ledger_is_written_is_not_left_as_an_intent(
    ledger: Ledger, cancels: int
) -> None:
    chat = echo()
    through = door(ledger=ledger, budget=10_000)
    with ledger._database.transaction():  # all other writers wait
        task = asyncio.create_task(adrive(once(chat), through))
        await asyncio.sleep(0.05)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0.02)
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert chat.calls == []
    assert (held(through), int(through.meter.spent), through.meter.calls) == (0, 0, 0)
    assert set(states(ledger)) <= {"failed"}


async def test_a_call_cancelled_at_the_gate_was_never_sent(ledger: Ledger) -> None:
    gate = asyncio.Semaphore(1)
    through = door(ledger=ledger, agate=gate)
    async with gate:
        task = asyncio.create_task(adrive(once(echo()), through))
        async with asyncio.timeout(10):
            while states(ledger) != ["intent"]:  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (held(through), int(through.meter.spent), states(ledger)) == (0, 0, ["failed"])


async def test_calls_that_wait_for_each_other_end_with_the_run_all_the_same() -> None:
    """With one call at a time the deadline is that of the run, not of each call in its turn."""
    through = door(agate=asyncio.Semaphore(1), deadline_s=0.3)
    began = time.monotonic()
    calls = [adrive(once(echo(delay_s=5)), through) for _ in range(20)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - began < 2
    assert {type(end) for end in ends} == {LimitExceeded}
    assert held(through) == 0
    assert len(through.bill) == 1  # the others were not sent


def test_threads_that_wait_for_each_other_end_with_the_run_all_the_same() -> None:
    through = door(gate=threading.Semaphore(1), deadline_s=0.3)
    ends: list[str] = []

    def ask() -> None:
        try:
            drive(once(echo(delay_s=5)), through)
        except LimitExceeded as limit:
            ends.append(limit.limit)

    began = time.monotonic()
    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 2
    assert ends == ["deadline"] * 10
    assert held(through) == 0


# The ledger.


async def test_what_the_ledger_has_is_neither_looked_up_nor_bought(
    run: Drive, ledger: Ledger, tmp_path: Path
) -> None:
    """Ledger, then outcome cache, then the model."""
    with OutcomeCache(tmp_path / "outcomes.sqlite") as outcomes:
        chat = scripted("from the model")
        first = door(ledger=ledger, outcomes=outcomes)
        assert (await run(once(chat), first)).text == "from the model"
        # The cache now has something else, to be told from the ledger's.
        kept = outcomes.get(first._key(call(chat)))
        assert kept is not None
        with OutcomeCache(tmp_path / "others.sqlite") as others:
            others.put(first._key(call(chat)), kept | {"text": "from the cache"})
            resumed = door(ledger=ledger, outcomes=others)
            assert (await run(once(chat), resumed)).text == "from the model"
            assert resumed.bill == first.bill
            unknown = door(ledger=None, outcomes=others)
            assert (await run(once(chat), unknown)).text == "from the cache"
            assert unknown.bill[0]["cached"]
    assert len(chat.calls) == 1


async def test_a_recorded_reply_costs_what_it_had_cost(run: Drive, ledger: Ledger) -> None:
    chat = scripted(ConnectionResetError(), ProviderError(500), "yes")
    first = door(ledger=ledger)
    got = await run(once(chat), first)
    resumed = door(ledger=ledger)
    again = await run(once(chat), resumed)
    assert (again.text, again.usage, again.cost) == (got.text, got.usage, got.cost)
    assert len(chat.calls) == 3
    assert resumed.meter.spent == first.meter.spent > WORST
    assert resumed.meter.calls == first.meter.calls == 3
    assert [entry["cost_usd"] for entry in resumed.bill] == [
        entry["cost_usd"] for entry in first.bill
    ]
    assert states(ledger) == ["failed", "failed", "reply"]


async def test_failed_tries_before_a_resume_are_on_the_bill_of_the_next(
    run: Drive, ledger: Ledger
) -> None:
    with pytest.raises(ModelCallError):
        await run(once(scripted(TimeoutError())), door(ledger=ledger))
    resumed = door(ledger=ledger)
    await run(once(scripted("yes")), resumed)
    assert [(entry["ok"], "estimated" in entry) for entry in resumed.bill] == [
        (False, True),
        (True, False),
    ]
    assert resumed.meter.calls == 2


async def test_the_same_question_asked_twice_in_a_run_is_two_calls(
    run: Drive, ledger: Ledger
) -> None:
    def twice() -> Flow[list[str]]:
        chat = scripted("one", "two", "three")
        first = yield call(chat)
        second = yield call(chat)
        return [first.text, second.text]

    for _ in range(2):
        assert await run(twice(), door(ledger=ledger)) == ["one", "two"]
    assert len(ledger.lines()) == 2


async def test_the_same_question_of_two_steps_is_two_calls(run: Drive, ledger: Ledger) -> None:
    chat = scripted("one", "two")
    for step, said in [("s1", "one"), ("s2", "two"), ("s1", "one")]:
        through = Door(Meter(Limits()), books=Books(ledger, "run 1", step=step))
        assert (await run(once(chat), through)).text == said
    assert [line.step for line in ledger.lines()] == ["s1", "s2"]


class FullDisk(Ledger):
    """Makes so many writes and no more; reads go on."""

    def __init__(self, path: Path, writes: int) -> None:
        super().__init__(path)
        self._database = _Full(self._database, writes)


class _Full:
    def __init__(self, database: Any, writes: int) -> None:
        self._database = database
        self.owner = database.owner
        self.is_gone = database.is_gone
        self.close = database.close
        self.writes = writes

    def transaction(self, *, write: bool = True) -> Any:
        if write:
            self.writes -= 1
            if self.writes < 0:
                raise LedgerError("a file", "the disk is full")
        return self._database.transaction(write=write)


async def test_nothing_is_sent_that_the_ledger_does_not_know_of(run: Drive, tmp_path: Path) -> None:
    chat = echo()
    with FullDisk(tmp_path / "ledger.sqlite", writes=0) as ledger:
        through = door(ledger=ledger, budget=10_000)
        with pytest.raises(LedgerError):
            await run(once(chat), through)
        assert chat.calls == []
        assert (held(through), int(through.meter.spent), states(ledger)) == (0, 0, [])


async def test_a_reply_that_cannot_be_recorded_is_paid_for_and_not_waited_for(
    run: Drive, tmp_path: Path
) -> None:
    with FullDisk(tmp_path / "ledger.sqlite", writes=1) as ledger:
        through = door(ledger=ledger)
        with pytest.raises(LedgerError):
            await run(once(echo()), through)
        assert (held(through), int(through.meter.spent)) == (0, 4)
        ledger._database.writes = 10**9  # type: ignore[attr-defined]
        resumed = door(ledger=ledger, deadline_s=5)
        assert (await run(once(echo()), resumed)).text == "[hello there]"
        assert states(ledger) == ["in_doubt", "reply"]
        assert resumed.meter.spent > WORST


async def test_an_interrupt_stays_one_when_the_ledger_fails_too(run: Drive, tmp_path: Path) -> None:
    with FullDisk(tmp_path / "ledger.sqlite", writes=1) as ledger:
        through = door(ledger=ledger)
        with pytest.raises(StoppedError):
            await run(once(StoppingChat(answer=str)), through)
        assert held(through) == 0


async def test_the_budget_of_all_runs_ends_a_run(run: Drive, ledger: Ledger) -> None:
    through, chat = door(ledger=ledger, pool_budget=Budget(usd=Decimal(1_100))), echo()

    def several() -> Flow[None]:
        for number in range(100):
            yield call(chat, f"number {number}")

    with pytest.raises(LimitExceeded) as caught:
        await run(several(), through)
    assert caught.value.limit == "pool_budget"
    assert held(through) == 0
    assert set(states(ledger)) == {"reply"}


async def test_of_two_who_ask_the_same_one_sends_and_both_get_the_reply(ledger: Ledger) -> None:
    chat = Gathering(answer=lambda _: "yes")
    doors = [door(ledger=ledger) for _ in range(2)]
    asking = [asyncio.create_task(adrive(once(chat), each)) for each in doors]
    await asked(chat)
    await asyncio.sleep(0.3)
    chat.may_answer.set()
    replies = await asyncio.gather(*asking)
    assert [reply.text for reply in replies] == ["yes", "yes"]
    assert len(chat.calls) == 1
    assert states(ledger) == ["reply"]
    assert [each.meter.calls for each in doors] == [1, 1]
    assert doors[0].bill == doors[1].bill


def test_of_two_threads_that_ask_the_same_one_sends_and_both_get_the_reply(
    ledger: Ledger,
) -> None:
    chat = Gathering(answer=lambda _: "yes")
    replies: list[str] = []

    def ask() -> None:
        replies.append(drive(once(chat), door(ledger=ledger)).text)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert chat.asked.wait(10)
    time.sleep(0.2)
    chat.may_answer.set()
    for thread in threads:
        thread.join()
    assert replies == ["yes", "yes"]
    assert len(chat.calls) == 1


async def test_whoever_waited_for_another_in_vain_has_all_its_own_tries(ledger: Ledger) -> None:
    failing = Gathering(answer=lambda _: ProviderError(401))
    first = asyncio.create_task(adrive(once(failing), door(ledger=ledger)))
    await asked(failing)
    chat = scripted(ProviderError(500), ProviderError(500), "yes")
    through = door(ledger=ledger)
    second = asyncio.create_task(adrive(once(chat), through))
    await asyncio.sleep(0.4)
    failing.may_answer.set()
    with pytest.raises(ModelCallError):
        await first
    assert (await second).text == "yes"
    assert [entry["ok"] for entry in through.bill] == [False, False, False, True]


async def test_whoever_waits_for_another_ends_with_its_own_run(ledger: Ledger) -> None:
    chat = Gathering(answer=lambda _: "yes")
    first = asyncio.create_task(adrive(once(chat), door(ledger=ledger)))
    await asked(chat)
    hurried = door(ledger=ledger, deadline_s=0.2)
    with pytest.raises(LimitExceeded) as caught:
        await adrive(once(chat), hurried)
    assert caught.value.limit == "deadline"
    assert (held(hurried), hurried.meter.calls) == (0, 0)
    chat.may_answer.set()
    assert (await first).text == "yes"


class BlockingChat(Gathering):
    """Knows nothing of event loops: LangChain runs it on one of the loop's few threads."""

    async def _agenerate(self, *args: Any, **options: Any) -> ChatResult:
        return await BaseChatModel._agenerate(self, *args, **options)


async def test_models_that_hang_in_threads_hold_up_no_ledger(ledger: Ledger) -> None:
    chat = BlockingChat(answer=lambda _: "late")
    hanging = [
        asyncio.create_task(adrive(once(chat, f"number {number}"), door(ledger=ledger)))
        for number in range(50)
    ]
    await asked(chat)
    await asyncio.sleep(0.2)
    async with asyncio.timeout(5):
        assert (await adrive(once(echo()), door(ledger=ledger))).text == "[hello there]"
    chat.may_answer.set()
    await asyncio.gather(*hanging)


def test_a_calls_page_is_the_same_for_the_resumed_run_and_no_other(ledger: Ledger) -> None:
    def line(**fields: Any) -> Line | None:
        request = call(echo(), **fields)
        parts = [0, request.sample, *content(request, WORST), 1]
        page = ledger.page("run 1", request.role, "m1", request.step, parts)
        return next(iter(page.lines()), None)

    drive(once(echo()), door(ledger=ledger))
    assert line()
    assert not line(step="s1")
    assert not line(sample=1)
    assert not line(temperature=0.5)
