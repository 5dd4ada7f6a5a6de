"""The quality of a router that keeps a promise about queries to come.

Learn then test (Angelopoulos et al., arXiv 2110.01052): that a level breaks the promise is a
hypothesis, and a level is used if its hypothesis is rejected. Levels are tested in a fixed
sequence, the likeliest to pass first, up to the first that fails: each at the whole of δ, and the
chance that any of those that pass breaks the promise is still at most δ.

Which of several methods is best nobody knows either: what is right a share as often as the best is
so against each, and its p-value is the largest of those. This costs nothing, however many they are
(an intersection-union test).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

from r2graph.allocate import QUALITY_LEVELS
from r2graph.calibrate.betting import enough, interval, p_value
from r2graph.calibrate.records import ByQuery, Records
from r2graph.errors import ConfigError

SEED = 1

Interval = tuple[float, float]


@dataclass(frozen=True)
class LevelTest:
    """A level put to the test on `n` queries, with what they cost on average."""

    quality: float
    n: int
    accuracy: float | None
    """`None` where nobody has said of all answers whether they are right."""
    usd: float
    p: float
    holds: bool
    enough: int | None
    """About how many queries would do if they went like these; `None`: no number would."""
    rival: str | None = None
    """The method that was hardest to hold against."""


@dataclass(frozen=True)
class Calibration:
    """The levels that were tested, in their sequence; the last that holds is chosen."""

    promise: str
    delta: float
    tests: tuple[LevelTest, ...]
    chosen: LevelTest | None
    """`None`: the data cannot support the promise at any level."""


@dataclass(frozen=True)
class Intervals:
    """Of a level's means; those of all levels hold at once with probability 1-δ."""

    accuracy: Interval | None
    usd: Interval | None
    """`None` where nobody has said what a query can cost at most."""


def for_quality(
    records: Records, share: float, against: Sequence[str], delta: float
) -> Calibration:
    """The lowest level that is right at least `share` times as often as each of some methods."""
    for name in against:
        if name not in records.others:
            raise ConfigError(f"there is no outcome of {name!r} to hold the router against")
    if not against:
        raise ConfigError("there is no outcome of a single model to hold the router against")

    def test(level: int) -> LevelTest:
        tests = (_held_against(name, level, records, share, delta) for name in against)
        return max(tests, key=lambda test: test.p)

    best = against[0] if len(against) == 1 else f"the best of {', '.join(against)}"
    promise = f"right at least {share:g} times as often as {best}"
    levels = sorted(records.levels, reverse=True)
    return _calibrated(promise, delta, map(test, levels))


def for_cost(records: Records, usd: float, max_usd: float, delta: float) -> Calibration:
    """The highest level whose mean cost is at most `usd`, where no query costs over `max_usd`."""
    if not 0 < usd < max_usd:
        raise ConfigError("the target must lie between 0 and what one query can cost at most")
    for done in records.levels.values():
        _bound(done, max_usd)

    def test(level: int) -> LevelTest:
        done = records.levels[level]
        gains = [usd - done[query].usd for query in shuffled(done)]
        return _tested(level, done, gains, max_usd - usd, usd, delta)

    return _calibrated(f"at most ${usd:g} a query", delta, map(test, sorted(records.levels)))


def intervals(records: Records, level: int, delta: float, max_usd: float | None) -> Intervals:
    """Of all queries that a level was tried on."""
    done, share = records.levels[level], delta / QUALITY_LEVELS
    runs = [done[query] for query in shuffled(done)]
    rights = [float(run.right) for run in runs if run.right is not None]
    usd = None
    if max_usd is not None:
        _bound(done, max_usd)
        usd = interval([run.usd for run in runs], 0, max_usd, share)
    return Intervals(interval(rights, 0, 1, share) if rights else None, usd)


def shuffled(queries: Iterable[str]) -> list[str]:
    """Queries in an order of no meaning, and always the same.

    Not that of a hash: by one, queries are often split into those to train on and those to test.
    """
    ordered = sorted(queries)
    Random(SEED).shuffle(ordered)
    return ordered


def _held_against(
    rival: str, level: int, records: Records, share: float, delta: float
) -> LevelTest:
    own, others = records.levels[level], records.others[rival]
    both = [
        query
        for query in shuffled(own.keys() & others.keys())
        if own[query].right is not None and others[query].right is not None
    ]
    if not both:
        raise ConfigError(f"there is no query that both the router and {rival!r} were graded on")
    gains = [bool(own[query].right) - share * bool(others[query].right) for query in both]
    return _tested(level, {query: own[query] for query in both}, gains, share, 1.0, delta, rival)


def _tested(
    level: int,
    done: ByQuery,
    gains: Sequence[float],
    worst: float,
    best: float,
    delta: float,
    rival: str | None = None,
) -> LevelTest:
    rights = [each.right for each in done.values()]
    p = p_value(gains, worst, best, delta)
    return LevelTest(
        quality=level / QUALITY_LEVELS,
        n=len(done),
        accuracy=None if None in rights else fmean(map(bool, rights)),
        usd=fmean(each.usd for each in done.values()),
        p=p,
        holds=p <= delta,
        enough=enough(gains, worst, delta),
        rival=rival,
    )


def _calibrated(promise: str, delta: float, sequence: Iterable[LevelTest]) -> Calibration:
    tests: list[LevelTest] = []
    for test in sequence:
        tests.append(test)
        if not test.holds:
            break
    if not tests:
        raise ConfigError("there is no outcome of the router at a quality: evaluate router@all")
    holding = [test for test in tests if test.holds]
    return Calibration(promise, delta, tuple(tests), holding[-1] if holding else None)


def _bound(done: ByQuery, max_usd: float) -> None:
    if any(each.usd > max_usd for each in done.values()):
        raise ConfigError(f"a query has cost more than ${max_usd:g}, which is called the most")
