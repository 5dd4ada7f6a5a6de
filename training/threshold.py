"""Choose the router's confidence threshold on training queries that it was not trained on.

    python -m training.threshold --pool runs/lab --out runs/lab

The trained allocator chooses a slot for each step of oracle plans at the default quality; a step
moves up while the mean log-probability of its output is below the threshold, as in the graph. Of
the thresholds whose accuracy on whole tasks is within `SLACK` of the best, the cheapest is taken.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from r2graph.local.engine import open_engine
from r2graph.local.generation import Options
from training.outcomes import MODELS, Outcomes
from training.router_data import training_queries

TASKS = 700  # of arith and of geo; every phrase of scan is certain
SEED = 4
QUALITY_LEVEL = 9
SLACK = 0.005
CANDIDATES = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)

Climb = tuple[bool, int]  # whether the step is right in the end, and what it cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    outcomes = Outcomes(arguments.pool, arguments.out / "heldout.jsonl")
    tasks = [task for f in ("arith", "geo") for task in islice(training_queries(f, SEED), TASKS)]
    steps = [[(prompt, output) for _, prompt, output in task.steps()] for task in tasks]
    prompts = list(dict.fromkeys(prompt for each in steps for prompt, _ in each))
    outcomes.fill(prompts)
    slots = allocated(arguments.out / "router/allocator", prompts)
    prices = [
        json.loads((arguments.pool / model / "training.json").read_text())["parameters"]
        for model in MODELS
    ]

    def climb(prompt: str, output: str, threshold: float) -> Climb:
        cost = 0
        for model, price in list(zip(MODELS, prices, strict=True))[slots[prompt] - 1 :]:
            outcome = outcomes.get(model, prompt)
            cost += outcome.tokens * price
            if math.log(outcome.confidence) >= threshold:
                break
        return outcome.text.split() == output.split(), cost

    table = []
    for threshold in (-candidate for candidate in CANDIDATES):
        climbs = [[climb(*step, threshold) for step in each] for each in steps]
        right = sum(all(ok for ok, _ in each) for each in climbs)
        cost = sum(cost for each in climbs for _, cost in each)
        row = {
            "threshold": threshold,
            "accuracy": round(right / len(tasks), 4),
            "usd_per_1000_tasks": round(cost / len(tasks) / 1e9, 6),
        }
        print(row, flush=True)
        table.append(row)
    best = max(row["accuracy"] for row in table)
    enough = [row for row in table if row["accuracy"] >= best - SLACK]
    chosen = min(enough, key=lambda row: row["usd_per_1000_tasks"])
    text = json.dumps({"threshold": chosen["threshold"], "table": table}, indent=1)
    (arguments.out / "threshold.json").write_text(text + "\n")


def allocated(allocator: Path, prompts: Sequence[str]) -> dict[str, int]:
    """The allocator's slot for each prompt; what does not read as one starts on slot 1."""
    engine = open_engine(str(allocator), "auto", "float32", 128)
    asked = {
        prompt: engine.submit(
            [{"role": "user", "content": f"q{QUALITY_LEVEL}\ns1: {prompt}"}], Options(max_tokens=1)
        )
        for prompt in prompts
    }
    texts = {prompt: future.result().text for prompt, future in asked.items()}
    return {p: MODELS.index(t) + 1 if t in MODELS else 1 for p, t in texts.items()}


if __name__ == "__main__":
    main()
