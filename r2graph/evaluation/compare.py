"""Two methods on the same queries: paired differences with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r2graph.evaluation.outcomes import Outcome

RESAMPLES = 1_000
SEED = 1

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """What method a gains on method b."""

    accuracy: Interval
    """Accuracy of a less that of b."""
    pool_saving: Interval
    """The share of b's pool cost that a does without."""
    net_saving: Interval
    """The same of the net cost."""


def compare(a: Sequence[Outcome], b: Sequence[Outcome]) -> Comparison:
    """Set a against b, query by query; raises `ValueError` unless both did the same queries.

    Queries are drawn again and again with both methods' outcomes on them, so what makes a query
    hard or dear for both does not widen the intervals.
    """
    others = {(outcome.benchmark, outcome.query): outcome for outcome in b}
    if len(others) != len(b) or {(o.benchmark, o.query) for o in a} != others.keys():
        raise ValueError("a paired comparison needs the same queries on both sides")
    pairs = [(outcome, others[outcome.benchmark, outcome.query]) for outcome in a]
    return Comparison(
        accuracy=_interval(
            [(x.right - y.right, 1.0) for x, y in pairs], lambda gained, n: gained / n
        ),
        pool_saving=_interval([(float(x.pool_usd), float(y.pool_usd)) for x, y in pairs], _saving),
        net_saving=_interval([(float(x.net_usd), float(y.net_usd)) for x, y in pairs], _saving),
    )


def _saving(spent: Floats, reference: Floats) -> Floats:
    return 1.0 - spent / reference


def _interval(
    pairs: Sequence[tuple[float, float]], statistic: Callable[[Floats, Floats], Floats]
) -> Interval:
    """A statistic of two sums over the queries, with its percentile interval."""
    columns = np.array(pairs, dtype=np.float64)
    random = np.random.default_rng(SEED)
    n = len(columns)
    sums = np.array([columns[random.integers(0, n, n)].sum(0) for _ in range(RESAMPLES)])
    low, high = np.quantile(statistic(sums[:, 0], sums[:, 1]), (0.025, 0.975))
    total = columns.sum(0)
    return Interval(float(statistic(total[0], total[1])), float(low), float(high))
