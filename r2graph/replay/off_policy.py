"""What another policy would have got on logged runs, from the probability of each logged choice.

Each run has a context, a choice with the propensity it was drawn with, and a reward. The policy in
question comes as the probability with which it would have chosen the same, or, for `doubly_robust`,
each of the choices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r2graph.errors import ConfigError
from r2graph.replay.table import Floats


@dataclass(frozen=True)
class Estimate:
    """A mean reward and its 95 % interval, by the normal approximation."""

    value: float
    low: float
    high: float


def ips(
    rewards: Floats,
    propensities: Floats,
    target: Floats,
    *,
    clip: float | None = None,
    self_normalised: bool = False,
) -> Estimate:
    """Inverse propensity scoring (Horvitz and Thompson, 1952): the mean of reward x weight.

    A weight is the target's probability of the logged choice over its propensity. `clip` is the
    largest one that is let stand, for less variance and some bias (Ionides, 2008).
    `self_normalised` divides by the sum of the weights instead of their number, which keeps the
    value within the range of the rewards (Swaminathan and Joachims, 2015).
    """
    weights = _weights(propensities, target, clip)
    if not self_normalised:
        return _mean(weights * rewards)
    if not weights.any():
        raise ConfigError("the policy would never have chosen as the log has: it says nothing")
    value = float((weights * rewards).sum() / weights.sum())
    # The delta method: each run moves the ratio by its weighted distance to it.
    return _mean(value + weights / weights.mean() * (rewards - value))


def doubly_robust(
    rewards: Floats,
    propensities: Floats,
    chosen: NDArray[np.intp],
    target: Floats,
    predicted: Floats,
    *,
    clip: float | None = None,
) -> Estimate:
    """A model of the rewards, and inverse propensity scoring of what it misses.

    `target` and `predicted` are runs x choices. The estimate is right in the mean if propensities
    or predictions are, and varies less the better the latter (Dudík, Langford and Li, 2011);
    predictions must not come from a model that was fitted to the same runs.
    """
    runs = np.arange(len(rewards))
    weights = _weights(propensities, target[runs, chosen], clip)
    missed = rewards - predicted[runs, chosen]
    return _mean((target * predicted).sum(axis=1) + weights * missed)


def _weights(propensities: Floats, target: Floats, clip: float | None) -> Floats:
    if not ((propensities > 0) & (propensities <= 1)).all():
        raise ConfigError("each logged choice needs a propensity above 0: log with exploration")
    weights = target / propensities
    return weights if clip is None else np.minimum(weights, clip)


def _mean(values: Floats) -> Estimate:
    mean = float(values.mean())
    margin = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    return Estimate(mean, mean - margin, mean + margin)
