"""What is measured: one outcome a query, one row a method and benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from math import sqrt
from statistics import fmean
from typing import Any, Literal, NamedTuple

_Z = 1.959964  # of a 95 % interval

Purpose = Literal["step", "failed attempt", "router", "verifier"]
Went = Literal["right", "wrong", "unplanned", "unknown"]
"""`unplanned`: right outputs are known, and no right plan asks for such a step."""


class Paid(NamedTuple):
    """What the calls of one model for one purpose cost; a failed attempt's output was not used."""

    purpose: Purpose
    member: str
    """Empty where a run failed and what it cost cannot be told apart."""
    calls: int
    usd: str


class Tried(NamedTuple):
    """An attempt of a step of the last plan, or of the whole query."""

    step: str
    task: str
    """A digest of what was asked: the same of different methods."""
    member: str
    went: Went
    ok: bool | None
    """What its check said."""


@dataclass(frozen=True)
class Detail:
    """What a report tells of an outcome; but for the example it holds no text."""

    paid: tuple[Paid, ...]
    tried: tuple[Tried, ...] = ()
    stop: str | None = None
    """A run's stop reason, or `plan` or `unreachable` if it failed for that."""
    example: dict[str, Any] | None = None
    """Of a few outcomes, what they are examples of, the trace of the run and the right answer."""


@dataclass(frozen=True)
class Outcome:
    """How one method did on one query.

    `pool_usd` pays for all calls of executing models, those of failed attempts included; `net_usd`
    for all calls, the router's and the verifier's too. `calls` counts what `net_usd` pays for.
    `cpu_s` is the CPU time that local models computed in these calls, as `replies` defines it.
    """

    benchmark: str
    method: str
    query: str
    right: bool
    pool_usd: Decimal
    net_usd: Decimal
    calls: int
    cpu_s: float
    detail: Detail | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table: costs, calls and CPU seconds are means per query."""

    benchmark: str
    method: str
    n: int
    accuracy: float
    ci_low: float
    ci_high: float
    pool_cost_usd: float
    net_cost_usd: float
    calls: float
    cpu_s: float


def rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """One row for each run of outcomes of the same benchmark and method, in their order."""
    groups = groupby(outcomes, key=lambda outcome: (outcome.benchmark, outcome.method))
    return [_row(benchmark, method, list(group)) for (benchmark, method), group in groups]


def _row(benchmark: str, method: str, group: list[Outcome]) -> Row:
    n, right = len(group), sum(outcome.right for outcome in group)
    low, high = wilson(right, n)
    return Row(
        benchmark=benchmark,
        method=method,
        n=n,
        accuracy=right / n,
        ci_low=low,
        ci_high=high,
        pool_cost_usd=float(sum(outcome.pool_usd for outcome in group) / n),
        net_cost_usd=float(sum(outcome.net_usd for outcome in group) / n),
        calls=fmean(outcome.calls for outcome in group),
        cpu_s=fmean(outcome.cpu_s for outcome in group),
    )


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; unlike the normal one it is sound at 0 and at 1."""
    share, z2 = right / n, _Z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)
