"""What the ledger is told and tells: budgets, and lines."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from r2graph.pricing import Dollars

State = Literal["intent", "reply", "failed", "in_doubt"]


class Budget(BaseModel):
    """Dollars that all runs together must not pass, in each period if one is given.

    Graphs and processes that share a ledger share the budgets of like scope. Periods are those of
    the calendar, in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    usd: Dollars
    period: Literal["hour", "day", "month"] | None = None
    scope: Annotated[str, Field(min_length=1, max_length=100)] = "default"

    def period_at(self, when: float) -> str:
        """The name of the period that `when`, in seconds since 1970, falls into."""
        forms = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}
        return datetime.fromtimestamp(when, UTC).strftime(forms[self.period]) if self.period else ""


@dataclass(frozen=True, slots=True)
class Line:
    """One try of a call."""

    run: str
    role: str
    member: str
    step: str | None
    state: State
    kind: str | None
    """Of a failure."""
    usd: Decimal
    """What it cost; in the worst case, where that is not known."""
    reply: dict[str, Any] | None
    at: float
    """When it was entered, in seconds since 1970."""
    owner: str
    """The process that entered it."""
