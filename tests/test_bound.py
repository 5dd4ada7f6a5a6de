"""The bound: what becomes of starts and thresholds, and the best of them by shape."""

from collections.abc import Sequence

import numpy as np

from r2graph.lab import arith
from r2graph.lab.task import Task
from training.bound import Steps, by_shape
from training.outcomes import MODELS, Outcome

TASKS = [arith.task(query) for query in ("1 + 2", "3 + 4", "1 * 2", "3 * 4")]


class Recorded:
    """Members 1 to 5 are unsure and wrong in sums, sure and right in products; the others know."""

    def get(self, model: str, prompt: str) -> Outcome:
        knows = MODELS.index(model) >= 5 or "*" in prompt
        right = str(arith.value(arith.parse(prompt)))
        return Outcome(model, prompt, right if knows else "0", 0.99 if knows else 0.5, 10)


def steps(tasks: Sequence[Task] = TASKS) -> Steps:
    return Steps(tasks, Recorded(), [float(slot) for slot in range(1, 10)])  # type: ignore[arg-type]


def test_a_step_climbs_until_a_member_is_sure_enough_and_pays_for_all_attempts() -> None:
    cost, right = steps().climbs(-0.1)
    assert cost[0, 3] == 10 * (4 + 5 + 6)
    assert right[0, 3]
    assert cost[2, 0] == 10
    assert right[2, 0]


def test_a_lax_threshold_takes_what_is_wrong() -> None:
    cost, right = steps().climbs(-5.0)
    assert cost[0, 3] == 40
    assert not right[0, 3]


def test_each_shape_gets_the_action_that_is_best_for_those_it_was_fitted_on() -> None:
    found = steps()
    cost, right = found.climbs(-5.0)
    fit = np.array([True, False, True, False])
    best = by_shape(found, cost + 120.0 * ~right, fit)
    assert best.tolist() == [5, 5, 0, 0]
