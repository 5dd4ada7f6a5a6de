"""What the door does for a call, and what each try of it holds until it is settled."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from r2graph.breaker import Pass
from r2graph.calls import ModelCall, Reply, T
from r2graph.errors import CallErrorKind
from r2graph.ledger import Budget, Ledger, Line, Page
from r2graph.limits import Limits
from r2graph.pricing import Usage
from r2graph.request import Request
from r2graph.response import Response


@dataclass(frozen=True, slots=True)
class Books:
    """A ledger, and which run, round and step of it this door's calls belong to."""

    ledger: Ledger
    run: str
    round: int = 0
    step: str | None = None
    budget: Budget | None = None
    """Of all runs together."""


# What the door's work, a generator as flows are, asks for: it is the same for sync and async.
@dataclass(frozen=True, slots=True)
class Wait:
    """A pause before the next try."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Write:
    """Work on the ledger."""

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Send:
    """A request; the answer is the message, or the error that the chat model raised."""

    attempt: Attempt


Act = Wait | Write | Send
Acts = Generator[Act, Any, T]


@dataclass(frozen=True, slots=True)
class Failure:
    """How a try failed, and what the provider asks for."""

    kind: CallErrorKind
    retry_after_s: float | None = None


class Attempt:
    """One try of a call: what it holds until it is settled."""

    def __init__(self, call: ModelCall, limits: Limits, page: Page | None) -> None:
        self.call = call
        self.page = page
        self.leave: Pass | None = None
        """Of the breaker."""
        self.request = Request(call, limits.max_output_tokens)
        self.ticket: int | None = None
        """Of the reservation on the run's meter."""
        self.number = 0
        """Of the try in the ledger, from 1; 0 before the intent is there."""
        self.earlier: Sequence[Line] = ()
        self.is_sent = False
        self.is_settled = False

    def intend(self) -> bool:
        """Enter it in the ledger; kept here, for whoever asked may be gone by then."""
        assert self.page is not None
        earlier = self.page.intend(self.request.worst_cost)
        if earlier is None:
            return False
        self.earlier, self.number = earlier, len(earlier) + 1
        return True


def reply_of(call: ModelCall, response: Response, usage: Usage, cost: Decimal) -> Reply:
    """A response as the answer to its call."""
    return Reply(
        text=response["text"],
        member=call.spec.name,
        usage=usage,
        cost=cost,
        seconds=response["seconds"],
        truncated=response["truncated"],
        mean_logprob=response["mean_logprob"],
        top_logprobs=response["top_logprobs"] if call.top_logprobs else (),
        tool_calls=response.get("tool_calls", ()),
        invalid_tool_calls=response.get("invalid_tool_calls", ()),
    )
