"""The bars that the router is held to, from the outcomes of one evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from r2graph.evaluation.compare import Interval, compare
from r2graph.evaluation.outcomes import Outcome, wilson

BENCHMARKS = ("scan-simple", "scan-length", "arith", "geo")  # arith-deep has no bar
TOGETHER = "all"

POOL_SAVING = 0.8446  # what the paper reports (v2)
NET_SAVING = 0.70
NET_RATIO = 0.7
WITHIN = 0.005  # half a point of accuracy
ROUTER_ACCURACY = {"scan-simple": 0.97, "scan-length": 0.97}
STRONGEST_PLAN_ACCURACY = {"arith": 0.85, "geo": 0.85}

ByMethod = Mapping[str, Sequence[Outcome]]


@dataclass(frozen=True)
class Bar:
    """One figure and what it should reach; the interval says how sure the verdict is."""

    bar: str
    benchmark: str
    value: float
    ci_low: float
    ci_high: float
    target: float
    at_least: bool
    """Whether the value should be at least the target, or at most."""
    passed: bool


def bars(outcomes: Sequence[Outcome]) -> list[Bar]:
    """Every bar for which the methods were run; savings are over all benchmarks together."""
    together = _by_method([o for o in outcomes if o.benchmark in BENCHMARKS])
    if not together:
        return []
    found = list(_savings(together))
    for benchmark in BENCHMARKS:
        found += _accuracies(benchmark, _by_method(o for o in outcomes if o.benchmark == benchmark))
    return found


def _savings(methods: ByMethod) -> Iterator[Bar]:
    """What the router costs against the strongest plan, and against the cheapest equal one."""
    router, strongest = methods.get("router"), _strongest(methods, "plan-")
    if router is None or strongest is None:
        return
    gain = compare(router, methods[strongest])
    yield _bar(f"pool cost saved, router vs {strongest}", TOGETHER, gain.pool_saving, POOL_SAVING)
    yield _bar(f"net cost saved, router vs {strongest}", TOGETHER, gain.net_saving, NET_SAVING)
    equal = [
        name
        for name, done in methods.items()
        if name.startswith("plan-") and _accuracy(done) >= _accuracy(router) - WITHIN
    ]
    if equal:
        rival = min(equal, key=lambda name: _net(methods[name]))
        saving = compare(router, methods[rival]).net_saving
        ratio = Interval(1 - saving.value, 1 - saving.high, 1 - saving.low)
        yield _bar(f"net cost ratio, router to {rival}", TOGETHER, ratio, NET_RATIO, at_least=False)


def _accuracies(benchmark: str, methods: ByMethod) -> Iterator[Bar]:
    """How right the router is against each rival, and where a share of right answers is due."""
    plan = _strongest(methods, "plan-")
    if router := methods.get("router"):
        singles = [name for name in methods if name.startswith("single-")]
        best = max(singles, key=lambda name: _accuracy(methods[name]), default=None)
        for rival in (best, "cot-strongest", plan):
            if rival is not None and rival in methods:
                gain = compare(router, methods[rival]).accuracy
                yield _bar(f"accuracy, router less {rival}", benchmark, gain, -WITHIN)
        if benchmark in ROUTER_ACCURACY:
            yield _share("router", benchmark, router, ROUTER_ACCURACY[benchmark])
    if plan and benchmark in STRONGEST_PLAN_ACCURACY:
        yield _share(plan, benchmark, methods[plan], STRONGEST_PLAN_ACCURACY[benchmark])


def _share(method: str, benchmark: str, done: Sequence[Outcome], target: float) -> Bar:
    interval = Interval(_accuracy(done), *wilson(sum(o.right for o in done), len(done)))
    return _bar(f"accuracy, {method}", benchmark, interval, target)


def _bar(
    name: str, benchmark: str, interval: Interval, target: float, *, at_least: bool = True
) -> Bar:
    value = interval.value
    return Bar(
        bar=name,
        benchmark=benchmark,
        value=value,
        ci_low=interval.low,
        ci_high=interval.high,
        target=target,
        at_least=at_least,
        passed=value >= target if at_least else value <= target,
    )


def _by_method(outcomes: Sequence[Outcome] | Iterator[Outcome]) -> dict[str, list[Outcome]]:
    methods: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        methods.setdefault(outcome.method, []).append(outcome)
    return methods


def _strongest(methods: ByMethod, family: str) -> str | None:
    """The method of a numbered family on the strongest member."""
    numbers = [int(name.removeprefix(family)) for name in methods if name.startswith(family)]
    return f"{family}{max(numbers)}" if numbers else None


def _accuracy(done: Sequence[Outcome]) -> float:
    return sum(outcome.right for outcome in done) / len(done)


def _net(done: Sequence[Outcome]) -> Decimal:
    return sum((outcome.net_usd for outcome in done), Decimal(0))
