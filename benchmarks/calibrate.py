"""Whether `r2graph calibrate` keeps its promises, and what it gives up for that.

    python -m benchmarks.calibrate [--outcomes FILE --against METHODS] [--draws N] [--sizes N,N]

Draws samples of queries from a world in which the truth is known, calibrates on each, and holds the
quality that was chosen against the truth. The world is a file of `r2graph eval --out`, drawn from
with replacement, or without a file a made-up one, in which two levels lie just below the promise.
`broken` is the share of all samples whose promise is broken, `refused` that of those without one.
`saved` is what the choice saves against quality 1, as a share of what the lowest level that truly
keeps the promise does: the mean over all samples, a refusal saving nothing. `naive` stands for what
one would do without a test: to take the lowest level that keeps the promise on the sample.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean

from r2graph.allocate import QUALITY_LEVELS, quality_level
from r2graph.calibrate.promise import Calibration, for_cost, for_quality
from r2graph.calibrate.records import ByQuery, Done, Records, read

LEVELS = range(1, QUALITY_LEVELS + 1)
DELTA = 0.05
SEED = 1

Method = int | str  # a level of the router, or the name of another method
Row = Mapping[Method, Done]  # what became of one query


@dataclass(frozen=True)
class World:
    """Where queries come from, with the true accuracy and mean cost of each method."""

    draw: Callable[[Random, int], Sequence[Row]]
    right: Mapping[Method, float]
    usd: Mapping[Method, float]
    max_usd: float
    rivals: Sequence[str]

    def keeps(self, level: int, target: float, of: str) -> bool:
        return keeps(self.right, self.usd, self.rivals, level, target, of)


def keeps(
    right: Mapping[Method, float],
    usd: Mapping[Method, float],
    rivals: Sequence[str],
    level: int,
    target: float,
    of: str,
) -> bool:
    """Whether a level keeps a promise of quality or cost, given the means of all methods."""
    if of == "cost":
        return usd[level] <= target
    return right[level] >= target * max(right[rival] for rival in rivals)


def means(rows: Sequence[Row]) -> tuple[dict[Method, float], dict[Method, float]]:
    """Accuracy and cost of each method."""
    return (
        {method: fmean(bool(row[method].right) for row in rows) for method in rows[0]},
        {method: fmean(row[method].usd for row in rows) for method in rows[0]},
    )


def recorded(records: Records, rivals: Sequence[str]) -> World:
    """The queries of which all methods have an outcome."""
    methods: dict[Method, ByQuery] = {
        **{level: records.levels[level] for level in LEVELS},
        **{rival: records.others[rival] for rival in rivals},
    }
    queries = sorted(set.intersection(*(set(done) for done in methods.values())))
    rows = [{method: done[query] for method, done in methods.items()} for query in queries]
    most = max(row[level].usd for row in rows for level in LEVELS)
    return World(lambda random, n: random.choices(rows, k=n), *means(rows), most, rivals)


SKILLS: dict[Method, float] = dict(
    zip(LEVELS, (0.78, 0.80, 0.805, 0.83, 0.84, 0.85, 0.86, 0.865, 0.87, 0.87), strict=True)
) | {"single-1": 0.84, "single-2": 0.85}
"""How often each is right; the .95th part of the best single model's .85 is .8075."""
SHARED = 0.7  # of the queries are as hard for one as for another
USUAL, DEAR = 0.5, 5.5  # as multiples of the mean cost: nine queries of ten, and the tenth


def made_up() -> World:
    usd = {method: 1e-6 * (3 + at) for at, method in enumerate(SKILLS)}

    def query(random: Random) -> Row:
        hardness = random.random() if random.random() < SHARED else None
        cost = USUAL if random.random() < 0.9 else DEAR
        return {
            method: Done(
                (random.random() if hardness is None else hardness) < skill, cost * usd[method]
            )
            for method, skill in SKILLS.items()
        }

    def draw(random: Random, n: int) -> Sequence[Row]:
        return [query(random) for _ in range(n)]

    return World(draw, SKILLS, usd, DEAR * max(usd.values()), ("single-1", "single-2"))


def records_of(rows: Sequence[Row]) -> Records:
    """A sample as if it were read from a file; a query that was drawn twice counts twice."""
    records = Records()
    for at, row in enumerate(rows):
        for method, done in row.items():
            if isinstance(method, int):
                records.levels.setdefault(method, {})[str(at)] = done
            else:
                records.others.setdefault(method, {})[str(at)] = done
    return records


def calibrated(world: World, rows: Sequence[Row], target: float, of: str) -> Calibration:
    records = records_of(rows)
    if of == "cost":
        return for_cost(records, target, world.max_usd, DELTA)
    return for_quality(records, target, world.rivals, DELTA)


@dataclass(frozen=True)
class Figures:
    """Shares of all samples, and the mean saving."""

    broken: float
    refused: float
    saved: float
    naive_broken: float


def measure(world: World, target: float, of: str, n: int, draws: int) -> Figures:
    random = Random(SEED)
    order = LEVELS if of == "quality" else LEVELS[::-1]

    def best(right: Mapping[Method, float], usd: Mapping[Method, float]) -> int | None:
        kept = (at for at in order if keeps(right, usd, world.rivals, at, target, of))
        return next(kept, None)

    hindsight = best(world.right, world.usd)
    if hindsight is None:
        raise ValueError("no level keeps this promise")
    broken, refused, saved, naive_broken = [], [], [], []
    for _ in range(draws):
        rows = world.draw(random, n)
        found = calibrated(world, rows, target, of).chosen
        level = None if found is None else quality_level(found.quality)
        naive = best(*means(rows))
        refused.append(level is None)
        broken.append(level is not None and not world.keeps(level, target, of))
        naive_broken.append(naive is not None and not world.keeps(naive, target, of))
        saved.append(gained(world, level, of) / gained(world, hindsight, of) if level else 0.0)
    return Figures(*map(fmean, (broken, refused, saved, naive_broken)))


def gained(world: World, level: int, of: str) -> float:
    """What a level has over the other end: dollars below quality 1, or accuracy over the lowest."""
    if of == "quality":
        return world.usd[QUALITY_LEVELS] - world.usd[level]
    return world.right[level] - world.right[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--outcomes", type=Path, help="of `r2graph eval --out`")
    parser.add_argument("--against", default="plan-9", help="rivals in the file")
    parser.add_argument("--qualities", default="0.95", help="shares of the best rival's accuracy")
    parser.add_argument("--costs", default="7.9e-6", help="dollars a query")
    parser.add_argument("--sizes", default="300,1000", help="queries of a sample")
    parser.add_argument("--draws", type=int, default=200)
    given = parser.parse_args()
    if given.outcomes is None:
        world = made_up()
    else:
        world = recorded(read([given.outcomes]), given.against.split(","))
    print("promise        queries   broken  refused    saved   naive broken")
    for of, targets in (("quality", given.qualities), ("cost", given.costs)):
        for target in filter(None, targets.split(",")):
            for n in map(int, given.sizes.split(",")):
                f = measure(world, float(target), of, n, given.draws)
                shares = f"{f.broken:8.1%} {f.refused:8.1%} {f.saved:8.1%} {f.naive_broken:14.1%}"
                print(f"{of:8}{target:>6} {n:8,} {shares}", flush=True)


if __name__ == "__main__":
    main()
