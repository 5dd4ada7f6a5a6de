"""Routers against each other at matched accuracy: what each costs where it is as often right.

A router at several qualities is a curve of points: accuracy, net cost, pool cost. What an accuracy
costs is read off the curve's non-decreasing convex hull (RouterBench, arXiv 2403.12031): the least
expected cost of answering each query at one of two qualities, drawn at random, so that the accuracy
is reached or passed.

Means are over the queries of each benchmark, then over the benchmarks, which weigh the same.
Intervals are of queries drawn again within each benchmark, the same for all methods; they know
nothing of what another training run would give. That several seeds of a router show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from r2graph.evaluation.compare import RESAMPLES, SEED, Interval
from r2graph.evaluation.lineup import ELSEWHERE, PARENT, swept
from r2graph.evaluation.outcomes import Outcome

ACCURACY, NET, POOL = range(3)
COSTS: dict[Literal["net", "pool"], int] = {"net": NET, "pool": POOL}
ORACLE = "oracle"
ROUNDING = 1e-9  # of means that are the same but for the order of their terms

Floats = NDArray[np.float64]
Curve = dict[float | None, Floats]
"""By quality (`None`: the method has none), R3: accuracy, net and pool cost, dollars a query. Row 0
is of the queries as they are, the others of resamples."""


@dataclass(frozen=True)
class Point:
    """A method at a quality: means over `n` queries, the costs in dollars."""

    family: str
    quality: float | None
    n: int
    accuracy: float
    net_usd: float
    pool_usd: float


@dataclass(frozen=True)
class Gain:
    """What a router costs less than the one it was trained from, at the same accuracy."""

    family: str
    cost: Literal["net", "pool"]
    at: str
    """Which accuracy of the parent is matched: the mean over those of some qualities, or one."""
    saving: Interval
    """The share of the parent's cost; minus infinity where the accuracy is not reached."""
    gap_closed: Interval | None = None
    """The saving as a share of what the oracle saves, whatever its own accuracy; NaN where it saves
    nothing."""


def curves(outcomes: Sequence[Outcome], quality: float) -> dict[str, Curve]:
    """The curve of each family of methods; routers that name no quality ran at `quality`.

    Several routers `router:PATH` are taken for seeds of one training, and the mean of them is
    another family. Raises `ValueError` unless all methods did the same queries.
    """
    found: dict[str, Curve] = {}
    for method, means in resampled(outcomes).items():
        run = swept(method)
        family, at = (method, None) if run is None else run
        if run is not None and at is None:
            at = quality
        found.setdefault(family, {})[at] = means
    seeds = [curve for family, curve in found.items() if family.startswith(ELSEWHERE)]
    if len(seeds) > 1:
        shared = [at for at in seeds[0] if all(at in curve for curve in seeds)]
        mean: Curve = {at: np.mean([curve[at] for curve in seeds], axis=0) for at in shared}
        found[f"mean of {len(seeds)} routers"] = mean
    return found


def resampled(outcomes: Sequence[Outcome]) -> dict[str, Floats]:
    """The means of each method, R3 as in `Curve`."""
    benchmarks: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {}
    for o in outcomes:
        methods = benchmarks.setdefault(o.benchmark, {})
        measured = (float(o.right), float(o.net_usd), float(o.pool_usd))
        methods.setdefault(o.method, {})[o.query] = measured
    random = np.random.default_rng(SEED)
    means: dict[str, list[Floats]] = {}
    for methods in benchmarks.values():
        queries = list(next(iter(methods.values())))
        n = len(queries)
        drawn_RN = np.vstack([np.ones(n), random.multinomial(n, [1 / n] * n, RESAMPLES)])
        for method, done in methods.items():
            if done.keys() != set(queries):
                raise ValueError("a paired comparison needs the same queries on both sides")
            means.setdefault(method, []).append(drawn_RN @ [done[q] for q in queries] / n)
    if any(len(found) != len(benchmarks) for found in means.values()):
        raise ValueError("a paired comparison needs the same queries on both sides")
    return {method: np.mean(found, axis=0) for method, found in means.items()}


def points(curves: Mapping[str, Curve], outcomes: Sequence[Outcome]) -> list[Point]:
    """Every point as it was measured, without resampling; `outcomes` are those of the curves."""
    n = len({(outcome.benchmark, outcome.query) for outcome in outcomes})
    return [
        Point(family, quality, n, *map(float, means[0]))
        for family, curve in curves.items()
        for quality, means in curve.items()
    ]


def gains(curves: Mapping[str, Curve], quality: float) -> list[Gain]:
    """Every router against `sft`, at the accuracy of `sft` at each of its qualities, and at one.

    The mean is over those accuracies that both routers reach, in each resample anew. The gap to the
    oracle is judged at `quality` alone: at low ones a router costs less than the oracle, and is
    less often right.
    """
    if PARENT not in curves:
        return []
    rivals = {family: curve for family, curve in curves.items() if None not in curve}
    parent = rivals.pop(PARENT)
    oracle = curves.get(ORACLE, {}).get(None)
    return [
        gain
        for family, curve in rivals.items()
        for gain in _against(parent, family, curve, oracle, quality)
    ]


def _against(
    parent: Curve, family: str, curve: Curve, oracle: Floats | None, quality: float
) -> Iterator[Gain]:
    before_RP3, after_RP3 = _stacked(parent), _stacked(curve)
    levels_RL = before_RP3[..., ACCURACY]
    for name, cost in COSTS.items():
        before_RL = cost_at(levels_RL, before_RP3[..., ACCURACY], before_RP3[..., cost])
        after_RL = cost_at(levels_RL, after_RP3[..., ACCURACY], after_RP3[..., cost])
        reached_RL = np.isfinite(after_RL)
        saving_RL = 1 - after_RL / before_RL
        times_R = reached_RL.sum(1)
        total_R = np.where(reached_RL, saving_RL, 0).sum(1)
        mean_R = np.where(times_R > 0, total_R / np.maximum(times_R, 1), -np.inf)
        where = f"{times_R[0]} of {len(parent)} qualities"
        yield Gain(family, name, where, _interval(mean_R))
        if quality not in parent:
            continue
        at = list(parent).index(quality)
        closed = None
        if oracle is not None:
            gap_R = before_RL[:, at] - oracle[:, cost]
            saved_R = before_RL[:, at] - after_RL[:, at]
            closed = _interval(saved_R / np.where(gap_R > 0, gap_R, np.nan))
        yield Gain(family, name, f"{PARENT}@{quality:g}", _interval(saving_RL[:, at]), closed)


def cost_at(levels_RL: Floats, accuracy_RP: Floats, cost_RP: Floats) -> Floats:
    """The least cost, RL, of reaching accuracies by mixing two points; infinite beyond them all."""
    level_RL11 = levels_RL[:, :, None, None] - ROUNDING
    low_RP1, high_RP1 = accuracy_RP[:, None, :, None], accuracy_RP[:, None, None, :]
    rise = np.where(high_RP1 > low_RP1, high_RP1 - low_RP1, 1.0)
    share = np.clip((level_RL11 - low_RP1) / rise, 0.0, 1.0)
    first, second = cost_RP[:, None, :, None], cost_RP[:, None, None, :]
    mixed = np.where(high_RP1 >= level_RL11, first + share * (second - first), np.inf)
    least_RL: Floats = mixed.min(axis=(2, 3))
    return least_RL


def _stacked(curve: Curve) -> Floats:
    return np.stack(list(curve.values()), axis=1)


def _interval(values_R: Floats) -> Interval:
    # Of the methods of numpy this is one that does not interpolate, and so bears infinities.
    low, high = np.quantile(values_R[1:], (0.025, 0.975), method="inverted_cdf")
    return Interval(float(values_R[0]), float(low), float(high))
