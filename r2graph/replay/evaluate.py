"""How well a fitted router does on recorded outcomes it has not seen, beside what it must beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from r2graph.errors import ConfigError
from r2graph.replay.many_models import evaluate_many
from r2graph.replay.table import FOLDS, Replay
from r2graph.replay.two_models import evaluate_two


def evaluate(
    replay: Replay, *, repeats: int, seed: int = 0, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Strong calls of two models, or score and cost of more, as JSON has it.

    Five folds are drawn anew for each repeat; all that is chosen is chosen on the training folds.
    `progress` is called after each fold. Raises `ConfigError` if outcomes or costs are missing.
    """
    if np.isnan(replay.scores).any() or np.isnan(replay.costs).any():
        raise ConfigError("a replay wants the outcome and the cost of each model on each text")
    about = {"n": len(replay), "models": list(replay.models), "repeats": repeats, "folds": FOLDS}
    of = evaluate_two if len(replay.models) == 2 else evaluate_many
    return about | of(replay, repeats, seed, progress)
