"""Runs on behalf of clients: each through the gate, counted, and ended when its client has gone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from traceback import extract_tb
from typing import Any, cast
from uuid import uuid4

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from starlette.types import Receive

from r2graph.chat_call import is_whole
from r2graph.errors import AllocationError, LimitName, PlanError, QueryError, R2Error
from r2graph.serve.gate import Gate
from r2graph.serve.metrics import Metrics
from r2graph.serve.openai_api import tool_calls
from r2graph.serve.refusals import Refusal, beyond, refusal, unforeseen
from r2graph.serve.served import Choice
from r2graph.state import R2Output
from r2graph.whole import Bound, Whole

PULSE_S = 15.0  # proxies close connections on which nothing moves
LIMITS: frozenset[str] = frozenset({"budget", "pool_budget", "deadline", "calls"})

log = logging.getLogger("r2graph.serve")

Event = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """The last item of a run that came to one."""

    output: R2Output
    seconds: float


@dataclass(frozen=True)
class Pulse:
    """Nothing has happened for a while."""


Item = Event | Result


@dataclass(frozen=True)
class Order:
    """A run that a client wants."""

    choice: Choice
    messages: Sequence[BaseMessage]
    bound: Bound = field(default_factory=Bound)
    run_id: str = field(default_factory=lambda: str(uuid4()))


class Runs:
    """Starts runs; a server has one of these."""

    def __init__(self, gate: Gate, metrics: Metrics) -> None:
        self._gate = gate
        self._metrics = metrics

    def refused(self, code: str) -> None:
        """Count an error that a client is told within a response."""
        self._metrics.refused(code)

    def start(self, order: Order, receive: Receive) -> Running:
        """Begin a run. It ends when its client goes, which `receive` tells, or at `stop`."""
        return Running(self._items(order), receive)

    async def _items(self, order: Order) -> AsyncIterator[Item]:
        """Events as they come, then the result; raises `Refusal` if there is none."""
        name, spent, began = order.choice.name, Decimal(0), time.monotonic()
        try:
            async with self._gate.place():
                began = time.monotonic()
                output: Any = None
                async for mode, payload in self._stream(order):
                    if mode == "values":
                        output = payload
                        continue
                    if payload["event"] == "attempt":
                        spent += Decimal(payload["cost_usd"])
                    yield payload
                yield self._ended(order, output, time.monotonic() - began)
        except (asyncio.CancelledError, GeneratorExit):
            self._metrics.cancelled(name)
            self._metrics.spent(name, spent)
            log.info("run %s on %s: its client has gone", order.run_id, name)
            raise
        except R2Error as error:
            self._metrics.spent(name, error.cost_usd or "0")
            made = refusal(error)
            made.run_id = order.run_id
            # These speak of what was asked or planned, the others of the set-up alone.
            is_on_text = isinstance(error, QueryError | PlanError | AllocationError)
            told = type(error).__name__ if is_on_text else error
            level = logging.ERROR if made.status >= 500 else logging.INFO
            log.log(level, "run %s on %s: %s", order.run_id, name, told)
            raise made from None
        except Refusal:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, its text may hold a prompt
            log.error("run %s on %s: %s", order.run_id, name, where(error))
            self._metrics.spent(name, spent)
            failed = unforeseen()
            failed.run_id = order.run_id
            raise failed from None

    def _stream(self, order: Order) -> AsyncIterator[tuple[str, Any]]:
        if is_whole(order.bound, order.messages):
            return self._whole(order)
        config = cast(RunnableConfig, {"run_id": order.run_id})
        return order.choice.graph.astream(
            {"messages": list(order.messages)},
            config,
            context=order.choice.context,
            stream_mode=["custom", "values"],
        )

    async def _whole(self, order: Order) -> AsyncIterator[tuple[str, Any]]:
        """A call that is not split: what a stream of the graph would end with."""
        run = order.choice.graph.defaults.run(order.choice.context, None)
        whole = Whole(run, order.messages, order.bound, order.run_id)
        try:
            yield "values", whole.result(await whole.aask())
        except asyncio.CancelledError:
            self._metrics.spent(order.choice.name, whole.spent)
            raise

    def _ended(self, order: Order, output: R2Output, seconds: float) -> Result:
        self._metrics.ended(order.choice.name, output, seconds)
        log.info(
            "run %s on %s: %s, $%s, %.2f s",
            *(order.run_id, order.choice.name, output["stop_reason"], output["cost_usd"], seconds),
        )
        stop = output["stop_reason"]
        if not output["answer"] and not tool_calls(output) and stop in LIMITS:
            failed = beyond(cast(LimitName, stop))
            failed.cost_usd, failed.run_id = output["cost_usd"], order.run_id
            raise failed
        return Result(output, seconds)


class Running:
    """A run under way, in a task of its own."""

    def __init__(self, items: AsyncIterator[Item], receive: Receive) -> None:
        self._queue: asyncio.Queue[Item | Refusal | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._pump(items))
        self._watch = asyncio.create_task(self._cancel_without_client(receive))
        self._kept: list[Item] = []

    async def ready(self, *, once_asked: bool) -> bool:
        """Wait for the first item; whether there is one. Raises `Refusal`.

        That a model was asked is enough where it is `once_asked`; an answer may be far yet.
        """
        while (item := await self._queue.get()) is not None:
            if isinstance(item, Refusal):
                raise item
            self._kept.append(item)
            if once_asked or isinstance(item, Result) or item["event"] != "asked":
                return True
        return False

    async def next(self) -> Item | Pulse | None:
        """The next item; `None` after the last, or when the run was ended. Raises `Refusal`."""
        if self._kept:
            return self._kept.pop(0)
        try:
            async with asyncio.timeout(PULSE_S):
                item = await self._queue.get()
        except TimeoutError:
            return Pulse()
        if isinstance(item, Refusal):
            raise item
        return item

    async def items(self) -> AsyncIterator[Item | Pulse]:
        """All that is left; the run ends with the loop, however that ends."""
        try:
            while (item := await self.next()) is not None:
                yield item
        finally:
            await self.stop()

    async def stop(self) -> None:
        """End the run, and wait until it has."""
        for task in (self._watch, self._task):
            task.cancel()
        await asyncio.wait([self._watch, self._task])

    async def _pump(self, items: AsyncIterator[Item]) -> None:
        try:
            async for item in items:
                self._queue.put_nowait(item)
        except Refusal as refused:
            self._queue.put_nowait(refused)
        finally:
            self._queue.put_nowait(None)

    async def _cancel_without_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._task.cancel()


def where(error: BaseException) -> str:
    """An error's type and place, without its text."""
    frames = extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
