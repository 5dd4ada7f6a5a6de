"""A call that is routed whole: tools or a schema are bound to it, so it is not split into steps.

The cheapest member that can do it is asked first; a call that fails, and a reply that has not the
form that was asked for, move up the pool.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, cast
from uuid import uuid4

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from pydantic import BaseModel

from r2graph.attempt import Books
from r2graph.bill import Bill, summarize
from r2graph.calls import Flow, ModelCall, Reply
from r2graph.door import Door, adrive, drive
from r2graph.errors import LimitExceeded, ModelCallError, R2Error, UnsupportedCallError
from r2graph.limits import Meter
from r2graph.pricing import to_text
from r2graph.state import R2Output, Run, RunRecord, StopReason


class Bound(BaseModel):
    """What is bound to a call: tools that its reply may call, or the schema of the reply."""

    tools: tuple[dict[str, Any], ...] = ()
    """In OpenAI's form."""
    tool_choice: bool | str | dict[str, Any] | None = None
    """As in LangChain's `bind_tools`."""
    parallel_tool_calls: bool = True
    """Whether one reply may call several; of one that must not, the first call is taken."""
    output_schema: dict[str, Any] | None = None
    """A JSON schema with a title."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The reply that was taken, and why no other was asked for."""

    reply: Reply
    stop: StopReason


@dataclass
class Whole:
    """A conversation, what its next message may be, and the run in which it is asked for."""

    run: Run
    messages: Sequence[BaseMessage]
    bound: Bound
    run_id: str = field(default_factory=lambda: str(uuid4()))

    def __post_init__(self) -> None:
        run, books = self.run, None
        if run.ledger is not None:
            books = Books(run.ledger, self.run_id, budget=run.pool_budget)
        self._door = Door(
            Meter(run.limits, run.budget, started=run.started),
            run.gate,
            run.agate,
            outcomes=run.outcomes,
            health=run.health,
            books=books,
        )

    @property
    def spent(self) -> Decimal:
        """Dollars so far."""
        return self._door.meter.spent

    def ask(self) -> Outcome:
        """Raises `ModelCallError`, `LimitExceeded` if there is no reply, `UnsupportedCallError`."""
        with self._accounted():
            return drive(self.route(), self._door)

    async def aask(self) -> Outcome:
        """As `ask`."""
        with self._accounted():
            return await adrive(self.route(), self._door)

    def route(self) -> Flow[Outcome]:
        """The first reply of the right form, failing that the last one there is."""
        last: Reply | None = None
        errors: list[ModelCallError] = []
        asked = 0
        for spec in self.run.pool.members:
            call = ModelCall(
                "executor",
                spec,
                self.messages,
                schema=self.bound.output_schema,
                tools=self.bound.tools,
                tool_choice=self.bound.tool_choice,
            )
            try:
                last = self._allowed((yield call))
            except ModelCallError as error:
                errors.append(error)
                continue
            except LimitExceeded as limit:
                if last is None:
                    raise
                return Outcome(last, limit.limit)
            if fault(last, call) is None:
                return Outcome(last, "unverified")
            asked += 1
            if asked == self.run.limits.max_attempts_per_step:
                break
        if last is None:  # that a member is down says more than that another takes no tools
            raise next((e for e in errors if e.kind != "bad_request"), errors[-1])
        return Outcome(last, "attempts")

    def _allowed(self, reply: Reply) -> Reply:
        """The reply, with as many calls as it may have: no chat model can be relied on for that."""
        if self.bound.parallel_tool_calls:
            return reply
        calls, invalid = reply.tool_calls[:1], reply.invalid_tool_calls[:1]
        return replace(reply, tool_calls=calls, invalid_tool_calls=() if calls else invalid)

    def result(self, outcome: Outcome) -> R2Output:
        """What comes of it in the form of a graph's result: without plan and steps.

        The last message has the tool calls.
        """
        run, reply = self.run, outcome.reply
        message = AIMessage(
            reply.text,
            tool_calls=list(reply.tool_calls),
            invalid_tool_calls=list(reply.invalid_tool_calls),
            response_metadata={"finish_reason": "length"} if reply.truncated else {},
        )
        asked = (each.text for each in reversed(self.messages) if isinstance(each, HumanMessage))
        record = RunRecord(
            run_id=self.run_id,
            query=next(asked, ""),
            pool=run.pool.name,
            members=list(run.pool.names),
            quality=run.quality,
            router=None,
            rounds=0,
        )
        return R2Output(
            answer=reply.text,
            messages=cast(list[AnyMessage], [*self.messages, message]),
            plan={},
            allocation={},
            steps={},
            stop_reason=outcome.stop,
            run_id=self.run_id,
            run=record,
            **self.bill(reply),
        )

    def bill(self, reply: Reply) -> Bill:
        """What it cost; on the strongest member the reply would have cost its counterfactual."""
        bill = summarize(self._door.bill, {})
        bill["counterfactual_usd"] = to_text(self.run.pool[-1].price.cost(reply.usage))
        bill["local_share"] = float(self.run.pool[reply.member].is_local)
        return bill

    @contextmanager
    def _accounted(self) -> Iterator[None]:
        try:
            yield
        except R2Error as error:
            if isinstance(error, ModelCallError) and not self._door.bill:
                error = self._unable(error)
            error.cost_usd = to_text(self.spent)
            raise error from None

    def _unable(self, error: ModelCallError) -> R2Error:
        """Nobody was asked: if that was not for being down, they all cannot."""
        if error.kind != "bad_request":
            return error
        has_schema = self.bound.output_schema is not None
        return UnsupportedCallError(self.run.pool.name, "schema" if has_schema else "tools")


def fault(reply: Reply, call: ModelCall) -> str | None:
    """What is wrong with the form of a reply; `None` if nothing is."""
    if reply.truncated:
        return "it was cut off by the token limit"
    if call.schema is not None:
        return None if _fits(reply.text, call.schema) else "it does not have the schema's keys"
    if reply.invalid_tool_calls:
        return "the arguments of a tool call do not parse"
    called = {tool_call["name"] for tool_call in reply.tool_calls}
    names = {tool["function"]["name"] for tool in call.tools if tool.get("type") == "function"}
    if len(names) == len(call.tools) and not called <= names:  # a provider's own have no names
        return "it calls a tool that there is not"
    wanted = forced(call.tool_choice)
    if wanted is not None and not (wanted in called if wanted else called):
        return "it does not call the tool that it was to call"
    return None if called or reply.text else "it is empty"


def forced(choice: str | bool | Mapping[str, Any] | None) -> str | None:
    """The tool that has to be called, `""` if any; `None`: none has."""
    if isinstance(choice, Mapping):
        function = choice.get("function")
        return str(function["name"]) if isinstance(function, Mapping) else ""
    if choice in (None, False, "auto", "none"):
        return None
    return "" if choice in (True, "any", "required") else str(choice)


def _fits(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether a text is a JSON object with the keys that a schema requires.

    Whether the values fit, its parser finds out.
    """
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and set(schema.get("required", ())) <= value.keys()
