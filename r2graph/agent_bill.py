"""The bill of an agent's run, kept in the agent's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from threading import Lock
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic, for servers' schemas, wants this one

from r2graph.bill import total
from r2graph.calls import Entry
from r2graph.errors import CheckpointError, first_fault
from r2graph.pricing import Money, Price, Usage, to_text
from r2graph.state import MemberUsage


class AgentBill(TypedDict):
    """What a run of an agent cost: the calls of this middleware, failed ones included."""

    usage: dict[str, MemberUsage]
    cost_usd: Money
    counterfactual_usd: Money
    """An estimate: the same replies with the same tokens, all from the strongest member."""
    switches: Annotated[int, Field(ge=0)]
    """How often two calls in a row went to different members."""
    stop_reason: Literal["budget"] | None
    """Why this middleware ended the run, if it did."""


_BILL = TypeAdapter(AgentBill)
MAX_TASKS = 1000


class Tasks:
    """What the calls of the latest tasks cost, for tasks that are run again.

    LangGraph keeps nothing of a task that raises, and other middleware may make a call twice.
    """

    def __init__(self) -> None:
        self._bills: dict[str, list[Entry]] = {}
        self._lock = Lock()

    def take(self, task: str) -> list[Entry]:
        with self._lock:
            return self._bills.pop(task, [])

    def keep(self, task: str, bill: list[Entry]) -> None:
        with self._lock:
            self._bills[task] = bill
            if len(self._bills) > MAX_TASKS:
                del self._bills[next(iter(self._bills))]


def empty_bill() -> AgentBill:
    """The bill of a run that has made no call."""
    return AgentBill(usage={}, cost_usd="0", counterfactual_usd="0", switches=0, stop_reason=None)


def read_bill(state: Mapping[str, Any]) -> AgentBill:
    """A copy of the bill so far. Raises `CheckpointError` if it is none."""
    try:
        bill = _BILL.validate_python(state.get("r2_bill") or empty_bill())
    except ValidationError as error:
        raise CheckpointError(first_fault(error)) from None
    return {**bill, "usage": dict(bill["usage"])}


def billed(bill: AgentBill, entries: Sequence[Entry], strongest: Price) -> AgentBill:
    """The bill with these calls on it; `strongest` prices its counterfactual."""
    reference = Decimal(bill["counterfactual_usd"])
    for entry in entries:
        usage = Usage(input_tokens=entry["input_tokens"], output_tokens=entry["output_tokens"])
        if entry["ok"] and entry["role"] == "executor":
            reference += strongest.cost(usage)
        bill["usage"][entry["member"]] = _plus(bill["usage"].get(entry["member"]), entry)
    bill["counterfactual_usd"] = to_text(reference)
    bill["cost_usd"] = to_text(Decimal(bill["cost_usd"]) + total(entries))
    return bill


def _plus(usage: MemberUsage | None, entry: Entry) -> MemberUsage:
    one = MemberUsage(
        input_tokens=entry["input_tokens"],
        output_tokens=entry["output_tokens"],
        calls=1,
        cost_usd=entry["cost_usd"],
    )
    if usage is None:
        return one
    return MemberUsage(
        input_tokens=usage["input_tokens"] + one["input_tokens"],
        output_tokens=usage["output_tokens"] + one["output_tokens"],
        calls=usage["calls"] + 1,
        cost_usd=to_text(Decimal(usage["cost_usd"]) + Decimal(one["cost_usd"])),
    )
