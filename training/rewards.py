"""What a rollout is worth. Right beats wrong beats invalid, whatever it cost.

    allocator   right: max(.1, 1 - lambda(q) sqrt(c));              wrong: 0; unparsable: -1
    decomposer  right: max(.1, 1 - LAMBDA sqrt(c) - MU S(D));       wrong: 0; unparsable: -1

with c = min(1, cost / reference), the reference being all steps on the strongest member. The root
is our addition: the cheap half of the pool lies below a tenth of the reference, where a linear term
tells nothing apart. `None` masks a rollout whose pool failed: a failed provider is no evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

from r2graph.allocate import QUALITY_LEVELS

INVALID, WRONG, LEAST_RIGHT = -1.0, 0.0, 0.1
HIGHEST, LOWEST = 1.0, 0.02  # lambda at quality levels 1 and 10
LAMBDA, MU = 0.5, 0.1  # of the decomposer


@dataclass(frozen=True)
class Rollout:
    """How a run through the graph ended; dollars."""

    right: bool
    cost: float
    """Of all calls."""
    pool_cost: float
    """Of the calls that executed steps."""
    reference: float
    """What all steps on the strongest member cost."""

    @property
    def relative_cost(self) -> float:
        """Cost as a share of the reference, at most 1."""
        return min(1.0, self.cost / self.reference) if self.reference else 1.0


def cost_weight(level: int, lowest: float = LOWEST) -> float:
    """lambda(q): what cost weighs at a quality level, falling by equal factors to `lowest`."""
    share: float = (lowest / HIGHEST) ** ((level - 1) / (QUALITY_LEVELS - 1))
    return HIGHEST * share


def allocator_reward(rollout: Rollout | None, level: int, lowest: float = LOWEST) -> float | None:
    """The reward of an allocation at quality level 1 to 10."""
    if rollout is None or not rollout.right:
        return None if rollout is None else WRONG
    return max(LEAST_RIGHT, 1.0 - cost_weight(level, lowest) * rollout.relative_cost**0.5)


def decomposer_reward(rollout: Rollout | None, score: float) -> float | None:
    """The reward of a plan whose composite score S(D), 0 to 1, is `score` (lower is better)."""
    if rollout is None or not rollout.right:
        return None if rollout is None else WRONG
    return max(LEAST_RIGHT, 1.0 - LAMBDA * rollout.relative_cost**0.5 - MU * score)
