"""What each setting of GRPO is worth: one change at a time, from one parent, on held-out queries.

    python -m training.ablations --config training/configs/lab_ablations.yaml --router runs/short \\
        --out runs/ablations

Each line of the table is a run of `training.alternate` in a directory of its own, which goes on
where it was stopped. Replies are shared, so that no model is asked a prompt twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from r2graph.errors import ConfigError
from training.alternate import alternate, claim, kept
from training.held_out import LEVELS, Standing, worth
from training.settings import Settings, load_settings

ALLOCATOR: dict[str, dict[str, Any]] = {
    "as configured": {},
    "rewards scaled by the batch": {"scale_rewards": "batch"},
    "rewards scaled by the group": {"scale_rewards": "group"},
    "groups of 4": {"prompts": 64, "generations": 4},
    "groups of 16": {"prompts": 16, "generations": 16},
    "cost weighs the same at all levels": {"lowest_cost_weight": 1.0},
    "cost weighs ten times as much at level 10": {"lowest_cost_weight": 0.2},
}
"""Changes to the phase of the allocator, the only one that is trained."""


def variants(settings: Settings) -> dict[str, Settings]:
    """The settings of each run."""
    phase = settings.allocator
    if phase is None or settings.decomposer is None:
        raise ConfigError("ablations need settings of both modules")
    changed = {name: phase.model_copy(update=change) for name, change in ALLOCATOR.items()}
    alone = {
        name: settings.model_copy(update={"decomposer": None, "allocator": phase})
        for name, phase in changed.items()
    }
    without = settings.model_copy(update={"allocator": None})
    return {**alone, "the decomposer alone": without, "both modules": settings}


def line(name: str, standings: Sequence[Mapping[int, Standing]]) -> str:
    """Means over the seeds; the range of worth says how far these are apart."""
    cells = [
        f"{fmean(at[level]['accuracy'] for at in standings):.1%} / "
        f"{1e6 * fmean(at[level]['net_usd'] for at in standings):.2f}"
        for level in LEVELS
    ]
    values = [worth(found) for found in standings]
    between = f"{fmean(values):.4f} ({min(values):.4f} to {max(values):.4f})"
    return f"| {' | '.join([name, *cells, between])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    print(f"| | {' | '.join(f'level {level}' for level in LEVELS)} | worth (least to most) |")
    print(f"|---|{'---|' * (len(LEVELS) + 1)}")
    shown = False
    for name, settings in variants(load_settings(given.config)).items():
        found = []
        for seed in range(1, given.seeds + 1):
            out = given.out / f"{name.replace(' ', '-')}-{seed}"
            claim(out, settings, given.router, seed)
            alternate(settings, given.router, out, seed, given.out / "outcomes.sqlite")
            last = "decomposer" if settings.allocator is None else "allocator"
            found.append(kept(out / f"round-1-{last}" / "standing.json"))
            if not shown:
                print(line("the parent", [kept(out / "parent.json")]), flush=True)
                shown = True
        print(line(name, found), flush=True)


if __name__ == "__main__":
    main()
