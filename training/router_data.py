"""SFT data of the lab's router: plans for the decomposer, slots per quality level for the
allocator.

    python -m training.router_data --pool runs/lab --out runs/lab

Writes `decomposer.jsonl`, `decomposer-arith.jsonl`, `allocator.jsonl` (TRL's conversational
prompt/completion form), and `search.json`: what the grouped search found on the way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

from langchain_core.messages import HumanMessage
from rich.progress import track

from r2graph.allocate import slots_prompt, slots_text
from r2graph.decompose import plan_prompt
from r2graph.lab.task import Task
from r2graph.plan import render_text
from training.labels import Labels
from training.outcomes import MODELS, Outcomes, prices
from training.queries import training_queries, varied, whole
from training.rows import row
from training.search import search

SEED = 2
ALLOCATION_SEED = 3
PLANS = {
    "decomposer": {"scan": 13_576, "arith": 100_000, "geo": 60_000},
    # A second course: precedence takes a small planner longer than the rest.
    "decomposer-arith": {"scan": 13_576, "arith": 260_000, "geo": 30_000},
}
ALLOCATIONS = {"scan": 400, "arith": 7_000, "geo": 9_000}
CUT = 0.25  # share of the plans of arith that the allocator sees with long operations cut
LEVELS_PER_PLAN = 2
SEARCHED = 500  # tasks of each family


def allocation_rows(task: Task, labels: Labels, rng: Random) -> Iterator[str]:
    """The whole plan as it is first seen, and each step with its references filled, at random
    quality levels.
    """
    for _ in range(LEVELS_PER_PLAN):
        q = rng.randint(1, 10)
        steps = task.plan.subtasks
        prompts = [prompt for _, prompt, _ in task.steps()]
        seen = [
            step.text if step.depends_on else prompt
            for step, prompt in zip(steps, prompts, strict=True)
        ]
        slots = [(labels.label(text, q), None) for text in seen]
        texts = [step.text for step in steps]
        yield row([HumanMessage(slots_prompt(texts, q))], slots_text(slots))
        for step, prompt in zip(steps, prompts, strict=True):
            if step.depends_on:
                asked = HumanMessage(slots_prompt([prompt], q))
                yield row([asked], slots_text([(labels.label(prompt, q), None)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=(*PLANS, "allocator"))
    arguments = parser.parse_args()
    for seed, (name, counts) in enumerate(PLANS.items(), start=SEED):
        if arguments.only in (None, name):
            write_plans(arguments.out / f"{name}.jsonl", counts, seed)
    if arguments.only in (None, "allocator"):
        write_allocations(arguments.pool, arguments.out)


def write_plans(path: Path, counts: dict[str, int], seed: int) -> None:
    # A planner has to copy any name, not to know it: every city equally often.
    tasks = [
        task
        for family, n in counts.items()
        for task in islice(training_queries(family, seed, even=True), n)
    ]
    Random(seed).shuffle(tasks)
    with path.open("w") as file:
        for task in map(whole, tasks):
            file.write(row([HumanMessage(plan_prompt(task.query))], render_text(task.plan)) + "\n")


def write_allocations(pool: Path, out: Path) -> None:
    outcomes = Outcomes(pool, out / "outcomes.jsonl")
    by_family = {
        family: list(islice(training_queries(family, ALLOCATION_SEED), n))
        for family, n in ALLOCATIONS.items()
    }
    rng = Random(SEED)
    every = [task for group in by_family.values() for task in group]
    tasks = [varied(task, rng, CUT) for task in every]
    outcomes.fill(prompt for task in tasks for _, prompt, _ in task.steps())
    found = {
        family: summary([search(task, outcomes) for task in track(group[:SEARCHED], family)])
        for family, group in by_family.items()
    }
    (out / "search.json").write_text(json.dumps(found, indent=1) + "\n")
    labels = Labels(tasks, outcomes, prices(pool))
    rows = [line for task in tasks for line in allocation_rows(task, labels, rng)]
    rng.shuffle(rows)
    (out / "allocator.jsonl").write_text("\n".join(rows) + "\n")


def summary(found: list) -> dict[str, object]:
    slots = [slot for item in found if item.right for slot in item.slots]
    return {
        "tasks": len(found),
        "right": sum(item.right for item in found),
        "executions": sum(item.executions for item in found),
        "slots": {model: slots.count(i) for i, model in enumerate(MODELS, start=1)},
    }


if __name__ == "__main__":
    main()
