"""Calls of chat models: what is asked, what comes back, and the one place that asks.

Every decision of r2graph is written once, as a *flow*: a generator that yields a `ModelCall` and is
sent the `Reply`. `drive` and `adrive` run a flow against a `Door`, which knows limits, prices, time
and the bill. A flow never awaits and never calls a model, so it is the same for sync and async, and
a test runs it with a list of replies.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, replace
from decimal import Decimal
from threading import Thread
from typing import Any, Literal, NotRequired, TypeVar, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence
from langgraph.constants import TAG_NOSTREAM
from typing_extensions import TypedDict  # pydantic, for servers' schemas, wants this one

from r2graph.errors import ConfigError, LimitExceeded, ModelCallError, R2Error
from r2graph.limits import Meter
from r2graph.outcome_cache import OutcomeCache
from r2graph.pool import ModelSpec
from r2graph.pricing import Money, Usage, to_text
from r2graph.response import RESPONSE_FORMAT, Response, failure_kind, read

Role = Literal["decomposer", "allocator", "executor", "verifier"]
ROUTER_ROLES = frozenset({"decomposer", "allocator"})

# A token of any byte-level vocabulary is at least one byte long; templates add a few to a message.
MESSAGE_OVERHEAD_TOKENS = 16
# What a message of an earlier turn may carry and no model is sent.
_UNSENT = {"id", "response_metadata", "usage_metadata"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One request. What is `None` or `False` is left to the model and not sent."""

    role: Role
    spec: ModelSpec
    messages: Sequence[BaseMessage]
    step: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    """How many of the likeliest tokens to report at each place; implies `logprobs`."""
    schema: Mapping[str, Any] | None = None
    """A JSON schema with a title: the text of the reply is then JSON of that shape."""
    sample: int = 0
    """Which of several samples of a call with a temperature; an outcome cache keeps each."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `text` is trimmed and may be empty: judging that is up to a verifier."""

    text: str
    member: str
    usage: Usage
    cost: Decimal
    seconds: float = 0.0
    truncated: bool = False
    """Whether the token limit cut the text off."""
    mean_logprob: float | None = None
    """Mean log-probability of the generated tokens; `None` where the model reports none."""
    top_logprobs: Sequence[Mapping[str, float]] = ()
    """For each generated token the likeliest ones with their log-probabilities."""


class Entry(TypedDict):
    """A line of the bill: one call, as it is kept in the state."""

    role: Role
    member: str
    step: str | None
    input_tokens: int
    output_tokens: int
    cost_usd: Money
    local: bool
    ok: bool
    """Whether a reply came."""
    estimated: NotRequired[bool]
    """The provider did not say: tokens and cost are the worst case."""
    cached: NotRequired[bool]
    """The reply had been kept: no model was called, and the cost is what the call once was."""


Mark = Literal["estimated", "cached"]
Flow = Generator[ModelCall, Reply, T]


def flowing(value: Flow[T] | T) -> Flow[T]:
    """The result of a method that may be a flow or answer at once: `yield from flowing(…)`."""
    if isinstance(value, Generator):
        return (yield from value)
    return value


def ask(call: ModelCall) -> Flow[Reply]:
    """Make a call; a model that refuses an optional feature is asked again without it.

    Reasoning models refuse log-probabilities, many servers a schema; both are of use but not vital.
    """
    try:
        return (yield call)
    except ModelCallError as error:
        optional = call.logprobs or call.top_logprobs or call.schema
        if not optional or error.kind not in ("bad_request", "other"):
            raise
    return (yield replace(call, logprobs=False, top_logprobs=None, schema=None))


class Door:
    """Where models are called: within limits, in time, on the bill, with errors of our own.

    `gate`, a semaphore, bounds how many calls run at once. What `outcomes` has is not called for
    again, yet billed and limited as if it were: a run costs the same with and without a cache.
    """

    def __init__(
        self,
        meter: Meter,
        gate: AbstractContextManager[Any] | None = None,
        agate: AbstractAsyncContextManager[Any] | None = None,
        outcomes: OutcomeCache | None = None,
    ) -> None:
        self.meter = meter
        self.bill: list[Entry] = []
        self._gate = gate or nullcontext()
        self._agate = agate or nullcontext()
        self._outcomes = outcomes

    def call(self, call: ModelCall) -> Reply:
        """Make one call. Raises `ModelCallError`, `LimitExceeded`, or `ConfigError`."""
        with self._gate:
            if (known := self._recall(call)) is not None:
                return known
            request = _Request(call, self.meter)
            try:
                message = _within(request.timeout_s, request.invoke)
            except Exception as error:  # noqa: BLE001 - any provider's
                failure = self._fail(request, error)
            else:
                return self._accept(request, message)
        # Not in the handler: the provider's error, and its text, would hang on as the context.
        raise failure

    async def acall(self, call: ModelCall) -> Reply:
        """As `call`."""
        async with self._agate:
            # On the event loop, for it takes less time than to hand it to a thread.
            if (known := self._recall(call)) is not None:
                return known
            request = _Request(call, self.meter)
            try:
                async with asyncio.timeout(request.timeout_s):
                    message = await request.ainvoke()
            except Exception as error:  # noqa: BLE001
                failure = self._fail(request, error)
            else:
                return self._accept(request, message)
        raise failure

    def _recall(self, call: ModelCall) -> Reply | None:
        """The reply that such a call once had, if it was kept."""
        if self._outcomes is None or (kept := self._outcomes.get(self._key(call))) is None:
            return None
        ticket = self.meter.reserve(call.spec.price.cost(self._worst(call)))
        return self._settle(call, ticket, cast(Response, kept), "cached")

    def _accept(self, request: _Request, message: AIMessage) -> Reply:
        """Settle a call that was answered, and keep the response if its tokens were counted."""
        call, counted = request.call, message.usage_metadata is not None
        response = read(
            message, request.seconds, request.worst_usage, is_json=call.schema is not None
        )
        reply = self._settle(call, request.ticket, response, None if counted else "estimated")
        if self._outcomes is not None and counted:
            call.spec.identify()  # its files may have changed before they were loaded
            self._outcomes.put(self._key(call), response)
        return reply

    def _settle(self, call: ModelCall, ticket: int, response: Response, mark: Mark | None) -> Reply:
        usage = Usage(
            input_tokens=response["input_tokens"], output_tokens=response["output_tokens"]
        )
        cost = call.spec.price.cost(usage)
        self.meter.settle(ticket, cost)
        self._enter(call, usage, cost, ok=True, mark=mark)
        return Reply(
            text=response["text"],
            member=call.spec.name,
            usage=usage,
            cost=cost,
            seconds=response["seconds"],
            truncated=response["truncated"],
            mean_logprob=response["mean_logprob"],
            top_logprobs=response["top_logprobs"] if call.top_logprobs else (),
        )

    def _worst(self, call: ModelCall) -> Usage:
        return worst_usage(call, self.meter.limits.max_output_tokens)

    def _key(self, call: ModelCall) -> list[object]:
        """All that a reply hangs on: the model, what it is sent, and which sample it is."""
        messages = [message.model_dump(exclude=_UNSENT) for message in call.messages]
        options = _options(call, self._worst(call).output_tokens)
        schema = call.schema and dict(call.schema)
        model = [call.spec.name, call.spec.identity]
        return [RESPONSE_FORMAT, *model, messages, options, schema, call.sample]

    def _fail(self, request: _Request, error: Exception) -> Exception:
        """Enter a failed call in the books; returns the error to raise in its place."""
        if isinstance(error, ConfigError):
            self.meter.release(request.ticket)
            return error
        kind, call = failure_kind(error), request.call
        if kind == "timeout":  # it may have been answered, and billed, for all we know
            cost = request.worst_cost
            self.meter.settle(request.ticket, cost)
            self._enter(call, request.worst_usage, cost, ok=False, mark="estimated")
            if self.meter.left_s <= 0:
                return LimitExceeded("deadline")
        else:
            self.meter.release(request.ticket)
            self._enter(call, Usage(), Decimal(0), ok=False)
        return ModelCallError(call.spec.name, kind)

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


class _Request:
    """A call with its worst case reserved, ready to be sent."""

    def __init__(self, call: ModelCall, meter: Meter) -> None:
        self.call = call
        self._model = _model(call)
        self.worst_usage = worst_usage(call, meter.limits.max_output_tokens)
        self.worst_cost = call.spec.price.cost(self.worst_usage)
        self._options = _options(call, self.worst_usage.output_tokens)
        self._config = RunnableConfig(tags=[f"r2:{call.role}"], run_name=call.spec.name)
        if call.role != "executor":  # chat interfaces show the steps, not the deliberation
            self._config["tags"].append(TAG_NOSTREAM)
        self.timeout_s = min(meter.limits.call_timeout_s, meter.left_s)
        self.ticket = meter.reserve(self.worst_cost)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def invoke(self) -> AIMessage:
        message: AIMessage = self._model.invoke(self.call.messages, self._config, **self._options)
        return message

    async def ainvoke(self) -> AIMessage:
        message: AIMessage = await self._model.ainvoke(
            self.call.messages, self._config, **self._options
        )
        return message


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


def worst_usage(call: ModelCall, max_output_tokens: int) -> Usage:
    """The most tokens that a call may take."""
    sent = sum(len(message.text.encode()) + MESSAGE_OVERHEAD_TOKENS for message in call.messages)
    if call.schema:
        sent += len(json.dumps(call.schema))
    generated = min(call.max_tokens or max_output_tokens, max_output_tokens)
    if context := call.spec.context_length:
        sent = min(sent, context)
        # Servers refuse to be asked for more than is left; half is left, by any sensible count.
        generated = min(generated, max(context - sent, context // 2))
    return Usage(input_tokens=sent, output_tokens=generated)


def _model(call: ModelCall) -> Runnable[Any, Any]:
    chat = call.spec.chat
    if call.schema is None:
        return chat
    return _with_schema(chat, call)


def _with_schema(chat: BaseChatModel, call: ModelCall) -> Runnable[Any, Any]:
    """The chat model with the schema bound, and without LangChain's parser behind it."""
    try:
        structured = chat.with_structured_output(dict(call.schema or {}))
    except (NotImplementedError, TypeError, ValueError):
        raise ModelCallError(call.spec.name, "bad_request") from None
    return structured.first if isinstance(structured, RunnableSequence) else chat


def _options(call: ModelCall, max_tokens: int) -> dict[str, Any]:
    options: dict[str, Any] = {"max_tokens": max_tokens}
    if call.temperature is not None:
        options["temperature"] = call.temperature
    if call.logprobs or call.top_logprobs:
        options["logprobs"] = True
    if call.top_logprobs:
        options["top_logprobs"] = call.top_logprobs
    return options


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Run `work` and wait at most so long; raises `TimeoutError`.

    What hangs is left behind on a daemon thread, which keeps neither run nor process from ending.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            future.set_exception(error)
        else:
            future.set_result(result)

    Thread(target=copy_context().run, args=(run,), daemon=True, name="r2graph-call").start()
    return future.result(seconds)
