"""The measures of the routing literature, each with its source.

Costs are of any unit, the same within a call; accuracies and shares are 0 to 1. A curve is P points
in any order: a router at several settings. Between two points a router may be mixed from both, by a
coin for each query, so curves are read along straight lines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from r2graph.evaluation.frontier import cost_at

Floats = NDArray[np.float64]


def pgr(accuracy: float, weak: float, strong: float) -> float:
    """Performance gap recovered (RouteLLM, arXiv 2406.18665): 0 is the weak model, 1 the strong.

    NaN where the two are as good as each other.
    """
    return (accuracy - weak) / (strong - weak) if strong != weak else math.nan


def apgr(share_P: Floats, accuracy_P: Floats, weak: float, strong: float) -> float:
    """Average PGR over the share of calls that the strong model gets, 0 to 1 (RouteLLM).

    The integral itself, where the paper takes ten points of it; a coin scores .5. The weak model
    alone and the strong one alone, at shares 0 and 1, belong to every curve.
    """
    if strong == weak:
        return math.nan
    order = np.argsort(share_P, kind="stable")
    share_P = np.concatenate(([0.0], share_P[order], [1.0]))
    recovered_P = np.concatenate(([0.0], (accuracy_P[order] - weak) / (strong - weak), [1.0]))
    return float(np.trapezoid(recovered_P, share_P))


def cpt(target: float, share_P: Floats, accuracy_P: Floats, weak: float, strong: float) -> float:
    """Call-performance threshold (RouteLLM): the least share of strong calls that recovers `target`
    of the gap; the strong model alone recovers all of it.
    """
    if strong == weak:
        return math.nan
    recovered_P = np.concatenate(([0.0], (accuracy_P - weak) / (strong - weak), [1.0]))
    share_P = np.concatenate(([0.0], share_P, [1.0]))
    return float(cost_at(np.array([[target]]), recovered_P[None], share_P[None])[0, 0])


def hull(cost_P: Floats, accuracy_P: Floats) -> tuple[Floats, Floats]:
    """The non-decreasing convex hull of a curve (RouterBench, arXiv 2403.12031): the costs and
    accuracies of its corners, from the cheapest point to the most accurate.
    """
    corners: list[tuple[float, float]] = []
    for cost, accuracy in sorted(zip(cost_P, accuracy_P, strict=True), key=lambda p: (p[0], -p[1])):
        if corners and accuracy <= corners[-1][1]:
            continue
        while len(corners) > 1 and _bends_up(corners[-2], corners[-1], (cost, accuracy)):
            corners.pop()
        corners.append((cost, accuracy))
    costs, accuracies = np.array(corners).T
    return costs, accuracies


def _bends_up(
    first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]
) -> bool:
    """Whether the line from first to last passes above the middle."""
    (x0, y0), (x1, y1), (x2, y2) = first, middle, last
    return (y1 - y0) * (x2 - x0) <= (y2 - y0) * (x1 - x0)


def aiq(cost_P: Floats, accuracy_P: Floats, low: float, high: float) -> float:
    """Average improvement in quality (RouterBench): the mean height of the hull from cost `low` to
    cost `high`, which must be the same for all that are compared.

    Beyond its dearest corner the hull is level; `low` may not be below its cheapest.
    """
    cost_C, accuracy_C = hull(cost_P, accuracy_P)
    if not cost_C[0] <= low < high:
        raise ValueError("the costs to average over must begin on the curve, and rise")
    at = np.unique(np.clip(np.concatenate((cost_C, [low, high])), low, high))
    area = np.trapezoid(np.interp(at, cost_C, accuracy_C), at)
    return float(area / (high - low))


def arena_score(
    accuracy: float,
    usd_per_1000: float,
    *,
    beta: float = 0.1,
    dearest: float = 200.0,
    cheapest: float = 0.0044,
) -> float:
    """RouterArena's score S (arXiv 2510.00202), of accuracy A and dollars for 1,000 queries c.

        S = (1 + beta) A C / (beta A + C),
        C = (log2 dearest - log2 c) / (log2 dearest - log2 cheapest)

    Costs beyond the two bounds count as the bound; comparable only where A is of their queries.
    """
    cost = min(max(usd_per_1000, cheapest), dearest)
    normal = math.log2(dearest / cost) / math.log2(dearest / cheapest)
    total = beta * accuracy + normal
    return (1 + beta) * accuracy * normal / total if total else 0.0


def gain(accuracy: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Relative gain of the mean accuracy over the benchmarks, which are the keys.

    Over the best single member it is LLMRouterBench's Gain@B (arXiv 2601.07206).
    """
    ours, theirs = (np.mean([each[name] for name in baseline]) for each in (accuracy, baseline))
    return float(ours / theirs - 1) if theirs else math.nan


def gap(accuracy: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """What the mean accuracy lacks of the oracle's, relative to it: LLMRouterBench's Gap@O."""
    return 0.0 - gain(accuracy, oracle)


def perf_gain(accuracy_P: Floats, best: float) -> float:
    """LLMRouterBench's PerfGain: the curve's highest accuracy, relative to the best single's."""
    return float(accuracy_P.max() / best - 1) if best else math.nan


def cost_save(cost_P: Floats, accuracy_P: Floats, best: float, best_cost: float) -> float:
    """LLMRouterBench's CostSave: the share of the best single member's cost that the cheapest point
    which is as accurate does without; NaN where none is.
    """
    enough = accuracy_P >= best
    return float(1 - cost_P[enough].min() / best_cost) if enough.any() and best_cost else math.nan
