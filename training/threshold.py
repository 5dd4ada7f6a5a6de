"""Choose the router's confidence threshold on recorded outcomes of training tasks.

    python -m training.threshold --pool runs/lab --out runs/lab

A step starts on its label's slot and moves up while the mean log-probability of its output is below
the threshold, as the graph does. The threshold is the one with the lowest cost among those whose
accuracy is within `SLACK` of the best.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import islice
from pathlib import Path

from r2graph.limits import Limits
from training.labels import Chances
from training.outcomes import MODELS, Outcomes
from training.router_data import ALLOCATION_SEED, ALLOCATIONS, training_queries

QUALITY_LEVEL = 9
SLACK = 0.002
CANDIDATES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.4, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    outcomes = Outcomes(arguments.pool, arguments.out / "outcomes.jsonl")
    tasks = [
        task
        for family, n in ALLOCATIONS.items()
        for task in islice(training_queries(family, ALLOCATION_SEED), n)
    ]
    chances = Chances(tasks, outcomes)
    price = {
        model: json.loads((arguments.pool / model / "training.json").read_text())["parameters"]
        for model in MODELS
    }
    steps = [
        (prompt, output, chances.label(prompt, QUALITY_LEVEL))
        for task in tasks
        for _, prompt, output in task.steps()
    ]
    attempts = Limits().max_attempts_per_step
    table = []
    for candidate in CANDIDATES:
        right, cost = 0, 0
        for prompt, output, slot in steps:
            for attempt in range(slot, min(slot + attempts, len(MODELS) + 1)):
                outcome = outcomes.get(MODELS[attempt - 1], prompt)
                cost += outcome.tokens * price[outcome.model]
                if math.log(outcome.confidence) >= -candidate:
                    break
            right += outcome.text.split() == output.split()
        table.append(
            {
                "threshold": -candidate,
                "accuracy": round(right / len(steps), 4),
                "usd_per_1000_steps": round(cost / len(steps) / 1e9, 6),
            }
        )
        print(table[-1], flush=True)
    best = max(row["accuracy"] for row in table)
    chosen = min(
        (row for row in table if row["accuracy"] >= best - SLACK),
        key=lambda row: row["usd_per_1000_steps"],
    )
    text = json.dumps({"threshold": chosen["threshold"], "table": table}, indent=1)
    (arguments.out / "threshold.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
