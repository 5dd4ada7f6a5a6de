"""A call on its way to its chat model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from threading import Thread
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableSequence
from langgraph.constants import TAG_NOSTREAM

from r2graph.calls import ModelCall, T, worst_usage
from r2graph.errors import ModelCallError
from r2graph.local import ChatLocal
from r2graph.pricing import Usage
from r2graph.scrub import scrubbing

# What a message of an earlier turn may carry and no model is sent.
_UNSENT = {"id", "response_metadata", "usage_metadata"}


class Request:
    """A call with its worst case worked out, ready to be sent.

    Raises `ConfigError` if the model cannot be built, `ModelCallError` if it cannot be asked so.
    """

    def __init__(self, call: ModelCall, max_output_tokens: int) -> None:
        self.call = call
        self.worst_usage = worst_usage(call, max_output_tokens)
        self.worst_cost = call.spec.price.cost(self.worst_usage)
        self._model, bound = _unbound(_model(call))
        self.is_billed = not isinstance(self._model, ChatLocal)
        """Whether somebody sends a bill: nobody does for what runs in this process."""
        self.lost_usage = self.worst_usage if self.is_billed else Usage()
        """What a call counts for whose answer never came, though it may have been made."""
        self.lost_cost = call.spec.price.cost(self.lost_usage)
        self._options = bound | options(call, self.worst_usage.output_tokens)
        self._config = RunnableConfig(
            tags=[f"r2:{call.role}"], run_name=call.spec.name, callbacks=scrubbing()
        )
        if call.role != "executor":  # chat interfaces show the steps, not the deliberation
            self._config["tags"].append(TAG_NOSTREAM)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def invoke(self, timeout_s: float) -> AIMessage:
        """Raises what the chat model raises, or `TimeoutError`.

        A local model is loaded first: that is set-up, and the call's time begins after it.
        """

        def work() -> AIMessage:
            message: AIMessage = self._model.invoke(
                self.call.messages, self._config, **self._options
            )
            return message

        if isinstance(self._model, ChatLocal):
            self._model.load()
        self._began = time.monotonic()
        return _within(timeout_s, work)

    async def ainvoke(self, timeout_s: float) -> AIMessage:
        """As `invoke`."""
        if isinstance(self._model, ChatLocal):
            await self._model.aload()
        self._began = time.monotonic()
        async with asyncio.timeout(timeout_s):
            message: AIMessage = await self._model.ainvoke(
                self.call.messages, self._config, **self._options
            )
        return message


def content(call: ModelCall, max_output_tokens: int) -> list[object]:
    """All that a reply hangs on besides the model and which sample it is."""
    messages = [message.model_dump(exclude=_UNSENT) for message in call.messages]
    generated = worst_usage(call, max_output_tokens).output_tokens
    tools = [list(call.tools), call.tool_choice] if call.tools else []
    return [messages, options(call, generated), call.schema and dict(call.schema), *tools]


def _model(call: ModelCall) -> Runnable[Any, Any]:
    chat = call.spec.chat
    if call.tools:
        return _with_tools(chat, call)
    if call.schema is None:
        return chat
    return _with_schema(chat, call)


def _with_tools(chat: BaseChatModel, call: ModelCall) -> Runnable[Any, Any]:
    choice: dict[str, Any] = {} if call.tool_choice is None else {"tool_choice": call.tool_choice}
    try:
        return chat.bind_tools([dict(tool) for tool in call.tools], **choice)
    except (NotImplementedError, TypeError, ValueError):
        raise ModelCallError(call.spec.name, "bad_request") from None


def _with_schema(chat: BaseChatModel, call: ModelCall) -> Runnable[Any, Any]:
    """The chat model with the schema bound, and without LangChain's parser behind it."""
    try:
        structured = chat.with_structured_output(dict(call.schema or {}))
    except (NotImplementedError, TypeError, ValueError):
        raise ModelCallError(call.spec.name, "bad_request") from None
    return structured.first if isinstance(structured, RunnableSequence) else chat


def _unbound(model: Runnable[Any, Any]) -> tuple[Runnable[Any, Any], dict[str, Any]]:
    """A model and what is bound to it; a binding calls callbacks in no certain order.

    LangChain puts handlers into a set when it merges configurations.
    """
    bound: dict[str, Any] = {}
    while isinstance(model, RunnableBinding):
        bound = {**model.kwargs, **bound}
        model = model.bound
    return model, bound


def options(call: ModelCall, max_tokens: int) -> dict[str, Any]:
    """What the chat model is called with besides the messages."""
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
