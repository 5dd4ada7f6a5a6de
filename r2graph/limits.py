"""What a run may use: calls, plans, steps, attempts, seconds, tokens and dollars.

Nothing here is checked after the fact. A call is made only once its worst case has been reserved,
so no concurrency takes a run past its budget.
"""

from __future__ import annotations

import time
from decimal import Decimal
from itertools import count
from threading import Lock
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from r2graph.errors import LimitExceeded
from r2graph.plan import MAX_SUBTASKS


class Limits(BaseModel):
    """The bounds of one run; reaching one ends the run with what it has, and says so."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_calls: Annotated[int, Field(gt=0)] = 64
    """Calls of models, those of router and verifier included."""
    max_rounds: Annotated[int, Field(gt=0)] = 2
    """Plans: the first, and new ones after an answer was rejected."""
    max_steps: Annotated[int, Field(gt=0, le=MAX_SUBTASKS)] = MAX_SUBTASKS
    """Subtasks of one plan."""
    max_attempts_per_step: Annotated[int, Field(gt=0)] = 9
    """Models tried for one subtask before its last output is taken as it is."""
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        120.0, title="Deadline (seconds)"
    )
    """Seconds for the run; a resumed run gets them anew."""
    call_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        60.0, title="Call timeout (seconds)"
    )
    """Seconds for one call."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """Further tries of a call that failed through no fault of its own (SDKs' own are off)."""
    max_output_tokens: Annotated[int, Field(gt=0)] = 1024
    """Tokens that one call may generate."""


class Meter:
    """What one run has used. A call is reserved, and then settled, released (it cost nothing) or
    withdrawn (it was not made); what was paid before a resume is charged.

    Safe to share between threads. `calls` and `spent` say what was used before a resume, `started`
    is a reading of `time.monotonic`.
    """

    def __init__(
        self,
        limits: Limits,
        budget: Decimal | None = None,
        *,
        calls: int = 0,
        spent: Decimal = Decimal(0),
        started: float | None = None,
    ) -> None:
        self.limits = limits
        self.budget = budget
        self.calls = calls
        self.spent = spent
        self._ends = (time.monotonic() if started is None else started) + limits.deadline_s
        self._held: dict[int, Decimal] = {}
        self._tickets = count()
        self._lock = Lock()

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._ends - time.monotonic()

    @property
    def left_usd(self) -> Decimal | None:
        """Dollars that are neither spent nor reserved; `None` without a budget."""
        with self._lock:
            return None if self.budget is None else self._left(self.budget)

    def _left(self, budget: Decimal) -> Decimal:
        return budget - self.spent - sum(self._held.values(), Decimal(0))

    def reserve(self, worst_case: Decimal) -> int:
        """Set money for a call aside and count the call; the ticket is for `settle` or `release`.

        Raises `LimitExceeded` instead, if the call could pass a limit.
        """
        if self.left_s <= 0:
            raise LimitExceeded("deadline")
        with self._lock:
            if self.calls >= self.limits.max_calls:
                raise LimitExceeded("calls")
            if self.budget is not None and worst_case > self._left(self.budget):
                raise LimitExceeded("budget")
            self.calls += 1
            ticket = next(self._tickets)
            self._held[ticket] = worst_case
            return ticket

    def settle(self, ticket: int, cost: Decimal) -> None:
        """Replace a reservation by what the call cost."""
        with self._lock:
            del self._held[ticket]
            self.spent += cost

    def release(self, ticket: int) -> None:
        """Give a reservation back: the call cost nothing."""
        self.settle(ticket, Decimal(0))

    def withdraw(self, ticket: int) -> None:
        """Give a reservation back for a call that was not made after all."""
        self.release(ticket)
        with self._lock:
            self.calls -= 1

    def charge(self, cost: Decimal, calls: int) -> None:
        """Add what a step had used before the run was resumed."""
        with self._lock:
            self.spent += cost
            self.calls += calls
