"""The literature's measures: worked out by hand, and what must hold whatever the numbers are."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2graph.evaluation.metrics import (
    aiq,
    apgr,
    arena_score,
    cost_save,
    cpt,
    gain,
    gap,
    hull,
    perf_gain,
    pgr,
)
from r2graph.evaluation.outcomes import Outcome
from r2graph.evaluation.scores import Score, scores

shares = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)
points = st.lists(st.tuples(shares, shares), min_size=1, max_size=8)


def curve(*points: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.array(points, dtype=np.float64).T
    return first, second


# RouteLLM


@given(weak=shares, strong=shares)
def test_the_weak_model_recovers_nothing_of_the_gap_and_the_strong_one_all(
    weak: float, strong: float
) -> None:
    if weak == strong:
        assert math.isnan(pgr(0.5, weak, strong))
    else:
        assert (pgr(weak, weak, strong), pgr(strong, weak, strong)) == (0, 1)


def test_half_the_gap_is_half() -> None:
    assert pgr(0.75, 0.6, 0.9) == pytest.approx(0.5)


def test_apgr_is_the_area_under_the_gap_recovered() -> None:
    # From (0, 0) to (.25, .8) and on to (1, 1): .25 * .4 + .75 * .9.
    assert apgr(*curve((0.25, 0.84)), 0.6, 0.9) == pytest.approx(0.25 * 0.4 + 0.75 * 0.9)


@given(st.lists(shares, max_size=8))
def test_a_coin_recovers_half_the_gap_on_average(tossed: list[float]) -> None:
    share_P = np.array(tossed)
    assert apgr(share_P, 0.6 + 0.3 * share_P, 0.6, 0.9) == pytest.approx(0.5)


def test_cpt_is_the_least_share_of_strong_calls_by_mixing_two_points() -> None:
    share_P, accuracy_P = curve((0.25, 0.84), (0.5, 0.78))
    assert cpt(0.8, share_P, accuracy_P, 0.6, 0.9) == pytest.approx(0.25)
    assert cpt(0.4, share_P, accuracy_P, 0.6, 0.9) == pytest.approx(0.125)
    assert cpt(0.9, share_P, accuracy_P, 0.6, 0.9) == pytest.approx(0.25 + 0.75 / 2)
    assert cpt(1.0, *curve((0.5, 0.6)), 0.6, 0.9) == pytest.approx(1)


@given(points, shares)
def test_nobody_needs_more_strong_calls_than_a_coin(
    found: list[tuple[float, float]], target: float
) -> None:
    assert cpt(target, *curve(*found), 0.0, 1.0) <= target + 1e-9


# RouterBench


def test_the_hull_leaves_out_what_a_mixture_or_a_cheaper_point_beats() -> None:
    found = hull(*curve((1, 0.2), (2, 0.3), (3, 0.8), (4, 0.7), (6, 0.9), (1, 0.1)))
    assert [list(each) for each in found] == [[1, 3, 6], [0.2, 0.8, 0.9]]


def test_aiq_is_the_mean_height_of_the_hull_and_level_beyond_it() -> None:
    two = curve((1, 0.2), (3, 0.8))
    assert aiq(*two, 1, 3) == pytest.approx(0.5)
    assert aiq(*two, 1, 5) == pytest.approx((0.5 + 0.8) / 2)
    assert aiq(*two, 2, 3) == pytest.approx(0.65)


@pytest.mark.parametrize(("low", "high"), [(0.5, 3), (3, 3), (3, 1)])
def test_costs_that_no_curve_covers_have_no_mean(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="must begin on the curve"):
        aiq(*curve((1, 0.2), (3, 0.8)), low, high)


@given(points, st.tuples(shares, shares))
def test_another_point_never_lowers_the_quality_at_any_cost(
    found: list[tuple[float, float]], another: tuple[float, float]
) -> None:
    found = [(0.0, 0.0), *found]  # who can be had for nothing
    before, after = (aiq(*curve(*some), 0.0, 1.0) for some in (found, [*found, another]))
    assert after >= before - 1e-9
    assert 0 <= before <= max(accuracy for _, accuracy in found)


# RouterArena and LLMRouterBench


def test_the_arena_score_is_that_of_the_leaderboard() -> None:
    # Azure's router, MIRT-BERT and GPT-5 as they stand there: accuracy, dollars, score.
    for accuracy, usd, score in (
        (0.6809, 0.54, 0.6666),
        (0.6688, 0.15, 0.6689),
        (0.7396, 10.02, 0.6432),
    ):
        assert arena_score(accuracy, usd) == pytest.approx(score, abs=2e-3)


def test_costs_beyond_the_arenas_bounds_count_as_the_bounds() -> None:
    assert arena_score(0.5, 0.0) == arena_score(0.5, 0.0044) == pytest.approx(0.55 / 1.05)
    assert arena_score(0.5, 1e6) == 0
    assert arena_score(0.0, 1e6) == 0


def test_gain_and_gap_are_of_the_mean_over_benchmarks() -> None:
    ours, best, oracle = {"a": 0.9, "b": 0.6}, {"a": 0.8, "b": 0.4}, {"a": 1.0, "b": 1.0}
    assert gain(ours, best) == pytest.approx(1.5 / 1.2 - 1)
    assert gap(ours, oracle) == pytest.approx(0.25)
    assert gap(oracle, oracle) == 0


def test_what_is_gained_is_of_the_best_point_and_what_is_saved_of_the_cheapest_equal_one() -> None:
    cost_P, accuracy_P = curve((1, 0.7), (2, 0.8), (3, 0.88))
    assert perf_gain(accuracy_P, 0.8) == pytest.approx(0.1)
    assert cost_save(cost_P, accuracy_P, 0.8, 4.0) == pytest.approx(0.5)
    assert math.isnan(cost_save(cost_P, accuracy_P, 0.9, 4.0))


# Scores of an evaluation


def outcomes(method: str, right: str, cost: float, benchmark: str = "a") -> list[Outcome]:
    usd = Decimal(cost)
    return [
        Outcome(benchmark, method, str(at), sign == "+", usd, usd, 1, 0.0)
        for at, sign in enumerate(right)
    ]


DONE = [
    *outcomes("single-1", "+---", 1),
    *outcomes("single-2", "++--", 5),
    *outcomes("single-3", "+-+-", 9),
    *outcomes("router@0.5", "++--", 3),
    *outcomes("router@0.9", "+++-", 7),
    *outcomes("oracle", "+++-", 4),
]
SINGLES = ["single-1", "single-2", "single-3"]


def score(family: str) -> Score:
    return next(each for each in scores(DONE, SINGLES) if each.family == family)


def test_a_routers_qualities_are_one_line() -> None:
    router = score("router")
    assert (router.points, router.accuracy, router.net_usd) == (2, 0.75, 7)
    assert router.pgr == pytest.approx(2)  # of the gap from .25 to .5
    assert (router.gain_at_best, router.perf_gain) == (pytest.approx(0.5), pytest.approx(0.5))
    assert router.gap_to_oracle == 0
    assert router.cost_save == pytest.approx(1 - 3 / 5)  # the best single is the cheaper of two
    # Shares (.25, .75) and gaps recovered (1, 2) of the way from $1 to $9.
    assert router.apgr == pytest.approx(0.25 * 0.5 + 0.5 * 1.5 + 0.25 * 1.5)
    assert router.cpt_80 == pytest.approx(0.2)
    assert router.aiq == pytest.approx(0.25 * 0.375 + 0.5 * 0.625 + 0.25 * 0.75)


def test_what_was_not_run_is_not_made_up() -> None:
    assert math.isnan(score("single-1").apgr)
    assert math.isnan(score("single-1").cost_save)
    without = scores([o for o in DONE if o.method != "oracle"], SINGLES)
    assert all(math.isnan(each.gap_to_oracle) for each in without)
    assert scores(outcomes("single-1", "+", 1), SINGLES) == []


def test_scores_of_other_queries_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same queries"):
        scores([*DONE, *outcomes("plan-1", "+", 1)], SINGLES)
