"""Means of bounded numbers, tested by betting; of no distribution is anything assumed.

A gambler starts with one dollar and bets on each number in turn, knowing those before. If the mean
is not above zero the game is fair or worse, so that the wealth ever passes 1/δ with a probability
of at most δ (Ville's inequality). Waudby-Smith and Ramdas, arXiv 2010.09686; the bets are their
plug-in of section 4. The numbers must come in an order that has nothing to do with their values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pvariance

BOLDEST = 0.75  # of the wealth, at stake in the worst case


def p_value(gains: Sequence[float], worst: float, best: float, delta: float) -> float:
    """Of the hypothesis that the mean is at most zero, for gains between `-worst` and `best`.

    The bets are made so as to reject at `delta`; the p-value is valid at any other level too.
    """
    n, aim = len(gains), 2 * math.log(1 / delta)
    log_wealth = highest = total = 0.0
    squares = variance = worst * best  # at first the largest that a mean of zero allows
    for seen, gain in enumerate(gains, 1):
        bet = min(math.sqrt(aim / (n * variance)), BOLDEST / worst)
        log_wealth += math.log1p(bet * gain)
        highest = max(highest, log_wealth)
        total += gain
        squares += (gain - total / (seen + 1)) ** 2
        variance = squares / (seen + 1)
    return math.exp(-highest)


def interval(values: Sequence[float], low: float, high: float, delta: float) -> tuple[float, float]:
    """Of the mean of values from `low` to `high`: with probability 1-δ the mean is within."""
    mean = fmean(values)
    below, above = mean - low, high - mean
    return (
        mean - _distance([value - mean for value in values], below, above, delta / 2),
        mean + _distance([mean - value for value in values], above, below, delta / 2),
    )


def _distance(centred: Sequence[float], below: float, above: float, delta: float) -> float:
    """How far below its estimate a mean may lie; one further down is rejected."""
    near, far = 0.0, below
    while far - near > 1e-4 * below:
        middle = (near + far) / 2
        gains = [value + middle for value in centred]
        if p_value(gains, below - middle, above + middle, delta) <= delta:
            far = middle
        else:
            near = middle
    return far


def enough(gains: Sequence[float], worst: float, delta: float) -> int | None:
    """About how many such gains it takes to reject at `delta`; `None` where their mean is no gain.

    What the bets of `p_value` win of n gains is n λ m - n λ² v / 2, with λ at its best or boldest.
    """
    mean, aim = fmean(gains), math.log(1 / delta)
    if mean <= 0:
        return None
    return math.ceil(max(2 * aim * pvariance(gains) / mean**2, aim * worst / (BOLDEST * mean)))
