"""Calibration: the measures against values worked out by hand, and the steps they are taken of."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from r2graph.allocate import CheckpointAllocator
from r2graph.evaluation.calibration import auroc, brier, brier_skill, calibration, ece, judged
from r2graph.graph import create_r2_graph
from r2graph.lab.language import task
from r2graph.plan import render_text
from r2graph.trace import Trace, TracedAttempt, TracedChoice, TracedStep
from tests.fakes import FakeChat, answering, member, pool_of, router_of
from training.calibration import traces

FORECASTS = np.array([0.1, 0.4, 0.4, 0.8])
OUTCOMES = np.array([0.0, 0.0, 1.0, 1.0])


def test_auroc_is_the_share_of_pairs_in_the_right_order_with_ties_half() -> None:
    assert auroc(FORECASTS, OUTCOMES) == pytest.approx(3.5 / 4)
    assert auroc(-FORECASTS, OUTCOMES) == pytest.approx(0.5 / 4)
    assert auroc(np.full(4, 0.7), OUTCOMES) == 0.5
    assert math.isnan(auroc(FORECASTS, np.ones(4)))


def test_the_brier_score_is_the_mean_squared_error() -> None:
    assert brier(FORECASTS, OUTCOMES) == pytest.approx((0.01 + 0.16 + 0.36 + 0.04) / 4)


def test_skill_is_one_for_an_oracle_none_for_the_base_rate_and_negative_below_it() -> None:
    assert brier_skill(OUTCOMES, OUTCOMES) == 1
    assert brier_skill(np.full(4, 0.5), OUTCOMES) == pytest.approx(0)
    assert brier_skill(FORECASTS, OUTCOMES) == pytest.approx(1 - 0.1425 / 0.25)
    assert brier_skill(1 - OUTCOMES, OUTCOMES) == pytest.approx(-3)
    assert math.isnan(brier_skill(FORECASTS, np.ones(4)))


def test_the_calibration_error_is_the_mean_distance_over_bins_of_equal_mass() -> None:
    forecasts = np.array([0.9, 0.1, 0.2, 0.7])
    outcomes = np.array([1.0, 0.0, 1.0, 0.0])
    # Lower half: .15 forecast, .5 right; upper half: .8 forecast, .5 right.
    assert ece(forecasts, outcomes, bins=2) == pytest.approx((0.35 + 0.3) / 2)
    assert ece(forecasts, outcomes, bins=1) == pytest.approx(0.5 - 0.475)
    assert ece(forecasts, outcomes) == pytest.approx((0.1 + 0.1 + 0.8 + 0.7) / 4)


def test_the_order_of_ties_does_not_matter_to_the_calibration_error() -> None:
    outcomes = np.array([1.0] * 8 + [0.0] * 2)
    assert ece(np.full(10, 0.8), outcomes) == pytest.approx(0)
    assert ece(np.full(10, 0.8), outcomes[::-1]) == pytest.approx(0)


def test_what_is_calibrated_but_knows_nothing_has_no_error_and_no_skill() -> None:
    of = calibration(np.full(4, 0.5), OUTCOMES)
    assert (of.n, of.base_rate, of.auroc, of.brier) == (4, 0.5, 0.5, 0.25)
    assert (of.brier_skill, of.ece) == pytest.approx((0, 0))


# Steps


def step(
    prompt: str, attempts: list[tuple[str, str | None]], probabilities: dict[str, float] | None
) -> TracedStep:
    choice = TracedChoice(
        member="m1", reason="", slot=1, probabilities=probabilities, propensity=None
    )
    tried = [
        TracedAttempt(
            member=name,
            output=output,
            ok=True,
            reason="",
            score=None,
            input_tokens=1,
            output_tokens=1,
            cost_usd="0",
            mean_logprob=None,
            seconds=0.0,
        )
        for name, output in attempts
    ]
    return TracedStep(
        id="s1",
        text=prompt,
        prompt=prompt,
        depends_on=(),
        choice=choice,
        attempts=tuple(tried),
        output=None,
    )


def traced(*steps: TracedStep) -> Trace:
    return Trace(
        run_id="run",
        query="query",
        pool="fakes",
        members=("m1", "m2", "m3"),
        quality=0.9,
        router="fake",
        plan=None,
        rounds=1,
        steps=steps,
        answer="",
        stop_reason="verified",
        cost_usd="0",
        router_cost_usd="0",
        verifier_cost_usd="0",
        counterfactual_usd="0",
    )


SPREAD = {"m3": 0.2, "m1": 0.5, "m2": 0.3}
RIGHT = {"1 + 1": "2"}


def pairs(*steps: TracedStep) -> list[tuple[float, float]]:
    forecasts, outcomes = judged([traced(*steps)], RIGHT)
    return list(zip(forecasts.tolist(), outcomes.tolist(), strict=True))


def test_a_forecast_is_the_probability_of_the_member_and_of_all_weaker_ones() -> None:
    for name, sufficing in {"m1": 0.5, "m2": 0.8, "m3": 1.0}.items():
        ((forecast, outcome),) = pairs(step("1 + 1", [(name, "2")], SPREAD))
        assert (forecast, outcome) == (pytest.approx(sufficing), 1)


def test_an_outcome_is_that_of_the_first_attempt_whatever_mended_it() -> None:
    assert pairs(step("1 + 1", [("m1", "3"), ("m2", "2")], SPREAD)) == [(0.5, 0)]
    assert pairs(step("1 + 1", [("m1", " 2 "), ("m2", "3")], SPREAD)) == [(0.5, 1)]


@pytest.mark.parametrize(
    "left_out",
    [
        step("1 + 1", [], SPREAD),
        step("1 + 1", [("m1", None), ("m2", "2")], SPREAD),
        step("1 + 1", [("m1", "2")], None),
        step("1 + 2", [("m1", "3")], SPREAD),
    ],
    ids=["not tried", "failed", "no probabilities", "unknown prompt"],
)
def test_steps_that_say_nothing_are_left_out(left_out: TracedStep) -> None:
    assert pairs(left_out) == []


async def test_a_router_is_judged_by_what_the_graph_did() -> None:
    asked = task("( 3 + 4 ) * 5")
    spread = {"m1": math.log(0.6), "m9": math.log(0.4)}
    chooser = FakeChat(
        answer=lambda text: " ".join(["m1"] * text.count("\n")),
        logprob=-0.5,
        top_logprobs=[spread, spread],
    )
    router = replace(
        router_of({asked.query: render_text(asked.plan)}, lambda _: "m1"),
        allocator=CheckpointAllocator(member("chooser", chooser)),
    )
    pool = pool_of(answering({"3 + 4": "7"}), answering({}), language="lab")
    found = await traces(create_r2_graph(pool, router=router), [asked, task("3 + 4")])
    assert len(found) == 1  # the second query has no plan
    forecasts, outcomes = judged(found, {"3 + 4": "7", "7 * 5": "35"})
    assert forecasts == pytest.approx([0.6, 0.6])
    assert list(outcomes) == [1, 0]
