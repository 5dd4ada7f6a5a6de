"""What the lab's router is taught: plans, and slots with checks by quality level.

    python -m training.router_data --pool runs/lab --out runs/lab

Writes `planner.npz` and `allocator.npz`, corpora for `training/pretrain.py` (at this size a model
of its own, taught nothing else, plans better than one of the pool that is four times as large), and
`search.json`: what the grouped search found on the way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
from rich.progress import track

from r2graph.allocate import slots_prompt, slots_text
from r2graph.decompose import plan_prompt
from r2graph.lab import geo
from r2graph.lab.task import Task
from r2graph.plan import render_text, single
from training.corpus import bucketed
from training.labels import Labels
from training.outcomes import MODELS, Outcomes, prices
from training.queries import training_queries, varied, whole
from training.search import Found, search

SEED = 2
ALLOCATION_SEED = 3
# Queries of each family: to plan, to know outcomes of, to allocate.
PLANNED = {"scan": 13_576, "arith": 800_000, "geo": 250_000}
ALLOCATED = {"scan": 400, "arith": 7_000, "geo": 9_000}
DRAWN = {"scan": 6_000, "arith": 100_000, "geo": 130_000}
CUT = 0.25  # share of the plans of arith that the allocator sees with long operations cut
LEVELS = range(1, 11)
SEARCHED = 500  # tasks of each family

Pair = tuple[str, str]
Row = tuple[str, str, str]
"""The bucket, the prompt and the completion."""


def plans() -> Iterator[Row]:
    """Oracle plans, long products whole; every city equally often, for a name is but copied."""
    for family, n in PLANNED.items():
        for task in islice(training_queries(family, SEED, even=True), n):
            yield f"{family}-plan", plan_prompt(task.query), render_text(whole(task).plan)


def fact_tasks() -> list[Task]:
    """Every fact of geo that a step can ask for, as a task of one step."""
    known = geo.facts()
    facts = {f"country of {city}": country for city, country in known.country_of.items()}
    for name, country in known.countries.items():
        facts |= {f"{key} of {name}": country[key] for key in geo.ATTRIBUTES if country.get(key)}
    for key in geo.KEYS:
        facts |= {f"country with {key} {at}": name for at, name in known.by_key[key].items()}
    return [
        Task("geo", text, output, single(text), {"s1": output}, {"s1": "fact"})
        for text, output in facts.items()
    ]


def allocation_rows(task: Task, labels: Labels, rng: Random) -> Iterator[Pair]:
    """The whole plan as it is first seen, and each step with its references filled, at random
    quality levels.
    """
    steps = task.plan.subtasks
    prompts = [prompt for _, prompt, _ in task.steps()]
    seen = [
        step.text if step.depends_on else prompt
        for step, prompt in zip(steps, prompts, strict=True)
    ]
    again = [([p], [p]) for step, p in zip(steps, prompts, strict=True) if step.depends_on]
    for texts, labelled in [([step.text for step in steps], seen), *again]:
        q = rng.choice(LEVELS)
        yield slots_prompt(texts, q), slots_text([labels.label(text, q) for text in labelled])


def allocations(labels: Labels, facts: Sequence[Task]) -> Iterator[Row]:
    """Plans of fresh queries, half of geo's with every city equally often; every fact at every
    level.
    """
    rng = Random(SEED)
    for family, n in DRAWN.items():
        for even in (False, True) if family == "geo" else (False,):
            share = n // 2 if family == "geo" else n
            for task in islice(training_queries(family, ALLOCATION_SEED + 1, even=even), share):
                try:
                    rows = list(allocation_rows(varied(task, rng, CUT), labels, rng))
                except KeyError:  # a shape of step that no outcome is known of
                    continue
                for prompt, completion in rows:
                    yield f"{family}-slots", prompt, completion
    for fact in facts:
        for q in LEVELS:
            choice = labels.label(fact.query, q)
            yield "fact-slots", slots_prompt([fact.query], q), slots_text([choice])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=("planner", "allocator"))
    arguments = parser.parse_args()
    if arguments.only in (None, "planner"):
        np.savez(arguments.out / "planner.npz", **bucketed(plans()))
    if arguments.only in (None, "allocator"):
        write_allocations(arguments.pool, arguments.out)


def write_allocations(pool: Path, out: Path) -> None:
    outcomes = Outcomes(pool, out / "outcomes.jsonl")
    by_family = {
        family: list(islice(training_queries(family, ALLOCATION_SEED), n))
        for family, n in ALLOCATED.items()
    }
    rng, facts = Random(SEED), fact_tasks()
    tasks = [varied(task, rng, CUT) for group in by_family.values() for task in group] + facts
    outcomes.fill(prompt for task in tasks for _, prompt, _ in task.steps())
    found = {
        family: summary([search(task, outcomes) for task in track(group[:SEARCHED], family)])
        for family, group in by_family.items()
    }
    (out / "search.json").write_text(json.dumps(found, indent=1) + "\n")
    labels = Labels(tasks, outcomes, prices(pool), [fact.query for fact in facts])
    np.savez(out / "allocator.npz", **bucketed(allocations(labels, facts)))


def summary(found: list[Found]) -> dict[str, object]:
    slots = [slot for item in found if item.right for slot in item.slots]
    return {
        "tasks": len(found),
        "right": sum(item.right for item in found),
        "executions": sum(item.executions for item in found),
        "slots": {model: slots.count(i) for i, model in enumerate(MODELS, start=1)},
    }


if __name__ == "__main__":
    main()
