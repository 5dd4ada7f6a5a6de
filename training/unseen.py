"""A router on pools that it was not trained on, through the slot mapping: the lab's pool less each
pair of its members, and with a member of a size that training never saw, beside its neighbours or
in the place of one. (Of ten members one has no slot: only a failed check leads to it.)

    python -m training.unseen --outcomes runs/outcomes.sqlite --add runs/lab/between

Test queries, the benchmarks weighing the same. `strongest` is the same pool with every step on its
strongest member, nothing checked: what the pool can do at all. A member that is added is a
directory that `training.pretrain` wrote; its price is its size, as of the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

from r2graph import ModelPool, ModelSpec, OutcomeCache, load_pool, load_router
from r2graph.allocate import StrongestAllocator, quality_level
from r2graph.lab import benchmarks
from r2graph.lab.task import Task
from r2graph.pricing import Price
from r2graph.router import Router
from r2graph.verify import CallableVerifier
from training.held_out import ended


@dataclass(frozen=True)
class Result:
    """A router, or the strongest member alone, on a pool; dollars a query."""

    accuracy: float
    net_usd: float


def result(
    pool: ModelPool,
    router: Router,
    tasks: Sequence[Task],
    level: int,
    outcomes: OutcomeCache | None,
) -> Result:
    """Means over tasks; one without a valid plan is wrong, and its cost is left out."""
    done = ended(pool, router, tasks, outcomes, level)
    valid = [each for each in done if each is not None]
    return Result(sum(right for right, _ in valid) / len(done), fmean(cost for _, cost in valid))


def added(pool: ModelPool, folder: Path) -> ModelPool:
    """The pool with the model of a directory, in the rank of its price."""
    parameters = json.loads((folder / "training.json").read_text())["parameters"]
    price = Price.model_validate(
        dict.fromkeys(("input_per_mtok", "output_per_mtok"), f"{parameters / 1e6:.6f}")
    )
    spec = ModelSpec(
        name=folder.name,
        model=f"local:{folder.resolve()}",
        price=price,
        context_length=pool[0].context_length,
        tags=frozenset({"local"}),
    )
    cheaper = sum(m.price.output_per_mtok < price.output_per_mtok for m in pool.members)
    return pool.with_member(spec, cheaper + 1)


def strongest(router: Router) -> Router:
    """The router's plans, each step on the strongest member and unchecked."""
    unchecked = CallableVerifier(lambda attempt: None)
    return replace(router, allocator=StrongestAllocator(), verifier=unchecked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--router", default="lab", help="a name or a directory")
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="directories of models")
    parser.add_argument("--benchmarks", default="scan-simple,scan-length,arith,geo")
    parser.add_argument("--limit", type=int, default=250, help="queries a benchmark")
    parser.add_argument("--quality", type=float, default=0.9)
    parser.add_argument("--outcomes", type=Path, help="an outcome cache (SQLite)")
    given = parser.parse_args()
    lab, router = load_pool("lab"), load_router(given.router)
    tasks = [
        task for name in given.benchmarks.split(",") for task in benchmarks.tasks(name, given.limit)
    ]
    pools = [("all nine", lab)]
    for folder in given.add:
        more = added(lab, folder)
        rank = more.rank(folder.name)
        pools.append((f"and {folder.name}", more))
        pools += [
            (f"{folder.name} in place of {name}", more.without(name))
            for name in (more.names[rank - 2], more.names[rank])
        ]
    pools += [(f"less {a}, {b}", lab.without(a, b)) for a, b in combinations(lab.names, 2)]
    print("| pool | router, % right | net | strongest, % right | net | saved |")
    print("|---|---|---|---|---|---|")
    with OutcomeCache(given.outcomes) if given.outcomes else nullcontext() as outcomes:
        for name, pool in pools:
            ours, theirs = (
                result(pool, each, tasks, quality_level(given.quality), outcomes)
                for each in (router, strongest(router))
            )
            print(
                f"| {name} | {ours.accuracy:.1%} | {ours.net_usd * 1e6:.2f} "
                f"| {theirs.accuracy:.1%} | {theirs.net_usd * 1e6:.2f} "
                f"| {1 - ours.net_usd / theirs.net_usd:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
