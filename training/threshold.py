"""Choose the router's confidence thresholds on training queries of another draw than its labels.

    python -m training.threshold --pool runs/lab --out runs/lab

For each quality level the trained allocator chooses a slot for each step of oracle plans; a step
moves up while the mean log-probability of its output is below the threshold, as in the graph. Of
the thresholds whose accuracy on whole tasks is within `SLACK` of the best, the cheapest is taken.

Two things are simpler than in the graph: long products are cut, and each step is asked about alone.
Frequent questions of geo are in both draws.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from r2graph.allocate import QUALITY_LEVELS, TOKENS_A_STEP, parse_slots, slots_prompt
from r2graph.errors import AllocationError
from r2graph.local.engine import open_engine
from r2graph.local.generation import Options
from training.outcomes import MODELS, Outcome, Outcomes, prices
from training.queries import training_queries

TASKS = 1_500  # of arith and of geo; the phrases of scan are too few to choose on
SEED = 4
# By quality level 1 to 10: the accuracy that may be given up for a lower cost.
SLACK = (0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.006, 0.003, 0.0)
CANDIDATES = (
    0.002,
    0.005,
    0.01,
    0.014,
    0.02,
    0.025,
    0.03,
    0.04,
    0.05,
    0.07,
    0.1,
    0.15,
    0.2,  # what `training/labels.py` takes for trust
)

LEVELS = range(1, QUALITY_LEVELS + 1)

Step = tuple[str, str]  # the prompt and the right output
Choice = tuple[int, int | None]  # the slot, and the level of the check if the allocator says it
Row = dict[str, float]


class Cascades:
    """What becomes of steps that start on a slot and move up: from outcomes, without a call."""

    def __init__(self, outcomes: Outcomes, prices: Sequence[float]) -> None:
        self._outcomes = outcomes
        self._prices = prices

    def climb(self, prompt: str, slot: int, threshold: float) -> tuple[Outcome, float]:
        """The accepted outcome, and the dollars of all attempts."""
        cost = 0.0
        for at in range(slot - 1, len(MODELS)):
            outcome = self._outcomes.get(MODELS[at], prompt)
            cost += outcome.tokens * self._prices[at]
            if math.log(outcome.confidence) >= threshold:
                break
        return outcome, cost

    def row(
        self,
        tasks: Sequence[Sequence[Step]],
        chosen: Mapping[str, Choice],
        threshold: float,
        settled: Sequence[float] = (),
    ) -> Row:
        """Accuracy and mean cost of whole tasks.

        `settled` are the thresholds of lower levels, for steps whose check the allocator chose.
        """
        right, cost = 0, 0.0

        def climb(prompt: str) -> tuple[Outcome, float]:
            slot, check = chosen[prompt]
            if check is not None and check <= len(settled):
                return self.climb(prompt, slot, settled[check - 1])
            return self.climb(prompt, slot, threshold)

        for steps in tasks:
            climbs = [(climb(prompt), output) for prompt, output in steps]
            right += all(said.text.split() == output.split() for (said, _), output in climbs)
            cost += sum(dollars for (_, dollars), _ in climbs)
        return {
            "threshold": threshold,
            "accuracy": round(right / len(tasks), 4),
            "usd": cost / len(tasks),
        }


def choose(rows: Sequence[Row], slack: float) -> Row:
    """The cheapest whose accuracy is within `slack` of the best."""
    best = max(row["accuracy"] for row in rows)
    return min((r for r in rows if r["accuracy"] >= best - slack), key=lambda row: row["usd"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    outcomes = Outcomes(arguments.pool, arguments.out / "heldout.jsonl")
    drawn = [task for f in ("arith", "geo") for task in islice(training_queries(f, SEED), TASKS)]
    tasks = [[(prompt, output) for _, prompt, output in task.steps()] for task in drawn]
    prompts = list(dict.fromkeys(prompt for steps in tasks for prompt, _ in steps))
    outcomes.fill(prompts)
    cascades = Cascades(outcomes, prices(arguments.pool))
    chosen: list[Row] = []
    for level, slack in enumerate(SLACK, start=1):
        starts = allocated(arguments.out / "router/allocator", prompts, level)
        settled = strictest(chosen)
        row = choose([cascades.row(tasks, starts, -c, settled) for c in CANDIDATES], slack)
        print(level, row, flush=True)
        chosen.append(row)
    text = json.dumps({"thresholds": strictest(chosen), "table": chosen}, indent=1)
    (arguments.out / "threshold.json").write_text(text + "\n")


def strictest(chosen: Sequence[Row]) -> list[float]:
    """Thresholds by level: a higher quality never accepts what a lower one would not."""
    return [max(row["threshold"] for row in chosen[: at + 1]) for at in range(len(chosen))]


def allocated(allocator: Path, prompts: Sequence[str], level: int) -> dict[str, Choice]:
    """What the allocator chooses for each prompt; what does not read as a choice is slot 1."""
    engine = open_engine(str(allocator), "auto", "float32", 128)
    asked = {
        prompt: engine.submit(
            [{"role": "user", "content": slots_prompt([prompt], level)}],
            Options(max_tokens=TOKENS_A_STEP),
        )
        for prompt in prompts
    }
    return {prompt: _choice(future.result().text) for prompt, future in asked.items()}


def _choice(text: str) -> Choice:
    try:
        return parse_slots(text, 1)[0]
    except AllocationError:
        return 1, None


if __name__ == "__main__":
    main()
