"""The literature's measures of each method in an evaluation; `metrics` says what they are.

Accuracy and cost are means over the queries of each benchmark, then over the benchmarks, which
weigh the same. The weak model is the cheapest member and the strong one the dearest, the best
single one is chosen in hindsight. What needs a method that was not run is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from statistics import fmean

import numpy as np

from r2graph.evaluation import metrics
from r2graph.evaluation.lineup import swept
from r2graph.evaluation.outcomes import Outcome
from r2graph.evaluation.query_routers import ORACLE

Means = dict[str, tuple[float, float]]
"""By benchmark: accuracy, and net cost in dollars a query."""


@dataclass(frozen=True)
class Score:
    """A method, or a router at all the qualities that it was run at."""

    family: str
    points: int
    accuracy: float
    """Of several points the highest, and the cost that goes with it."""
    net_usd: float
    pgr: float
    gain_at_best: float
    gap_to_oracle: float
    perf_gain: float
    cost_save: float
    arena: float
    apgr: float = nan
    """Of several points; shares are of the way from the weak model's cost to the strong one's."""
    cpt_80: float = nan
    """Of several points: the least such share that recovers 80 % of the gap."""
    aiq: float = nan
    """Of several points, and the weak model, over that way."""


def scores(outcomes: Sequence[Outcome], singles: Sequence[str]) -> list[Score]:
    """One for each family of methods; none unless all single members were run."""
    means = _means(outcomes)
    if not all(name in means for name in singles):
        return []
    best = max(singles, key=lambda name: _overall(means[name])[0])  # of equals the cheapest
    families: dict[str, list[str]] = {}
    for name in means:
        found = swept(name)
        families.setdefault(found[0] if found else name, []).append(name)
    return [_score(family, names, means, singles, best) for family, names in families.items()]


def _score(
    family: str,
    names: Sequence[str],
    means: Mapping[str, Means],
    singles: Sequence[str],
    best: str,
) -> Score:
    accuracy_P, cost_P = np.array([_overall(means[name]) for name in names]).T
    top = names[int(accuracy_P.argmax())]
    accuracy, cost = _overall(means[top])
    (weak, low), (strong, high) = _overall(means[singles[0]]), _overall(means[singles[-1]])
    best_accuracy, best_cost = _overall(means[best])
    by_benchmark = {name: mean[0] for name, mean in means[top].items()}
    oracle = {name: mean[0] for name, mean in means.get(ORACLE, {}).items()}
    score = Score(
        family=family,
        points=len(names),
        accuracy=accuracy,
        net_usd=cost,
        pgr=metrics.pgr(accuracy, weak, strong),
        gain_at_best=metrics.gain(by_benchmark, {n: mean[0] for n, mean in means[best].items()}),
        gap_to_oracle=metrics.gap(by_benchmark, oracle) if oracle else nan,
        perf_gain=metrics.perf_gain(accuracy_P, best_accuracy),
        cost_save=metrics.cost_save(cost_P, accuracy_P, best_accuracy, best_cost),
        arena=metrics.arena_score(accuracy, cost * 1_000),
    )
    if len(names) == 1 or high <= low:
        return score
    share_P = np.maximum(0.0, (cost_P - low) / (high - low))
    fits = share_P <= 1  # what is dearer than the strong model is no alternative to it
    return replace(
        score,
        apgr=metrics.apgr(share_P[fits], accuracy_P[fits], weak, strong),
        cpt_80=metrics.cpt(0.8, share_P[fits], accuracy_P[fits], weak, strong),
        aiq=metrics.aiq(np.append(cost_P, low), np.append(accuracy_P, weak), low, high),
    )


def _means(outcomes: Sequence[Outcome]) -> dict[str, Means]:
    """Of each method; raises `ValueError` unless all methods did the same queries."""
    done: dict[str, dict[str, list[Outcome]]] = {}
    for o in outcomes:
        done.setdefault(o.method, {}).setdefault(o.benchmark, []).append(o)
    asked = [{name: {o.query for o in some} for name, some in by.items()} for by in done.values()]
    if any(each != asked[0] for each in asked):
        raise ValueError("scores need the same queries of all methods")
    return {
        method: {
            name: (fmean(o.right for o in some), fmean(float(o.net_usd) for o in some))
            for name, some in by.items()
        }
        for method, by in done.items()
    }


def _overall(means: Means) -> tuple[float, float]:
    accuracies, costs = zip(*means.values(), strict=True)
    return fmean(accuracies), fmean(costs)
