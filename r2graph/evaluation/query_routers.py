"""Routers that choose one member for the whole query, run on the record of what each would say.

No model is called: their outcomes are those of the single member that they choose. So none of them
is billed for choosing, which their classifiers of words do in a millisecond.

best-single         the member with the highest mean accuracy over the benchmarks, in hindsight
oracle              the cheapest member that is right, in hindsight; the cheapest where none is
random:METHOD       the strongest member or the cheapest, by a coin whose weight makes the mean
                    cost that of METHOD
knn@Q               the cheapest member whose chance to be right is at least Q of the highest of
                    all members' chances: the share of right answers among similar queries
bow@Q               the same with the chances by logistic regressions on the query's words
threshold@S         the strongest member for the share S of queries (half, if it does not say) in
                    which it is likeliest to be right and the cheapest wrong, else the cheapest
                    (RouteLLM, arXiv 2406.18665, with the threshold that gives this share)

The last three learn from other queries of the same benchmark: five folds are dealt out, each is
routed by what the other four show. Or they learn from the outcomes of an earlier evaluation, less
the queries that are in this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2graph.errors import ConfigError, MissingExtraError
from r2graph.evaluation.outcomes import Outcome

FOLDS = 5
NEIGHBOURS = 20
HALF = 0.5
SEED = 1
LEARNED = ("knn", "bow", "threshold")
BEST, ORACLE, COIN = "best-single", "oracle", "random:"

_LEARNED = re.compile(rf"({'|'.join(LEARNED)})(?:@([0-9]*\.?[0-9]+))?")

Floats = NDArray[np.float64]
Table = Mapping[str, Sequence[Outcome]]
"""Outcomes by method, each method's in the same order of queries."""


def learned(name: str) -> tuple[str, float | None] | None:
    """Which of the learning routers a method is, and at which setting if it says so."""
    found = _LEARNED.fullmatch(name)
    return (found[1], float(found[2]) if found[2] else None) if found else None


def is_query_router(name: str) -> bool:
    return name in (BEST, ORACLE) or name.startswith(COIN) or learned(name) is not None


def hangs_on_another(name: str) -> bool:
    """Whether the outcomes of another method are needed, which may be a query router itself."""
    return name.startswith(COIN)


class QueryRouters:
    """What they choose, from the outcomes of each benchmark; `singles` are methods, cheapest first.

    `before` are outcomes of an earlier evaluation to learn from. The setting that `knn` or `bow`
    leaves out is `quality`.
    """

    def __init__(
        self,
        benchmarks: Mapping[str, Table],
        singles: Sequence[str],
        *,
        quality: float = 0.9,
        before: Sequence[Outcome] | None = None,
    ) -> None:
        self.benchmarks = benchmarks
        self.singles = singles
        self.quality = quality
        self.before = before
        self._chances: dict[tuple[str, str], Floats] = {}

    def outcomes(self, benchmark: str, name: str) -> list[Outcome]:
        """The outcomes of a query router; raises `ConfigError` where those it hangs on are not."""
        table = self.benchmarks[benchmark]
        if name.startswith(COIN) and name.removeprefix(COIN) not in table:
            raise ConfigError(f"{name} needs {name.removeprefix(COIN)} among the methods")
        done = [table[single] for single in self.singles]
        return [
            replace(done[rank][at], method=name)
            for at, rank in enumerate(self._ranks(benchmark, name))
        ]

    def _ranks(self, benchmark: str, name: str) -> Sequence[int]:
        """Which member gets each query, counted from 0."""
        table = self.benchmarks[benchmark]
        cheapest, strongest = table[self.singles[0]], table[self.singles[-1]]
        if name == BEST:
            return [self.best] * len(cheapest)
        if name == ORACLE:
            right_QM = np.array([[o.right for o in table[single]] for single in self.singles]).T
            return [int(at) for at in right_QM.argmax(1)]
        if name.startswith(COIN):
            share = _share(table[name.removeprefix(COIN)], cheapest, strongest)
            top = len(self.singles) - 1
            return [top * (Random(f"{SEED} {o.query}").random() < share) for o in cheapest]
        found = learned(name)
        assert found is not None
        family, setting = found
        chances = self.chances(benchmark, family)
        if family == "threshold":
            share = HALF if setting is None else setting
            likeliest = np.argsort(-chances[:, 0], kind="stable")[: round(share * len(chances))]
            taken = set(likeliest.tolist())
            return [(len(self.singles) - 1) * (at in taken) for at in range(len(chances))]
        setting = self.quality if setting is None else setting
        return [int(at) for at in (chances >= setting * chances.max(1, keepdims=True)).argmax(1)]

    @property
    def best(self) -> int:
        """The member with the highest mean of its accuracies on the benchmarks; of equals the
        cheapest.
        """
        means = [
            fmean(fmean(o.right for o in table[single]) for table in self.benchmarks.values())
            for single in self.singles
        ]
        return means.index(max(means))

    def chances(self, benchmark: str, family: str) -> Floats:
        """QM, out of fold: each member's chance to be right; of `threshold` Q1, that it takes the
        strongest.
        """
        if (benchmark, family) not in self._chances:
            self._chances[benchmark, family] = self._learn(benchmark, family)
        return self._chances[benchmark, family]

    def _learn(self, benchmark: str, family: str) -> Floats:
        queries, right_QM = _labels(self.benchmarks[benchmark], self.singles)
        fit = _neighbours if family == "knn" else _regressions
        require_lessons(benchmark, queries, self.singles, self.before)
        if self.before is not None:
            known, known_QM = _earlier(benchmark, queries, self.singles, self.before)
            return fit(known, _target(known_QM, family), queries)
        label_QM = _target(right_QM, family)
        dealt = [at % FOLDS for at in range(len(queries))]
        Random(SEED).shuffle(dealt)
        folds = np.array(dealt)
        chances = np.zeros(label_QM.shape)
        for fold in set(dealt):
            held = folds == fold
            others = [query for query, out in zip(queries, held, strict=True) if not out]
            asked = [query for query, out in zip(queries, held, strict=True) if out]
            chances[held] = fit(others, label_QM[~held], asked)
        return chances


def require_lessons(
    benchmark: str,
    queries: Sequence[str],
    singles: Sequence[str],
    before: Sequence[Outcome] | None,
) -> None:
    """Raise `ConfigError` if there would be nothing to learn from."""
    if before is None and len(queries) < 2:
        raise ConfigError("a router that learns from other queries needs at least two")
    if before is not None and not _earlier(benchmark, queries, singles, before)[0]:
        raise ConfigError(
            f"there is nothing to learn {benchmark} from: the earlier outcomes must have single-1 "
            "to the last member on other queries of it"
        )


def _earlier(
    benchmark: str, tested: Sequence[str], singles: Sequence[str], before: Sequence[Outcome]
) -> tuple[list[str], Floats]:
    """Queries of the earlier evaluation that all members were asked, and who was right."""
    right: dict[str, dict[str, bool]] = {}
    for o in before:
        if o.benchmark == benchmark:
            right.setdefault(o.query, {})[o.method] = o.right
    for query in tested:
        right.pop(query, None)
    whole = {q: by for q, by in right.items() if all(name in by for name in singles)}
    rows = [[by[name] for name in singles] for by in whole.values()]
    return list(whole), np.array(rows, dtype=np.float64)


def _labels(table: Table, singles: Sequence[str]) -> tuple[list[str], Floats]:
    queries = [outcome.query for outcome in table[singles[0]]]
    rows = [[outcome.right for outcome in table[single]] for single in singles]
    return queries, np.array(rows, dtype=np.float64).T


def _target(right_QM: Floats, family: str) -> Floats:
    """What is learned: who is right, or that the strongest is and the cheapest is not."""
    if family != "threshold":
        return right_QM
    return right_QM[:, -1:] * (1 - right_QM[:, :1])


def _share(done: Sequence[Outcome], cheap: Sequence[Outcome], strong: Sequence[Outcome]) -> float:
    """How often the strongest must be asked to cost what a method does."""
    cost, low, high = (float(sum(o.net_usd for o in each)) for each in (done, cheap, strong))
    return min(1.0, max(0.0, (cost - low) / (high - low))) if high != low else 0.0


def _vectors(known: Sequence[str], asked: Sequence[str]) -> tuple[Any, Any]:
    """Words and pairs of them, weighted by how rare they are."""
    try:
        from sklearn.feature_extraction.text import (  # type: ignore[import-untyped]
            TfidfVectorizer,
        )
    except ModuleNotFoundError:
        raise MissingExtraError("a router that learns from outcomes", "eval") from None
    # Any run of signs is a word: lone letters, numbers and operators tell queries apart too.
    words = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True)
    return words.fit_transform(known), words.transform(asked)


def _neighbours(known: Sequence[str], label_QM: Floats, asked: Sequence[str]) -> Floats:
    known_QW, asked_AW = _vectors(known, asked)
    near_AQ = (asked_AW @ known_QW.T).toarray()  # cosines
    k = min(NEIGHBOURS, len(known))
    nearest_AK = np.argsort(-near_AQ, axis=1, kind="stable")[:, :k]
    chances: Floats = label_QM[nearest_AK].mean(axis=1)
    return chances


def _regressions(known: Sequence[str], label_QM: Floats, asked: Sequence[str]) -> Floats:
    known_QW, asked_AW = _vectors(known, asked)
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    chances = np.empty((len(asked), label_QM.shape[1]))
    for member, label_Q in enumerate(label_QM.T):
        if (label_Q == label_Q[0]).all():  # nothing to tell apart
            chances[:, member] = label_Q[0]
            continue
        model = LogisticRegression(max_iter=1_000).fit(known_QW, label_Q)
        chances[:, member] = model.predict_proba(asked_AW)[:, 1]
    return chances
