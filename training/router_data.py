"""What the lab's router is taught: plans, and slots with checks by quality level.

    python -m training.router_data --pool runs/lab --out runs/lab

Writes `planner.npz` and `allocator.npz`, corpora for `training/pretrain.py` (at this size a model
of its own, taught nothing else, plans better than one of the pool that is four times as large), and
`search.json`: what the grouped search found on the way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from training.labels import CHECK, Labels
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

Row = tuple[str, str, str]
"""The bucket, the prompt and the completion."""


@dataclass(frozen=True)
class Question:
    """What the allocator is asked: some steps at a quality level."""

    shown: tuple[str, ...]
    """The texts of the steps, as a plan has them."""
    labelled: tuple[str, ...]
    """The same, with references filled in where the graph would not ask again."""
    q: int

    @property
    def prompt(self) -> str:
        return slots_prompt(self.shown, self.q)

    def answer(self, labels: Labels) -> str:
        """What to write; raises `KeyError` if a step is of no known shape."""
        return slots_text([labels.label(text, self.q) for text in self.labelled])


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


def questions(task: Task, rng: Random) -> Iterator[Question]:
    """The whole plan as it is first seen, and each step with its references filled, at random
    quality levels.
    """
    steps = task.plan.subtasks
    prompts = [prompt for _, prompt, _ in task.steps()]
    shown = tuple(step.text for step in steps)
    yield Question(
        shown,
        tuple(s.text if s.depends_on else p for s, p in zip(steps, prompts, strict=True)),
        rng.choice(LEVELS),
    )
    for step, prompt in zip(steps, prompts, strict=True):
        if step.depends_on:
            yield Question((prompt,), (prompt,), rng.choice(LEVELS))


def asked(
    labels: Labels,
    facts: Sequence[Task],
    drawn: Mapping[str, int],
    seed: int,
    without: Collection[str] = frozenset(),
) -> Iterator[tuple[str, Question]]:
    """Questions about fresh queries, by family, half of geo's with every city equally often; and
    about every fact at every level. Those of a shape that no outcome is known of are left out, and
    so are the queries `without`.
    """
    rng = Random(seed)
    for family, n in drawn.items():
        for even in (False, True) if family == "geo" else (False,):
            share = n // 2 if family == "geo" else n
            for task in islice(training_queries(family, ALLOCATION_SEED + seed, even=even), share):
                if task.query in without:
                    continue
                for question in questions(varied(task, rng, CUT), rng):
                    if all(map(labels.knows, question.labelled)):
                        yield family, question
    for fact in facts:
        yield from (("fact", Question((fact.query,), (fact.query,), q)) for q in LEVELS)


def known(
    pool: Path, usd: Sequence[float], file: Path, checks: Sequence[float] = CHECK
) -> tuple[Labels, list[Task]]:
    """Labels from what every model of the pool says, and the facts among them; kept in a file."""
    outcomes, rng, facts = Outcomes(pool, file), Random(SEED), fact_tasks()
    tasks = [
        varied(task, rng, CUT)
        for family, n in ALLOCATED.items()
        for task in islice(training_queries(family, ALLOCATION_SEED), n)
    ]
    outcomes.fill(prompt for task in [*tasks, *facts] for _, prompt, _ in task.steps())
    texts = [fact.query for fact in facts]
    return Labels([*tasks, *facts], outcomes, usd, texts, checks), facts


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
    file = out / "outcomes.jsonl"
    labels, facts = known(pool, prices(pool), file)
    rows = (
        (f"{family}-slots", question.prompt, question.answer(labels))
        for family, question in asked(labels, facts, DRAWN, seed=1)
    )
    np.savez(out / "allocator.npz", **bucketed(rows))
    outcomes = Outcomes(pool, file)
    found = {
        family: summary(
            [
                search(task, outcomes)
                for task in track(
                    list(islice(training_queries(family, ALLOCATION_SEED), SEARCHED)), family
                )
            ]
        )
        for family in ALLOCATED
    }
    (out / "search.json").write_text(json.dumps(found, indent=1) + "\n")


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
