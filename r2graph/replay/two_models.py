"""Two models, and how many calls of the strong one a router needs (RouteLLM: Ong et al., 2024).

A router is a ranking of the questions: those that need the strong model most come first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.model_selection import GridSearchCV  # type: ignore[import-untyped]

from r2graph.replay.fit import Features, fit
from r2graph.replay.table import FOLDS, RESAMPLES, Floats, Replay, Rows


def quality_curve(need: Floats, weak: Floats, strong: Floats) -> Floats:
    """Mean score with 0, 1, …, n of the questions on the strong model, those of most `need`."""
    order = np.argsort(-need, kind="stable")
    gained = np.concatenate([[0.0], np.cumsum((strong - weak)[order])])
    curve: Floats = weak.mean() + gained / len(need)
    return curve


def strong_share(curve: Floats, quality: float = 0.95) -> float:
    """The least share of strong calls with which `quality` of the strong model's score is kept."""
    return int(np.argmax(curve >= quality * curve[-1] - 1e-12)) / (len(curve) - 1)


def random_share(weak: Floats, strong: Floats, quality: float = 0.95) -> float:
    """The same of questions drawn at random, in the mean."""
    low, high = float(weak.mean()), float(strong.mean())
    return (quality * high - low) / (high - low)


def apgr(curve: Floats) -> float:
    """Average performance gap recovered: of the gap from weak to strong, over all shares of calls.

    A half at random; nan without a gap.
    """
    gap = float(curve[-1] - curve[0])
    return float((curve - curve[0]).mean()) / gap if gap else float("nan")


def bag_of_words(train: Replay, texts: Sequence[str]) -> Floats:
    """The baseline: for each model a logistic regression of its success on counts of words."""
    counter = CountVectorizer()
    known, asked = counter.fit_transform(train.texts), counter.transform(texts)
    strengths = {"C": [0.003, 0.01, 0.03, 0.1]}
    search = GridSearchCV(LogisticRegression(max_iter=500), strengths, scoring="neg_brier_score")
    columns = [
        search.fit(known, right > 0.5).predict_proba(asked)[:, 1] for right in train.scores.T
    ]
    return np.column_stack(columns)


def evaluate_two(
    replay: Replay, repeats: int, seed: int, progress: Callable[[], None]
) -> dict[str, Any]:
    features = Features.of(replay.texts)
    ours, words = (np.zeros((repeats, len(replay))) for _ in range(2))
    for repeat in range(repeats):
        for train, test in replay.folds(FOLDS, seed + repeat):
            known, asked = replay.rows(train), [replay.texts[row] for row in test]
            fitted = fit(known, features=features.rows(train))
            for need, chances in (
                (ours, fitted.model.chances(asked)),
                (words, bag_of_words(known, asked)),
            ):
                need[repeat, test] = chances[:, 1] - chances[:, 0]
            progress()
    weak, strong = replay.scores.T
    perfect = quality_curve(strong - weak, weak, strong)
    return _figures(ours, weak, strong, seed) | {
        "weak": float(weak.mean()),
        "strong": float(strong.mean()),
        "random": {"strong_share_at_95": random_share(weak, strong), "apgr": 0.5},
        "bag_of_words": _figures(words, weak, strong, seed),
        "less_bag_of_words": _figures(ours, weak, strong, seed, less=words),
        "oracle": {
            "score": float(np.maximum(weak, strong).mean()),
            "strong_share_at_95": strong_share(perfect),
            "apgr": apgr(perfect),
        },
    }


def _figures(
    need: Floats, weak: Floats, strong: Floats, seed: int, less: Floats | None = None
) -> dict[str, Any]:
    """Means over the repeats with 95 % intervals; with `less`, those of the differences to it.

    An interval is over questions, drawn again and again; the one over repeats alone tells how sure
    the mean is for just these questions.
    """

    def each_repeat(rankings: Floats, rows: Rows) -> Floats:
        curves = [quality_curve(ranking[rows], weak[rows], strong[rows]) for ranking in rankings]
        return np.array([[strong_share(curve), apgr(curve)] for curve in curves])

    def both(rows: Rows) -> Floats:
        return each_repeat(need, rows) - (0 if less is None else each_repeat(less, rows))

    random = np.random.default_rng(seed)
    n, repeats = len(weak), len(need)
    found = both(np.arange(n))
    drawn = [both(random.integers(0, n, n)).mean(axis=0) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(drawn, (0.025, 0.975), axis=0)
    mean, margin = found.mean(axis=0), 1.96 * found.std(axis=0) / max(1, repeats - 1) ** 0.5
    figures: dict[str, Any] = {}
    for at, name in enumerate(("strong_share_at_95", "apgr")):
        figures[name] = float(mean[at])
        figures[f"{name}_interval"] = [float(low[at]), float(high[at])]
        figures[f"{name}_over_repeats"] = [float((mean + sign * margin)[at]) for sign in (-1, 1)]
    return figures
