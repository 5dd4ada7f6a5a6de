"""What a better allocator could gain: the best start and the best check for every shape of step.

    python -m training.bound --pool runs/lab --out runs/lab

On the held-out tasks of `training/threshold.py` and from recorded outcomes, without a call: for
each shape of step (`## * #`, `country of`) the start and the confidence threshold of least cost,
wrong ends priced in, are chosen on one half of the prompts and tried on the other, and the other
way round. Beside it stands the router: its own starts, and the thresholds chosen for it. An
allocator that knew the true rates of every shape would stand where the second table does; what the
text of a step says beyond its shape, it leaves out.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from r2graph.allocate import QUALITY_LEVELS
from r2graph.lab.task import Task
from training.labels import shape
from training.outcomes import MODELS, Outcomes, prices
from training.queries import training_queries
from training.threshold import CANDIDATES, SEED, TASKS, allocated

WRONG_USD = (2e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 2e-3)  # what a wrong step is worth
FAMILY_WEIGHT = 3  # steps that a family's mean counts for beside a shape's own

Floats = NDArray[np.float64]


class Steps:
    """The steps of tasks, each prompt once, and what becomes of each start and threshold."""

    def __init__(self, tasks: Sequence[Task], outcomes: Outcomes, usd: Sequence[float]) -> None:
        self.tasks = tasks
        right = {prompt: output for task in tasks for _, prompt, output in task.steps()}
        self.prompts = list(right)
        row = {prompt: at for at, prompt in enumerate(self.prompts)}
        self.of_task = [[row[prompt] for _, prompt, _ in task.steps()] for task in tasks]
        self.times_P = np.bincount(np.concatenate(self.of_task), minlength=len(row))
        family = {prompt: task.family for task in tasks for _, prompt, _ in task.steps()}
        self.family_P = np.array([family[prompt] for prompt in self.prompts])
        self.shape_P = np.array([shape(prompt) for prompt in self.prompts])
        said = [[outcomes.get(model, prompt) for model in MODELS] for prompt in self.prompts]
        self.cost_PM = np.array([[o.tokens for o in line] for line in said]) * np.array(usd)
        self.right_PM = np.array(
            [[o.text.split() == right[o.prompt].split() for o in line] for line in said]
        )
        self.logprob_PM = np.array([[math.log(o.confidence) for o in line] for line in said])

    def climbs(self, threshold: float) -> tuple[Floats, NDArray[np.bool_]]:
        """Dollars of all attempts and whether the end is right, prompts x starts."""
        cost, right = self.cost_PM.copy(), self.right_PM.copy()
        for at in reversed(range(len(MODELS) - 1)):
            passed = self.logprob_PM[:, at] >= threshold
            cost[:, at] += np.where(passed, 0.0, cost[:, at + 1])
            right[:, at] = np.where(passed, right[:, at], right[:, at + 1])
        return cost, right

    def means(self, cost_P: Floats, right_P: NDArray[np.bool_]) -> Iterator[str]:
        """Of each family: the share of tasks that are right, and dollars a task."""
        for family in ("arith", "geo"):
            steps = [
                rows
                for rows, task in zip(self.of_task, self.tasks, strict=True)
                if task.family == family
            ]
            accuracy = np.mean([right_P[rows].all() for rows in steps])
            usd = np.mean([cost_P[rows].sum() for rows in steps])
            yield f"{family} {accuracy:.4f} / {1e6 * usd:.2f}"


def by_shape(steps: Steps, loss_PA: Floats, fit_P: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each prompt the action of the least loss among prompts of its shape in `fit_P`."""
    weight_P = np.minimum(steps.times_P, 5) * fit_P
    best = np.zeros(len(steps.prompts), dtype=np.int64)
    for family in set(steps.family_P):
        of_family = steps.family_P == family
        prior = np.average(loss_PA[of_family], axis=0, weights=weight_P[of_family])
        for name in set(steps.shape_P[of_family]):
            same = of_family & (steps.shape_P == name)
            total = FAMILY_WEIGHT * prior + weight_P[same] @ loss_PA[same]
            best[same] = total.argmin()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    outcomes = Outcomes(arguments.pool, arguments.out / "heldout.jsonl")
    tasks = [task for f in ("arith", "geo") for task in islice(training_queries(f, SEED), TASKS)]
    steps = Steps(tasks, outcomes, prices(arguments.pool))
    every = np.arange(len(steps.prompts))

    print("the router, by quality level: accuracy / millionths of a dollar")
    thresholds = json.loads((arguments.out / "threshold.json").read_text())["thresholds"]
    for level in range(1, QUALITY_LEVELS + 1):
        chosen = allocated(arguments.out / "router/allocator", steps.prompts, level)
        start_P = np.array([chosen[prompt][0] - 1 for prompt in steps.prompts])
        check_P = np.array([(chosen[prompt][1] or level) - 1 for prompt in steps.prompts])
        cost_PML, right_PML = map(np.dstack, zip(*map(steps.climbs, thresholds), strict=True))
        at = every, start_P, check_P
        print(level, *steps.means(cost_PML[at], right_PML[at]), sep="  ")

    print("the best start and check of each shape, by what a wrong step is worth")
    climbs = [steps.climbs(-threshold) for threshold in CANDIDATES]
    cost_PA = np.concatenate([cost for cost, _ in climbs], axis=1)
    right_PA = np.concatenate([right for _, right in climbs], axis=1)
    half_P = np.random.default_rng(0).random(len(every)) < 0.5
    for usd in WRONG_USD:
        loss_PA = cost_PA + usd * ~right_PA
        best = np.where(half_P, by_shape(steps, loss_PA, ~half_P), by_shape(steps, loss_PA, half_P))
        print(f"{usd:g}", *steps.means(cost_PA[every, best], right_PA[every, best]), sep="  ")


if __name__ == "__main__":
    main()
