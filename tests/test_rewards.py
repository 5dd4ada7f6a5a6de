"""Rewards: right beats wrong beats invalid, cost decides among the right, failures are masked."""

import pytest

from training.rewards import (
    INVALID,
    LEAST_RIGHT,
    WRONG,
    Rollout,
    allocator_reward,
    cost_weight,
    decomposer_reward,
)

LEVELS = range(1, 11)
COSTS = (0.0, 0.01, 0.3, 1.0, 50.0)


def rollout(cost: float = 0.0, *, right: bool = True) -> Rollout:
    return Rollout(right=right, cost=cost, pool_cost=cost, reference=1.0)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("level", LEVELS)
def test_right_beats_wrong_beats_invalid_whatever_it_cost(level: int, cost: float) -> None:
    right = allocator_reward(rollout(cost), level)
    assert right is not None
    assert right >= LEAST_RIGHT > WRONG > INVALID
    assert allocator_reward(rollout(right=False), level) == WRONG
    plan = decomposer_reward(rollout(cost), score=1.0)
    assert plan is not None
    assert plan >= LEAST_RIGHT
    assert decomposer_reward(rollout(right=False), score=0.0) == WRONG


def test_the_cheaper_of_two_right_allocations_earns_more_and_less_so_as_quality_rises() -> None:
    gains = []
    for level in LEVELS:
        cheap, dear = allocator_reward(rollout(0.1), level), allocator_reward(rollout(0.2), level)
        assert cheap is not None
        assert dear is not None
        gains.append(cheap - dear)
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] > 0


def test_cost_weighs_from_one_to_a_fiftieth() -> None:
    assert (cost_weight(1), cost_weight(10)) == pytest.approx((1.0, 0.02))


def test_the_better_scored_of_two_right_plans_earns_more() -> None:
    better, worse = (decomposer_reward(rollout(0.1), score) for score in (0.2, 0.4))
    assert better == pytest.approx(1 - 0.5 * 0.1**0.5 - 0.1 * 0.2)
    assert better > worse  # type: ignore[operator]


def test_a_rollout_whose_pool_failed_is_masked_and_not_punished() -> None:
    assert allocator_reward(None, 5) is None
    assert decomposer_reward(None, 0.0) is None


def test_a_cost_beyond_the_reference_counts_as_the_reference() -> None:
    assert rollout(50.0).relative_cost == rollout(1.0).relative_cost == 1.0
    assert Rollout(right=True, cost=0.0, pool_cost=0.0, reference=0.0).relative_cost == 1.0


def test_the_weight_of_cost_at_the_highest_level_can_be_set() -> None:
    usual, heavier = (allocator_reward(rollout(0.2), 10, lowest) for lowest in (0.02, 0.5))
    assert usual is not None
    assert heavier is not None
    assert heavier < usual
    assert cost_weight(1, 0.5) == cost_weight(1)
