"""A provider that fails as providers do, by a seeded plan, and keeps books of its own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from hashlib import sha256
from itertools import count
from random import Random
from threading import Event, Lock
from typing import Any, Literal, get_args

import httpx
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field, PrivateAttr

from r2graph.pool import ModelPool, ModelSpec
from r2graph.pricing import Price, Usage

Fault = Literal[
    "rate_limit", "server", "reset", "timeout", "malformed", "empty", "surrogate", "refused"
]
STORM: tuple[Fault, ...] = get_args(Fault)[:-1]
RETRY_AFTER_S = "0.05"
REPLY_TOKENS = 20


class Till:
    """What the provider says that it is owed; shared by its models, and by threads."""

    def __init__(self) -> None:
        self.calls = 0
        self.useful = 0
        """Replies that can be used."""
        self.delivered = Decimal(0)
        """Dollars for replies that arrived."""
        self.lost = Decimal(0)
        """Dollars for replies that were generated and did not arrive: perhaps billed."""
        self._lock = Lock()

    def ring_up(self, cost: Decimal, *, arrived: bool, useful: bool) -> None:
        with self._lock:
            self.useful += useful
            if arrived:
                self.delivered += cost
            else:
                self.lost += cost

    def count(self) -> None:
        with self._lock:
            self.calls += 1

    @property
    def owed(self) -> Decimal:
        return self.delivered + self.lost


class Provider(BaseChatModel):
    """Answers every prompt with a word made from it, unless the plan of faults says otherwise.

    It keeps no prompts, so that what a long test remembers is not its doing.
    """

    price: Price
    till: Till = Field(default_factory=Till)
    seed: int = 0
    share: float = 0.0
    """Of calls that meet a fault."""
    faults: tuple[Fault, ...] = STORM
    is_down: Callable[[], bool] = Field(default=lambda: False)
    """Whether every call fails just now."""
    delay_s: float = 0.0
    on_reply: Callable[[Decimal], None] | None = None
    """Told what each reply costs, before it is sent."""

    _numbers: Any = PrivateAttr(default_factory=count)

    @property
    def _llm_type(self) -> str:
        return "provider"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        time.sleep(self.delay_s)
        return self._answered(messages)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        await asyncio.sleep(self.delay_s)
        return self._answered(messages)

    def _answered(self, messages: list[BaseMessage]) -> ChatResult:
        self.till.count()
        fault = self._fault()
        if fault in ("rate_limit", "server"):
            raise _status_error(429 if fault == "rate_limit" else 500)
        if fault == "refused":
            raise httpx.ConnectError("SECRET")
        text = "" if fault == "empty" else word(str(messages[-1].text))
        usage = Usage(
            input_tokens=sum(len(str(message.text).split()) for message in messages),
            output_tokens=REPLY_TOKENS if text else 0,
        )
        cost = self.price.cost(usage)
        arrived = fault not in ("reset", "timeout", "malformed")
        self.till.ring_up(cost, arrived=arrived, useful=arrived and bool(text))
        if self.on_reply is not None:
            self.on_reply(cost)
        match fault:
            case "reset":
                raise httpx.ReadError("SECRET")
            case "timeout":
                raise httpx.ReadTimeout("SECRET")
            case "malformed":
                raise json.JSONDecodeError("SECRET", "", 0)
            case "surrogate":
                text += "\ud800"
        said = UsageMetadata(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.input_tokens + usage.output_tokens,
        )
        message = AIMessage(text, usage_metadata=said, response_metadata={"finish_reason": "stop"})
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _fault(self) -> Fault | None:
        if self.is_down():
            return "server"
        draw = Random(f"{self.seed} {next(self._numbers)}")
        return draw.choice(self.faults) if draw.random() < self.share else None


class SilentProvider(Provider):
    """Takes every request and never answers; lets its threads go at the end of the test."""

    over: Event = Field(default_factory=Event)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        self.till.count()
        self.over.wait()
        return self._answered(messages)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        self.till.count()
        await asyncio.Event().wait()
        raise AssertionError


class DrippingProvider(SilentProvider):
    """Sends something all the time and never ends: no time-out between bytes notices."""

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        self.till.count()
        while not self.over.wait(0.05):
            pass
        return self._answered(messages)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        self.till.count()
        while True:  # noqa: ASYNC110 - nothing ever happens
            await asyncio.sleep(0.05)


def word(prompt: str) -> str:
    """The right answer to a prompt."""
    return f"w{sha256(prompt.encode()).hexdigest()[:8]}"


def price(rank: int, dollars: str = "1") -> Price:
    """Each rank is ten times as dear as the one before; dollars are for a million tokens."""
    each = Decimal(dollars) * 10 ** (rank - 1)
    return Price(input_per_mtok=each, output_per_mtok=each)


def providers(
    members: int, kind: type[Provider] = Provider, *, dollars: str = "1", **fields: Any
) -> list[Provider]:
    """Models of one provider, cheapest first, on one till."""
    till = fields.pop("till", None) or Till()
    return [
        kind(price=price(rank, dollars), till=till, seed=rank, **fields)
        for rank in range(1, members + 1)
    ]


def pool(chats: Iterable[Provider]) -> ModelPool:
    """Members m1, m2, … at their provider's prices."""
    members = tuple(
        ModelSpec(name=f"m{rank}", model=chat, price=chat.price)
        for rank, chat in enumerate(chats, 1)
    )
    return ModelPool(name="provider", members=members, language="test")


def _status_error(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/v1/chat")
    headers = {"retry-after": RETRY_AFTER_S} if status == 429 else {}
    response = httpx.Response(status, headers=headers, request=request)
    return httpx.HTTPStatusError("SECRET", request=request, response=response)
