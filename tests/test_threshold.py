"""Thresholds of the check: chosen from outcomes, as a step climbs in the graph."""

import math

import pytest

from training.outcomes import MODELS, Outcome
from training.threshold import Cascades, choose

PROMPT, RIGHT = "2 * 3", "6"
# Slot 1 is wrong and unsure, slot 2 wrong and sure of it, slot 3 right and sure; ten tokens each.
SAID = [("5", 0.5), ("7", 0.95), ("6", 0.99), *[("6", 1.0)] * 6]


class Recorded:
    """Outcomes without models."""

    def get(self, model: str, prompt: str) -> Outcome:
        text, confidence = SAID[MODELS.index(model)]
        return Outcome(model, prompt, text, confidence, tokens=10)


CASCADES = Cascades(Recorded(), [2**rank / 1e6 for rank in range(9)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("threshold", "text", "paid"),
    [(-1.0, "5", 1), (math.log(0.9), "7", 1 + 2), (math.log(0.97), "6", 1 + 2 + 4)],
)
def test_a_step_moves_up_while_it_is_unsure_and_pays_for_every_attempt(
    threshold: float, text: str, paid: int
) -> None:
    outcome, cost = CASCADES.climb(PROMPT, 1, threshold)
    assert outcome.text == text
    assert cost == pytest.approx(paid * 10 / 1e6)


def test_a_task_is_right_if_all_of_its_steps_are() -> None:
    tasks = [[(PROMPT, RIGHT)], [(PROMPT, RIGHT), (PROMPT, "7")]]
    row = CASCADES.row(tasks, {PROMPT: (3, None)}, threshold=-0.1)
    assert row["accuracy"] == 0.5
    assert row["usd"] == pytest.approx(1.5 * 4 * 10 / 1e6)


def test_a_check_that_the_allocator_chose_is_made_at_its_own_level() -> None:
    settled = (-2.0, -0.01)
    rows = [
        CASCADES.row([[(PROMPT, "5")]], {PROMPT: (1, check)}, -0.1, settled) for check in (1, None)
    ]
    assert [row["accuracy"] for row in rows] == [1.0, 0.0]


def test_the_cheapest_within_the_slack_is_chosen() -> None:
    rows = [
        {"threshold": -0.5, "accuracy": 0.80, "usd": 1.0},
        {"threshold": -0.1, "accuracy": 0.89, "usd": 2.0},
        {"threshold": -0.01, "accuracy": 0.90, "usd": 3.0},
    ]
    assert choose(rows, 0.0)["threshold"] == -0.01
    assert choose(rows, 0.01)["threshold"] == -0.1
    assert choose(rows, 0.2)["threshold"] == -0.5
