"""The trajectory of an agent's run: what it shows, and who makes the next call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from typing import Annotated, Any, Literal

from langchain.agents.middleware import ModelResponse
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from pydantic import Field
from typing_extensions import TypedDict  # pydantic, for servers' schemas, wants this one

from r2graph.calls import Reply
from r2graph.pool import ModelPool
from r2graph.pricing import Price, Usage

# How hard a task is shows in the attempt, not in its wording. So a run starts on the cheapest
# member, a signal of the trajectory moves it up by one, and several calls in a row without a signal
# move it down again, if that saves more than the prompt cache is worth that every switch loses.

MAX_PATIENCE = 64

Signal = Literal["tool failed", "structured output", "repeated output", "low confidence"]


class Route(TypedDict):
    """Where a run stands, as the state keeps it."""

    member: str
    """Who made the last call."""
    calm: Annotated[int, Field(ge=0)]
    """Calls in a row, on this member, before the last one that showed no signal."""
    patience: Annotated[int, Field(ge=1)]
    """Calls without a signal that a move down takes."""
    fell: bool
    """Whether the last move was down."""
    signal: Signal | None
    """What the last reply showed."""
    said: str
    """A digest of the last reply, to tell a repetition."""
    input_tokens: Annotated[int, Field(ge=0)]
    output_tokens: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Move:
    """The member for the next call, and why."""

    member: str
    reason: str
    patience: int
    calm: int = 0
    fell: bool = False


def saving(usage: Usage, calls: int, here: Price, there: Price, cached: Decimal) -> Decimal:
    """Dollars that `calls` further calls save `there`, net of the prompt cache lost `here`.

    Each call is taken to be like the last, of `usage`, with its prompt in the cache at the share
    `cached` of the input price; the first call there pays the full price for the prompt.
    """

    def each(price: Price) -> Decimal:
        prompt = price.input_per_mtok * cached * usage.input_tokens
        return prompt + price.output_per_mtok * usage.output_tokens

    lost = there.input_per_mtok * (1 - cached) * usage.input_tokens
    return (calls * (each(here) - each(there)) - lost).scaleb(-6)


def follow(
    route: Route, signal: Signal | None, pool: ModelPool, up: str | None, cached: Decimal
) -> Move:
    """The next move of a run; `up` is whom a signal moves it to, if there is anyone.

    Who fell and was sent back up waits twice as long before the next fall.
    """
    member, patience = route["member"], route["patience"]
    if signal is not None:
        if up is None:
            return Move(member, f"{signal}, and nobody is stronger", patience)
        if route["fell"]:
            patience = min(MAX_PATIENCE, 2 * patience)
        return Move(up, signal, patience)
    calm = route["calm"] + 1
    if calm >= patience and (rank := pool.rank(member)) > 1:
        below = pool[rank - 2]
        usage = Usage(input_tokens=route["input_tokens"], output_tokens=route["output_tokens"])
        # As many calls as went by without a signal may well follow.
        saved = saving(usage, calm, pool[member].price, below.price, cached)
        if saved > 0:
            return Move(below.name, f"{calm} calls without a signal", patience, fell=True)
    return Move(member, "no signal", patience, calm, route["fell"])


def tool_failed(messages: Sequence[BaseMessage]) -> Signal | None:
    """Whether one of the tool results since the model last spoke is an error."""
    for message in reversed(messages):
        if not isinstance(message, ToolMessage):
            break
        if message.status == "error":
            return "tool failed"
    return None


def shown(
    response: ModelResponse[Any],
    reply: Reply,
    said: str,
    route: Route | None,
    min_logprob: float,
) -> Signal | None:
    """What a reply shows at once; whether a tool failed shows before the next call."""
    corrected = any(isinstance(message, ToolMessage) for message in response.result)
    if corrected and response.structured_response is None:
        return "structured output"
    if route is not None and said and said == route["said"]:
        return "repeated output"
    if reply.mean_logprob is not None and reply.mean_logprob < min_logprob:
        return "low confidence"
    return None


def digest(message: AIMessage) -> str:
    """Tells what a reply says or does: its tool calls where it has any, else its text."""
    calls = [[call["name"], call["args"]] for call in message.tool_calls]
    if not (said := calls or str(message.text).strip()):
        return ""
    return sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]
