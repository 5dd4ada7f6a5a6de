"""Fake models: they answer as they are told, at once and without a network."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import Field

from r2graph.allocate import CheckpointAllocator
from r2graph.calls import Flow, ModelCall, Reply
from r2graph.decompose import CheckpointDecomposer, DecomposeContext, Decomposer
from r2graph.errors import R2Error
from r2graph.plan import Plan, parse_text
from r2graph.pool import ModelPool, ModelSpec
from r2graph.pricing import Price, Usage
from r2graph.router import Prices, Router, RouterCard
from r2graph.verify import FormatVerifier

T = TypeVar("T")


class ProviderError(Exception):
    """What a provider's SDK raises, with text that must not leak."""

    def __init__(self, status_code: int) -> None:
        super().__init__("SECRET-PROVIDER-BODY")
        self.status_code = status_code


class FakeChat(BaseChatModel):
    """Answers from a function of the last message's text; an exception that it returns is raised.

    One token is one word. `calls` holds the text of each request and the options it came with.
    """

    answer: Callable[[str], str | Exception]
    logprob: float | None = None
    """Of every token; `None`: the model reports none."""
    top_logprobs: list[dict[str, float]] = Field(default_factory=list)
    counts_tokens: bool = True
    delay_s: float = 0.0
    finish_reason: str = "stop"
    refuses: frozenset[str] = frozenset()
    """Options with which a request is refused, as reasoning models refuse `logprobs`."""
    speaks_json: bool = False
    """Whether `with_structured_output` is there."""
    calls: list[tuple[str, dict[str, Any]]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "fake"

    @property
    def prompts(self) -> list[str]:
        return [text for text, _ in self.calls]

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        time.sleep(self.delay_s)
        return self._result(messages, options)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        await asyncio.sleep(self.delay_s)
        return self._result(messages, options)

    def _result(self, messages: list[BaseMessage], options: dict[str, Any]) -> ChatResult:
        text = str(messages[-1].text)
        self.calls.append((text, options))
        if self.refuses & options.keys():
            raise ProviderError(400)
        answer = self.answer(text)
        if isinstance(answer, Exception):
            raise answer
        metadata: dict[str, Any] = {"model_name": "fake", "finish_reason": self.finish_reason}
        words = answer.split()
        if self.logprob is not None and options.get("logprobs"):
            metadata["logprobs"] = {"content": [self._token(i, w) for i, w in enumerate(words)]}
        message = AIMessage(answer, response_metadata=metadata)
        if self.counts_tokens:
            sent = sum(len(str(m.text).split()) for m in messages)
            message.usage_metadata = UsageMetadata(
                input_tokens=sent, output_tokens=len(words), total_tokens=sent + len(words)
            )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _token(self, at: int, word: str) -> dict[str, Any]:
        tops = self.top_logprobs[at] if at < len(self.top_logprobs) else {}
        shown = [{"token": token, "logprob": value} for token, value in tops.items()]
        return {"token": word, "logprob": self.logprob, "top_logprobs": shown}

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Runnable[Any, Any]:
        if not self.speaks_json:
            raise NotImplementedError
        return self.bind(response_format=schema) | RunnableLambda(lambda message: message)


def scripted(*replies: str | Exception, **options: Any) -> FakeChat:
    """A model that gives these replies one after the other, and the last one from then on."""
    left = list(replies)
    return FakeChat(answer=lambda _: left.pop(0) if len(left) > 1 else left[0], **options)


def answering(replies: Mapping[str, str | Exception], **options: Any) -> FakeChat:
    """A model that knows some prompts by heart and says `?` to all others."""
    return FakeChat(answer=lambda text: replies.get(text, "?"), **options)


def echo(**options: Any) -> FakeChat:
    """A model that says what it is asked, in brackets."""
    return FakeChat(answer=lambda text: f"[{text}]", **options)


def member(name: str, chat: BaseChatModel, dollars: str = "1", **fields: Any) -> ModelSpec:
    """A member at some dollars per million tokens, in and out."""
    price = Price(input_per_mtok=Decimal(dollars), output_per_mtok=Decimal(dollars))
    return ModelSpec(name=name, model=chat, price=price, **fields)


def pool_of(*chats: BaseChatModel, language: str = "test", **fields: Any) -> ModelPool:
    """Members m1, m2, … each ten times the price of the one before."""
    members = [
        member(f"m{rank}", chat, str(10 ** (rank - 1))) for rank, chat in enumerate(chats, 1)
    ]
    return ModelPool(name="fakes", members=tuple(members), language=language, **fields)


class ListeningChat(FakeChat):
    """Keeps the texts of all messages of each request."""

    heard: list[list[str]] = Field(default_factory=list)

    def _result(self, messages: list[BaseMessage], options: dict[str, Any]) -> ChatResult:
        self.heard.append([str(message.text) for message in messages])
        return super()._result(messages, options)


class MeetingChat(FakeChat):
    """Echoes; before it answers some prompts it waits until others have been asked.

    `waits_for` maps a prompt to the one that must come first. Whoever waits in vain times out.
    """

    waits_for: Mapping[str, str]
    asked: dict[str, threading.Event] = Field(default_factory=dict)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        self._meet(str(messages[-1].text))
        return self._result(messages, options)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        await asyncio.to_thread(self._meet, str(messages[-1].text))
        return self._result(messages, options)

    def _meet(self, prompt: str) -> None:
        self._event(prompt).set()
        if prompt in self.waits_for and not self._event(self.waits_for[prompt]).wait(10):
            raise TimeoutError

    def _event(self, prompt: str) -> threading.Event:
        # `setdefault` is atomic; a defaultdict hands two threads an event each.
        return self.asked.setdefault(prompt, threading.Event())


class Planned(Decomposer):
    """Gives these plans, in text form, one a round; remembers the contexts it was asked in."""

    def __init__(self, *plans: str) -> None:
        self.plans = plans
        self.contexts: list[DecomposeContext] = []

    def decompose(self, query: str, context: DecomposeContext) -> Plan:
        self.contexts.append(context)
        return parse_text(self.plans[min(context.round, len(self.plans)) - 1])


def reply(text: str, **fields: Any) -> Reply:
    """A reply for a flow."""
    defaults: dict[str, Any] = {"member": "m1", "usage": Usage(), "cost": Decimal(0)}
    return Reply(text, **defaults | fields)


def replay(flow: Flow[T], *replies: Reply | R2Error) -> tuple[T, list[ModelCall]]:
    """Run a flow on given replies; returns its result and the calls it made."""
    calls: list[ModelCall] = []
    left = list(replies)
    try:
        calls.append(next(flow))
        while True:
            answer = left.pop(0)
            if isinstance(answer, R2Error):
                calls.append(flow.throw(answer))
            else:
                calls.append(flow.send(answer))
    except StopIteration as end:
        assert not left, f"{len(left)} replies were not asked for"
        result: T = end.value
        return result, calls


class BusyChat(FakeChat):
    """A model that says how much CPU time each answer took, as local models do."""

    cpu_s: float = 0.0

    def _result(self, messages: list[BaseMessage], options: dict[str, Any]) -> ChatResult:
        result = super()._result(messages, options)
        result.generations[0].message.response_metadata["cpu_s"] = self.cpu_s
        return result


def router_of(plans: Mapping[str, str], slots: Callable[[str], str]) -> Router:
    """A router of the lab's language: plans by query, slots by the text of a step; both cost."""
    planner = answering({f"plan: {query}": plan for query, plan in plans.items()})
    chooser = FakeChat(
        answer=lambda text: " ".join(slots(line.split(": ")[1]) for line in text.split("\n")[1:])
    )
    price = Price(input_per_mtok=Decimal(1), output_per_mtok=Decimal(1))
    card = RouterCard(
        name="fake",
        language="lab",
        base="none",
        trained_with="nothing",
        command="none",
        seed=0,
        data_sha256="0" * 64,
        prices=Prices(decomposer=price, allocator=price),
    )
    return Router(
        CheckpointDecomposer(member("planner", planner)),
        CheckpointAllocator(member("chooser", chooser)),
        FormatVerifier(),
        card,
    )
