"""How well an allocator knows which steps will go right.

Its forecast for a step is the probability that the first attempt's member suffices: what it gave to
this member and to all weaker ones. The outcome is whether that attempt's output was right, whatever
the check said of it. Forecasts are N probabilities, outcomes N zeros and ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r2graph.trace import Trace, TracedStep

BINS = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """The measures below, of `n` steps, a share `base_rate` of which went right."""

    n: int
    base_rate: float
    auroc: float
    brier: float
    brier_skill: float
    ece: float


def calibration(forecasts_N: Floats, outcomes_N: Floats) -> Calibration:
    return Calibration(
        n=len(outcomes_N),
        base_rate=float(outcomes_N.mean()),
        auroc=auroc(forecasts_N, outcomes_N),
        brier=brier(forecasts_N, outcomes_N),
        brier_skill=brier_skill(forecasts_N, outcomes_N),
        ece=ece(forecasts_N, outcomes_N),
    )


def auroc(forecasts_N: Floats, outcomes_N: Floats) -> float:
    """The chance that a step that went right had the higher forecast of two; ties count half.

    The area under the ROC curve as Mann and Whitney's statistic (Hanley and McNeil 1982); NaN if
    all steps ended alike.
    """
    _, place_N, times = np.unique(forecasts_N, return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(times) - (times - 1) / 2)[place_N]  # those of ties are shared
    right = outcomes_N.sum()
    pairs = right * (len(outcomes_N) - right)
    above = rank_N[outcomes_N == 1].sum() - right * (right + 1) / 2
    return float(above / pairs) if pairs else float("nan")


def brier(forecasts_N: Floats, outcomes_N: Floats) -> float:
    """The mean squared error of the probabilities (Brier 1950); 0 is best."""
    return float(np.mean((forecasts_N - outcomes_N) ** 2))


def brier_skill(forecasts_N: Floats, outcomes_N: Floats) -> float:
    """The share of the base rate's Brier score that the forecasts do without (Murphy 1973).

    1 is best, below 0 the base rate alone would be the better forecast; NaN if all steps ended
    alike.
    """
    rate = outcomes_N.mean()
    reference = float(rate * (1 - rate))
    return 1 - brier(forecasts_N, outcomes_N) / reference if reference else float("nan")


def ece(forecasts_N: Floats, outcomes_N: Floats, bins: int = BINS) -> float:
    """The expected calibration error: mean distance of forecast and share of right steps in a bin.

    Bins are of equal mass (Nguyen and O'Connor 2015; Naeini et al. 2015 have the measure with bins
    of equal width). Steps with the same forecast each count as the mean of their outcomes, so
    that no order among them matters where they fall into two bins.
    """
    _, place_N, times = np.unique(forecasts_N, return_inverse=True, return_counts=True)
    share_N = (np.bincount(place_N, outcomes_N) / times)[place_N]
    excess_N = (forecasts_N - share_N)[np.argsort(forecasts_N)]
    return float(sum(abs(part.sum()) for part in np.array_split(excess_N, bins)) / len(excess_N))


def judged(traces: Iterable[Trace], right: Mapping[str, str]) -> tuple[Floats, Floats]:
    """Forecasts and outcomes of the steps of traces; `right` has the right output by prompt.

    Left out are steps without a first output or without probabilities, and prompts of which no
    right output is known, those that a wrong output was filled into among them.
    """
    pairs = [
        (sufficing(trace, step), output.split() == right[step.prompt].split())
        for trace in traces
        for step in trace.steps
        if step.choice.probabilities is not None and step.prompt in right
        if step.attempts and (output := step.attempts[0].output) is not None
    ]
    forecasts, outcomes = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return forecasts, outcomes


def sufficing(trace: Trace, step: TracedStep) -> float:
    """The probability of the first attempt's member and of all weaker ones."""
    up_to = trace.members[: trace.members.index(step.attempts[0].member) + 1]
    return min(1.0, sum((step.choice.probabilities or {}).get(member, 0.0) for member in up_to))
