"""Off-policy estimates: on logged bandits of known value they find it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from r2graph.errors import ConfigError
from r2graph.replay.off_policy import doubly_robust, ips
from r2graph.replay.table import Floats, Rows

N, CHOICES, LOGS = 400, 3, 300


@dataclass(frozen=True)
class Log:
    """Runs of a bandit: in context x, a number, choice k is rewarded with chance (k + x) / 3."""

    rewards: Floats
    propensities: Floats
    chosen: Rows
    target: Floats
    means: Floats


def logged(seed: int) -> Log:
    random = np.random.default_rng(seed)
    x = random.random((N, 1))
    means = (np.arange(CHOICES) + x) / CHOICES
    behaviour = np.column_stack([0.7 - 0.3 * x, np.full(N, 0.2), 0.1 + 0.3 * x])
    chosen = (random.random((N, 1)) > behaviour.cumsum(axis=1)).sum(axis=1)
    rewards = (random.random(N) < means[np.arange(N), chosen]).astype(float)
    target = np.column_stack([0.1 * x, 0.3 + 0 * x, 0.7 - 0.1 * x])
    return Log(rewards, behaviour[np.arange(N), chosen], chosen, target, means)


def value() -> float:
    """Of the target policy: the mean over x of the sum of target x mean reward."""
    x = np.linspace(0, 1, 100_001)[:, None]
    target = np.hstack([0.1 * x, 0.3 + 0 * x, 0.7 - 0.1 * x])
    return float((target * (np.arange(CHOICES) + x) / CHOICES).sum(axis=1).mean())


def of_chosen(log: Log) -> Floats:
    return log.target[np.arange(N), log.chosen]


LOG = [logged(seed) for seed in range(LOGS)]
PLAIN = [ips(log.rewards, log.propensities, of_chosen(log)) for log in LOG]
ROBUST = [
    doubly_robust(log.rewards, log.propensities, log.chosen, log.target, log.means) for log in LOG
]


@pytest.mark.parametrize("estimates", [PLAIN, ROBUST], ids=["ips", "dr"])
def test_an_estimate_is_right_in_the_mean_and_its_interval_holds(estimates: list) -> None:
    values = np.array([estimate.value for estimate in estimates])
    error = values.std() / LOGS**0.5
    assert abs(values.mean() - value()) < 3 * error
    held = np.mean([estimate.low <= value() <= estimate.high for estimate in estimates])
    assert 0.91 <= held <= 0.99


def test_doubly_robust_varies_less_the_better_its_predictions() -> None:
    spread = np.std([estimate.value for estimate in ROBUST])
    assert spread < 0.7 * np.std([estimate.value for estimate in PLAIN])


def test_doubly_robust_survives_bad_predictions() -> None:
    values = np.array(
        [
            doubly_robust(
                log.rewards, log.propensities, log.chosen, log.target, 1 - log.means
            ).value
            for log in LOG
        ]
    )
    assert abs(values.mean() - value()) < 3 * values.std() / LOGS**0.5


def test_doubly_robust_survives_wrong_propensities_if_predictions_are_right() -> None:
    uniform = np.full(N, 1 / CHOICES)
    values = np.array(
        [
            doubly_robust(log.rewards, uniform, log.chosen, log.target, log.means).value
            for log in LOG
        ]
    )
    assert abs(values.mean() - value()) < 3 * values.std() / LOGS**0.5
    plain = np.mean([ips(log.rewards, uniform, of_chosen(log)).value for log in LOG])
    assert abs(plain - value()) > 0.05


def test_self_normalised_weights_keep_an_estimate_within_the_rewards() -> None:
    for log in LOG[:50]:
        few = slice(0, 8)
        found = ips(
            log.rewards[few] * 0 + 1,
            log.propensities[few],
            of_chosen(log)[few],
            self_normalised=True,
        )
        assert found.value == pytest.approx(1)
    values = [
        ips(log.rewards, log.propensities, of_chosen(log), self_normalised=True) for log in LOG
    ]
    assert np.mean([each.value for each in values]) == pytest.approx(value(), abs=0.01)
    assert 0.91 <= np.mean([each.low <= value() <= each.high for each in values]) <= 0.99


def test_clipping_trades_variance_for_bias() -> None:
    clipped = [ips(log.rewards, log.propensities, of_chosen(log), clip=2.0).value for log in LOG]
    assert np.std(clipped) < np.std([estimate.value for estimate in PLAIN])
    assert np.mean(clipped) < value()


def test_a_choice_that_was_not_drawn_is_refused() -> None:
    with pytest.raises(ConfigError, match="propensity"):
        ips(np.ones(2), np.array([0.5, 0.0]), np.ones(2))


def test_a_log_that_says_nothing_about_the_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="never"):
        ips(np.ones(2), np.array([0.5, 0.5]), np.zeros(2), self_normalised=True)
