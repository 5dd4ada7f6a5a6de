"""More than two models: score and cost of a fitted router, beside single models and the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from r2graph.feature_allocator import cheapest
from r2graph.replay.fit import Features, Fit, fit
from r2graph.replay.table import FOLDS, RESAMPLES, Floats, Replay, Rows

QUALITIES = tuple(round(0.05 * level, 2) for level in range(21))


@dataclass(frozen=True)
class Routed:
    """What was asked got: an array a score and a cost, repeats in front, questions behind."""

    scores: Floats
    costs: Floats

    @classmethod
    def blank(cls, *shape: int) -> Routed:
        return cls(np.zeros(shape), np.zeros(shape))

    def means(self) -> dict[str, float]:
        return {"score": float(self.scores.mean()), "cost": float(self.costs.mean())}


def evaluate_many(
    replay: Replay, repeats: int, seed: int, progress: Callable[[], None]
) -> dict[str, Any]:
    """At each quality, and at the one that the training folds suggest."""
    features = Features.of(replay.texts)
    levels = Routed.blank(repeats, len(QUALITIES), len(replay))
    router, single = (Routed.blank(repeats, len(replay)) for _ in range(2))
    for repeat in range(repeats):
        for train, test in replay.folds(FOLDS, seed + repeat):
            known, asked = replay.rows(train), replay.rows(test)
            fitted = fit(known, features=features.rows(train))
            best = int(np.argmax(known.scores.mean(axis=0)))
            found = route(fitted.model.chances(asked.texts), asked, known)
            level = suggested(fitted, known, best)
            for to, scores, costs in (
                (single, asked.scores[:, best], asked.costs[:, best]),
                (router, found.scores[level], found.costs[level]),
            ):
                to.scores[repeat, test], to.costs[repeat, test] = scores, costs
            levels.scores[repeat][:, test] = found.scores
            levels.costs[repeat][:, test] = found.costs
            progress()
    spent, scored = replay.costs.mean(axis=0), replay.scores.mean(axis=0)
    at_levels = [Routed(levels.scores[:, at], levels.costs[:, at]) for at in range(len(QUALITIES))]
    return {
        "router": router.means(),
        "best_single": single.means(),
        "router_less_best_single": _compare(router, single, replay.scores.max(axis=1), seed),
        "mixture_at_equal_cost": mixture(spent, scored, router.means()["cost"]),
        "oracle": {"score": float(replay.scores.max(axis=1).mean())},
        "by_quality": [
            {"quality": quality} | level.means()
            for quality, level in zip(QUALITIES, at_levels, strict=True)
        ],
        "singles": {
            model: {"score": float(scored[at]), "cost": float(spent[at])}
            for at, model in enumerate(replay.models)
        },
    }


def route(chances: Floats, asked: Replay, known: Replay) -> Routed:
    """What the members chosen get at each quality: qualities x texts."""
    costs = dict(zip(known.models, known.costs.mean(axis=0).tolist(), strict=True))
    rows = [dict(zip(known.models, row.tolist(), strict=True)) for row in chances]
    chosen = np.array(
        [[known.models.index(cheapest(row, costs, level)) for row in rows] for level in QUALITIES]
    )
    texts = np.arange(len(rows))
    return Routed(asked.scores[texts, chosen], asked.costs[texts, chosen])


def suggested(fitted: Fit, known: Replay, best: int) -> int:
    """The level that scored best on left-out texts, of those as cheap as the best single model."""
    found = route(fitted.left_out, known.rows(fitted.rows), known)
    cheap = found.costs.mean(axis=1) <= known.costs[fitted.rows, best].mean()
    return int(np.argmax(np.where(cheap, found.scores.mean(axis=1), -1)))


def mixture(costs: Floats, scores: Floats, cost: float) -> float:
    """The best mean score of a cost for one who draws between two models, whatever the text."""
    n = len(costs)
    cheap = [a for a in range(n) if costs[a] <= cost]
    mixed = [
        scores[a] + (scores[b] - scores[a]) * (cost - costs[a]) / (costs[b] - costs[a])
        for a in cheap
        for b in range(n)
        if costs[b] > cost
    ]
    return float(max([*mixed, *scores[cheap]], default=np.nan))


def _compare(router: Routed, single: Routed, oracle: Floats, seed: int) -> dict[str, Any]:
    """Gain in score, share of the gap to the oracle, saving, with 95 % intervals over questions."""

    def figures(rows: Rows) -> list[float]:
        base = single.scores[:, rows].mean()
        gain = float(router.scores[:, rows].mean() - base)
        saving = 1 - float(router.costs[:, rows].mean() / single.costs[:, rows].mean())
        return [gain, gain / float(oracle[rows].mean() - base), saving]

    random = np.random.default_rng(seed)
    n = len(oracle)
    mean = figures(np.arange(n))
    drawn = [figures(random.integers(0, n, n)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    names = ("gain", "share_of_gap_to_oracle", "saving")
    return {
        name: {"value": mean[at], "interval": [float(low[at]), float(high[at])]}
        for at, name in enumerate(names)
    }
