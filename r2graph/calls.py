"""Calls of chat models: what is asked and what comes back.

Every decision of r2graph is written once, as a *flow*: a generator that yields a `ModelCall` and is
sent the `Reply`. `drive` and `adrive` (`r2graph/door.py`) run a flow against a `Door`, which knows
limits, prices, time and the bill. A flow never awaits and never calls a model, so it is the same
for sync and async, and a test runs it with a list of replies.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal, NotRequired, TypeVar

from langchain_core.messages import AIMessage, BaseMessage, InvalidToolCall, ToolCall, ToolMessage
from typing_extensions import TypedDict  # pydantic, for servers' schemas, wants this one

from r2graph.errors import ModelCallError
from r2graph.pool import ModelSpec
from r2graph.pricing import Money, Usage

Role = Literal["decomposer", "allocator", "executor", "verifier"]
ROUTER_ROLES = frozenset({"decomposer", "allocator"})

# A token of any byte-level vocabulary is at least one byte long; templates add a few to a message.
MESSAGE_OVERHEAD_TOKENS = 16

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
    tools: Sequence[Mapping[str, Any]] = ()
    """Tools that the model may call, in OpenAI's form; those of the reply are not run."""
    tool_choice: str | bool | Mapping[str, Any] | None = None
    """As in LangChain's `bind_tools`."""
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
    tool_calls: Sequence[ToolCall] = ()
    invalid_tool_calls: Sequence[InvalidToolCall] = ()
    """Those whose arguments do not parse."""


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


def ask(call: ModelCall, others: Sequence[ModelSpec] = ()) -> Flow[Reply]:
    """Make a call; where the model cannot be reached, ask `others` in its place, in their order."""
    left = [call.spec, *others]
    while True:
        try:
            return (yield from _ask(replace(call, spec=left.pop(0))))
        except ModelCallError as error:
            if error.kind == "bad_request" or not left:  # it would be a bad one for all
                raise


def _ask(call: ModelCall) -> Flow[Reply]:
    """A model that refuses an optional feature is asked again without it.

    Reasoning models refuse log-probabilities, many servers a schema; both are of use but not vital.
    """
    try:
        return (yield call)
    except ModelCallError as error:
        optional = call.logprobs or call.top_logprobs or call.schema
        if not optional or error.kind not in ("bad_request", "other"):
            raise
    return (yield replace(call, logprobs=False, top_logprobs=None, schema=None))


def worst_usage(call: ModelCall, max_output_tokens: int) -> Usage:
    """The most tokens that a call may take."""
    sent = sum(len(message.text.encode()) + MESSAGE_OVERHEAD_TOKENS for message in call.messages)
    for message in call.messages:
        if isinstance(message, AIMessage):
            if called := [*message.tool_calls, *message.invalid_tool_calls]:
                sent += len(json.dumps(called, default=repr))
        elif isinstance(message, ToolMessage):
            sent += len(message.tool_call_id.encode())
    if call.schema:
        sent += len(json.dumps(call.schema))
    if call.tools:
        sent += len(json.dumps([*call.tools, call.tool_choice], default=repr))
    generated = min(call.max_tokens or max_output_tokens, max_output_tokens)
    if context := call.spec.context_length:
        sent = min(sent, context)
        # Servers refuse to be asked for more than is left; half is left, by any sensible count.
        generated = min(generated, max(context - sent, context // 2))
    return Usage(input_tokens=sent, output_tokens=generated)
