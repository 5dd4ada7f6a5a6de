"""The one place that calls models: within limits, in time, on the bill, with errors of our own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    closing,
    nullcontext,
    suppress,
)
from decimal import Decimal
from functools import partial
from random import uniform
from typing import Any, cast

from langchain_core.messages import AIMessage

from r2graph.attempt import Act, Acts, Attempt, Books, Failure, Send, Wait, Write, reply_of
from r2graph.breaker import Health, Pass
from r2graph.calls import Entry, Flow, Mark, ModelCall, Reply, T, worst_usage
from r2graph.errors import (
    CallErrorKind,
    ConfigError,
    LedgerError,
    LimitExceeded,
    ModelCallError,
    R2Error,
)
from r2graph.ledger import Line, Page
from r2graph.limits import Meter
from r2graph.outcome_cache import OutcomeCache
from r2graph.pricing import Usage, to_text
from r2graph.request import content
from r2graph.response import (
    RESPONSE_FORMAT,
    Response,
    failure_kind,
    may_be_billed,
    read,
    retry_after_s,
    usage_of,
)

RETRIED: frozenset[CallErrorKind] = frozenset({"rate_limit", "server"})  # no answer costs time
OF_THE_CALL: frozenset[CallErrorKind] = frozenset({"bad_request"})  # says nothing of the member
PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0  # before the first retry at most, doubled for each further one
POLL_S = 0.05


class Door:
    """Makes calls: ledger (paid for in this run), then outcome cache, then the model.

    Failed calls are tried again within `limits.max_retries` and what `health` allows. `gate`, a
    semaphore, bounds how many calls run at once. What `outcomes` has is not called for again, yet
    billed and limited as if it were: a run costs the same with and without a cache. `asked` is told
    of each call when it begins.
    """

    def __init__(
        self,
        meter: Meter,
        gate: AbstractContextManager[Any] | None = None,
        agate: AbstractAsyncContextManager[Any] | None = None,
        *,
        outcomes: OutcomeCache | None = None,
        health: Health | None = None,
        books: Books | None = None,
        asked: Callable[[ModelCall], None] = lambda _: None,
    ) -> None:
        self.meter = meter
        self.bill: list[Entry] = []
        self._gate = gate or nullcontext()
        self._agate = agate or nullcontext()
        self._outcomes = outcomes
        self._health = health or Health(())
        self._books = books
        self._asked = asked
        self._limits = meter.limits
        self._made: dict[str, int] = {}

    def call(self, call: ModelCall) -> Reply:
        """Make one call. Raises `ModelCallError`, `LimitExceeded`, `ConfigError`, `LedgerError`."""
        with closing(self._answered(call)) as acts:
            done = None
            while True:
                try:
                    act = acts.send(done)
                except StopIteration as end:
                    return cast(Reply, end.value)
                done = self._do(act)

    async def acall(self, call: ModelCall) -> Reply:
        """As `call`."""
        with closing(self._answered(call)) as acts:
            done = None
            while True:
                try:
                    act = acts.send(done)
                except StopIteration as end:
                    return cast(Reply, end.value)
                done = await self._ado(act)

    def _do(self, act: Act) -> Any:
        match act:
            case Wait(seconds):
                time.sleep(seconds)
                return None
            case Write(work):
                return work()
            case Send(attempt):
                with self._gate:
                    timeout_s = self._sending(attempt)
                    try:
                        return attempt.request.invoke(timeout_s)
                    except Exception as error:  # noqa: BLE001 - any provider's
                        return error

    async def _ado(self, act: Act) -> Any:
        match act:
            case Wait(seconds):
                return await asyncio.sleep(seconds)
            case Write(work):
                return await self._written(work)
            case Send(attempt):
                async with self._agate:
                    timeout_s = self._sending(attempt)
                    try:
                        return await attempt.request.ainvoke(timeout_s)
                    except Exception as error:  # noqa: BLE001
                        return error

    async def _written(self, work: Callable[[], Any]) -> Any:
        """The result of work on the ledger, done on a thread.

        Whoever is cancelled meanwhile, however often, waits: what was begun has to be known to be
        undone.
        """
        writers = cast(Books, self._books).ledger.writers
        writing = asyncio.get_running_loop().run_in_executor(writers, work)
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            while not writing.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([writing])
            writing.exception()  # or asyncio complains that nobody has looked at it
            raise

    def _sending(self, attempt: Attempt) -> float:
        """From here on the call may be billed. Returns for how long it may take."""
        if (left_s := self.meter.left_s) <= 0:  # it waited at the gate
            raise LimitExceeded("deadline")
        attempt.is_sent = True
        return min(self._limits.call_timeout_s, left_s)

    def _answered(self, call: ModelCall) -> Acts[Reply]:
        """The one retry loop."""
        self._asked(call)
        page = self._page(call)
        billed: set[int] = set()  # tries of this call
        failures, was_recalled = 0, False
        while True:
            if page is not None and (found := (yield from self._found(call, page, billed))):
                return found
            if not was_recalled and (known := self._recall(call)) is not None:
                return known
            was_recalled = True  # once is enough: whatever comes into the cache now is ours
            outcome = yield from self._tried(Attempt(call, self._limits, page), billed)
            if isinstance(outcome, Reply):
                return outcome
            if outcome is None:  # another process has sent it
                yield Wait(POLL_S)
                continue
            failures += 1
            pause = self._pause(call, outcome, failures)
            if pause is None:
                raise ModelCallError(call.spec.name, outcome.kind)
            yield Wait(pause)

    def _found(self, call: ModelCall, page: Page, billed: set[int]) -> Acts[Reply | None]:
        """The reply that this run has paid for already."""
        lines: list[Line] = yield Write(page.lines)
        # Not always the last: of two processes that bought it, the first may have been slower.
        at = next((at for at, line in enumerate(lines) if line.reply is not None), None)
        if at is None:
            return None
        billed.add(at + 1)
        self._catch_up(call, lines, billed)
        response, cost = cast(Response, lines[at].reply), lines[at].usd
        self.meter.charge(cost, 1)
        usage = usage_of(response)
        self._enter(call, usage, cost, ok=True)
        return reply_of(call, response, usage, cost)

    def _recall(self, call: ModelCall) -> Reply | None:
        """The reply that such a call once had, if it was kept."""
        if self._outcomes is None or (kept := self._outcomes.get(self._key(call))) is None:
            return None
        response = cast(Response, kept)
        usage = usage_of(response)
        cost = call.spec.price.cost(usage)
        ticket = self.meter.reserve(
            call.spec.price.cost(worst_usage(call, self._limits.max_output_tokens))
        )
        self.meter.settle(ticket, cost)
        self._enter(call, usage, cost, ok=True, mark="cached")
        return reply_of(call, response, usage, cost)

    def _tried(self, attempt: Attempt, billed: set[int]) -> Acts[Reply | Failure | None]:
        """Send the call once; `None` if another process has."""
        call = attempt.call
        yield from self._share()
        attempt.leave = self._health.admit(call.spec.name)
        if attempt.leave is None:
            return Failure("unavailable")
        try:
            attempt.ticket = self.meter.reserve(attempt.request.worst_cost)
            if attempt.page is not None:
                if not (yield Write(attempt.intend)):
                    return None
                self._catch_up(call, attempt.earlier, billed)
                billed.add(attempt.number)
            answer = yield Send(attempt)
            attempt.is_settled = True
        finally:
            if not attempt.is_settled:
                self._abandon(attempt)
        if isinstance(answer, Exception):
            return (yield from self._failed(attempt, answer))
        try:
            response = self._read(attempt, answer)
        except Exception as error:  # noqa: BLE001 - a message may hold anything
            return (yield from self._failed(attempt, error))
        return (yield from self._accepted(attempt, response, answer.usage_metadata is not None))

    def _share(self) -> Acts[None]:
        """Exchange with other processes which members rest, if that is due."""
        if self._books is not None and self._health.is_due():
            yield Write(partial(self._books.ledger.share, self._health))

    def _abandon(self, attempt: Attempt) -> None:
        """Give back what a call holds that was not sent, or whose answer nobody waits for.

        Not a step of the generator: it may be closing.
        """
        request = attempt.request
        self._health.withdraw(cast(Pass, attempt.leave))
        if attempt.is_sent:  # it may be answered, and billed, for all we know
            usage, cost = request.lost_usage, request.lost_cost
            self._settle(attempt, usage, cost, ok=False, estimated=request.is_billed)
        elif attempt.ticket is not None:
            self.meter.withdraw(attempt.ticket)
        if attempt.page is not None and attempt.number:
            with suppress(LedgerError):  # something else is being raised, and goes first
                if attempt.is_sent and request.is_billed:
                    attempt.page.doubt(attempt.number)
                else:
                    kind = "interrupted" if attempt.is_sent else "not sent"
                    attempt.page.fail(attempt.number, Decimal(0), kind)

    def _read(self, attempt: Attempt, message: AIMessage) -> Response:
        request, is_json = attempt.request, attempt.call.schema is not None
        response = read(message, request.seconds, request.worst_usage, is_json=is_json)
        usage_of(response)  # numbers that make no sense are refused here
        json.dumps(response)  # and what is not plain
        return response

    def _accepted(self, attempt: Attempt, response: Response, counted: bool) -> Acts[Reply]:
        """Settle a call that was answered, and keep the response."""
        call, usage = attempt.call, usage_of(response)
        cost = call.spec.price.cost(usage)
        self._health.succeed(cast(Pass, attempt.leave))
        self._settle(attempt, usage, cost, ok=True, estimated=not counted)
        if attempt.page is not None:
            yield Write(partial(attempt.page.reply, attempt.number, cost, response))
            yield from self._share()
        if self._outcomes is not None and counted:
            call.spec.identify()  # its files may have changed before they were loaded
            self._outcomes.put(self._key(call), response)
        return reply_of(call, response, usage, cost)

    def _failed(self, attempt: Attempt, error: Exception) -> Acts[Failure]:
        """Enter a failed call in the books. Raises the error if it is one of the set-up."""
        request = attempt.request
        kind = failure_kind(error)
        cost = request.lost_cost if may_be_billed(error) else Decimal(0)
        usage = request.lost_usage if cost else Usage()
        if kind in OF_THE_CALL or isinstance(error, ConfigError):
            self._health.withdraw(cast(Pass, attempt.leave))
        else:
            self._health.fail(cast(Pass, attempt.leave))
        if isinstance(error, ConfigError):
            self.meter.release(attempt.ticket or 0)
        else:
            self._settle(attempt, usage, cost, ok=False, estimated=cost > 0)
        if attempt.page is not None:
            yield Write(partial(attempt.page.fail, attempt.number, cost, kind))
            yield from self._share()
        if isinstance(error, ConfigError):
            raise error
        if kind == "timeout" and self.meter.left_s <= 0:
            raise LimitExceeded("deadline")
        return Failure(kind, retry_after_s(error))

    def _pause(self, call: ModelCall, failure: Failure, failures: int) -> float | None:
        """How long to wait before the call is tried again; `None` if it is not."""
        name = call.spec.name
        if failure.kind not in RETRIED or failures > self._limits.max_retries:
            return None
        pause = uniform(0, min(LONGEST_PAUSE_S, PAUSE_S * 2 ** (failures - 1)))
        if failure.retry_after_s is not None:  # all who were sent away should not be back at once
            pause = failure.retry_after_s + pause / 10
        longest = LONGEST_PAUSE_S if self._health.has_other(name) else self.meter.left_s
        if pause >= min(longest, self.meter.left_s) or self._health.is_open(name):
            return None
        return pause if self._health.may_retry() else None

    def _catch_up(self, call: ModelCall, lines: Sequence[Line], billed: set[int]) -> None:
        """Put tries on the bill that were made before the run was resumed, or elsewhere."""
        for number, line in enumerate(lines, start=1):
            if number not in billed:
                billed.add(number)
                self.meter.charge(line.usd, 1)
                self._enter(
                    call, Usage(), line.usd, ok=False, mark="estimated" if line.usd else None
                )

    def _settle(
        self, attempt: Attempt, usage: Usage, cost: Decimal, *, ok: bool, estimated: bool = True
    ) -> None:
        self.meter.settle(cast(int, attempt.ticket), cost)
        self._enter(attempt.call, usage, cost, ok=ok, mark="estimated" if estimated else None)

    def _enter(
        self, call: ModelCall, usage: Usage, cost: Decimal, *, ok: bool, mark: Mark | None = None
    ) -> None:
        entry = Entry(
            role=call.role,
            member=call.spec.name,
            step=call.step,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=to_text(cost),
            local=call.spec.is_local,
            ok=ok,
        )
        if mark is not None:
            entry[mark] = True
        self.bill.append(entry)

    def _key(self, call: ModelCall) -> list[object]:
        """The outcome cache's key: all that a reply hangs on."""
        model = [call.spec.name, call.spec.identity]
        return [
            RESPONSE_FORMAT,
            *model,
            *content(call, self._limits.max_output_tokens),
            call.sample,
        ]

    def _page(self, call: ModelCall) -> Page | None:
        """Where the call stands in the ledger, if there is one."""
        if self._books is None:
            return None
        books = self._books
        request = [books.round, call.sample, *content(call, self._limits.max_output_tokens)]
        names = call.role, call.spec.name, call.step or books.step
        alike = json.dumps([*names, request], default=repr)
        self._made[alike] = self._made.get(alike, 0) + 1  # a retry of ours is a try of one page
        request.append(self._made[alike])
        return books.ledger.page(books.run, *names, request, books.budget)


def drive(flow: Flow[T], door: Door) -> T:
    """Run a flow to its result; errors of a call are raised inside the flow."""
    try:
        call = next(flow)
        while True:
            try:
                reply = door.call(call)
            except R2Error as error:
                call = flow.throw(error)
            else:
                call = flow.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result


async def adrive(flow: Flow[T], door: Door) -> T:
    """As `drive`."""
    try:
        call = next(flow)
        while True:
            try:
                reply = await door.acall(call)
            except R2Error as error:
                call = flow.throw(error)
            else:
                call = flow.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
