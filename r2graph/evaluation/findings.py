"""What a report says of an evaluation, in numbers and examples.

Means are over the queries of each benchmark, then over the benchmarks, which weigh the same, and
intervals of queries drawn again, as in `frontier`: a saving is paired, query by query.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from r2graph.evaluation.causes import CAUSES, Cause, Causes
from r2graph.evaluation.compare import Interval
from r2graph.evaluation.frontier import ACCURACY, NET, Floats, resampled
from r2graph.evaluation.lineup import OWN, routed, swept
from r2graph.evaluation.outcomes import Outcome, Purpose, Row, rows
from r2graph.evaluation.query_routers import ORACLE
from r2graph.evaluation.setup import Setup, pool_of
from r2graph.trace import Trace

SINGLE = "single-"
PURPOSES: tuple[Purpose, ...] = ("step", "failed attempt", "router", "verifier")
KINDS = ("right", "escalated", "wrong")
SHOWN = 2  # examples of a kind


@dataclass(frozen=True)
class Standing:
    """One method on all benchmarks; costs are net, in dollars a query."""

    method: str
    family: str
    """The same of a router at several qualities."""
    quality: float | None
    accuracy: Interval
    net_usd: Interval
    gained: Interval | None
    """Accuracy less that of the best single member."""
    saved: Interval | None
    """The share of its cost that this one does without."""


class Spent(NamedTuple):
    """What a query pays one model for one purpose, on average."""

    method: str
    purpose: Purpose
    member: str
    calls: float
    usd: float


@dataclass(frozen=True)
class Failures:
    """How many answers of a method are wrong, and why."""

    method: str
    causes: Mapping[Cause, int]

    @property
    def wrong(self) -> int:
        return sum(self.causes.values())


@dataclass(frozen=True)
class Example:
    """One run; `kind` is one of `KINDS`, `cause` that of a wrong answer."""

    kind: str
    benchmark: str
    method: str
    trace: Trace
    expected: str
    cause: Cause | None
    paid: Sequence[Spent]


@dataclass(frozen=True)
class Findings:
    """All of them, methods in the order of the evaluation."""

    pool: str
    members: Sequence[str]
    router: str | None
    quality: float
    n: int
    """Queries, on all benchmarks."""
    benchmarks: Sequence[str]
    headline: Standing
    """The method that the report is about."""
    best: Standing | None
    """The best single member, in hindsight; `None` if none was run alone."""
    standings: Sequence[Standing]
    rows: Sequence[Row]
    spent: Sequence[Spent]
    failures: Sequence[Failures]
    examples: Sequence[Example]
    undetailed: int
    """Outcomes that an earlier run put on record without detail."""
    stopped: bool


def findings(setup: Setup, outcomes: Sequence[Outcome], *, stopped: bool = False) -> Findings:
    """What the outcomes of an evaluation say; there must be some, with detail."""
    pool = pool_of(setup)
    means = resampled(outcomes)
    alone = [name for name in means if name.startswith(SINGLE)]
    alone.sort(key=lambda name: int(name.removeprefix(SINGLE)))  # of equals the cheapest
    best = max(alone, key=lambda name: means[name][0, ACCURACY], default=None)
    standings = {name: _standing(name, means, best) for name in means}
    headline = _headline(list(means), setup.quality)
    causes = Causes(outcomes, pool.names)
    return Findings(
        pool=pool.name,
        members=pool.names,
        router=setup.router,
        quality=setup.quality,
        n=len({(o.benchmark, o.query) for o in outcomes}),
        benchmarks=list(dict.fromkeys(o.benchmark for o in outcomes)),
        headline=standings[headline],
        best=standings[best] if best else None,
        standings=list(standings.values()),
        rows=rows(outcomes),
        spent=sorted(_spent(outcomes), key=_place(list(means), pool.names)),
        failures=[_failures(name, outcomes, causes) for name in means],
        examples=_examples([o for o in outcomes if o.method == headline], causes, pool.names),
        undetailed=sum(o.detail is None for o in outcomes),
        stopped=stopped,
    )


def _headline(methods: Sequence[str], quality: float) -> str:
    """The router at the evaluation's quality, else at its highest; else what makes plans."""
    own = [(found[1], name) for name in methods if (found := routed(name)) and found[0] in OWN]
    if own:
        return next((name for at, name in own if at in (None, quality)), own[-1][1])
    whole = (SINGLE, "cot-", "tot-", ORACLE, "best-single")
    return next((name for name in methods if not name.startswith(whole)), methods[0])


def _standing(name: str, means: Mapping[str, Floats], best: str | None) -> Standing:
    accuracy_R, net_R = means[name][:, ACCURACY], means[name][:, NET]
    run = swept(name)
    gained = saved = None
    if best is not None:
        gained = _interval(accuracy_R - means[best][:, ACCURACY])
        reference_R = means[best][:, NET]
        if (reference_R > 0).all():
            saved = _interval(1 - net_R / reference_R)
    return Standing(
        method=name,
        family=run[0] if run else name,
        quality=run[1] if run else None,
        accuracy=_interval(accuracy_R),
        net_usd=_interval(net_R),
        gained=gained,
        saved=saved,
    )


def _interval(values_R: Floats) -> Interval:
    low, high = np.quantile(values_R[1:], (0.025, 0.975))
    return Interval(float(values_R[0]), float(low), float(high))


def _spent(outcomes: Sequence[Outcome]) -> Iterator[Spent]:
    """Means as those of costs, so that a method's amounts add up to its net cost."""
    sizes = Counter((o.method, o.benchmark) for o in outcomes)
    benchmarks = len({o.benchmark for o in outcomes})
    calls: dict[tuple[str, Purpose, str], float] = {}
    usd: dict[tuple[str, Purpose, str], float] = {}
    for o in outcomes:
        weight = 1 / (sizes[o.method, o.benchmark] * benchmarks)
        for paid in o.detail.paid if o.detail else ():
            key = o.method, paid.purpose, paid.member
            calls[key] = calls.get(key, 0.0) + paid.calls * weight
            usd[key] = usd.get(key, 0.0) + float(Decimal(paid.usd)) * weight
    for key, amount in usd.items():
        yield Spent(*key, calls[key], amount)


def _failures(method: str, outcomes: Sequence[Outcome], causes: Causes) -> Failures:
    found = Counter(causes.of(o) for o in outcomes if o.method == method and not o.right)
    return Failures(method, {cause: found[cause] for cause in CAUSES})


def _place(
    methods: Sequence[str], members: Sequence[str]
) -> Callable[[Spent], tuple[int, int, int]]:
    """The order of methods, purposes and members; models of the router come after the pool's."""
    at = {name: rank for rank, name in enumerate(members)}
    return lambda line: (
        methods.index(line.method),
        PURPOSES.index(line.purpose),
        at.get(line.member, len(at)),
    )


def _examples(outcomes: Sequence[Outcome], causes: Causes, members: Sequence[str]) -> list[Example]:
    """A few of each kind, of as many benchmarks as there are; of right ones the most thrifty."""
    told = [_example(o, causes, members) for o in outcomes if o.detail and o.detail.example]
    chosen: list[Example] = []
    for kind in KINDS:
        some = sorted((each for each in told if each.kind == kind), key=_thrift)
        first = list({each.benchmark: each for each in reversed(some)}.values())
        rest = [each for each in some if each not in first]
        chosen += [*first, *rest][:SHOWN]
    return chosen


def _thrift(example: Example) -> Decimal:
    """What it cost of what the same steps would have cost on the strongest member."""
    cost, dearest = map(Decimal, (example.trace.cost_usd, example.trace.counterfactual_usd))
    return cost / dearest if dearest else Decimal(1)


def _example(outcome: Outcome, causes: Causes, members: Sequence[str]) -> Example:
    assert outcome.detail is not None
    assert outcome.detail.example is not None
    paid = [
        Spent(outcome.method, line.purpose, line.member, line.calls, float(line.usd))
        for line in outcome.detail.paid
    ]
    return Example(
        kind=outcome.detail.example["kind"],
        benchmark=outcome.benchmark,
        method=outcome.method,
        trace=Trace.model_validate(outcome.detail.example["trace"]),
        expected=outcome.detail.example["expected"],
        cause=None if outcome.right else causes.of(outcome),
        paid=sorted(paid, key=_place([outcome.method], members)),
    )
