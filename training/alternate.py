"""Alternating reinforcement learning (R2-Reasoner, stage 2): train one module while the other is
frozen, compare on held-out queries, keep the better router, and stop when nothing improves.

    python -m training.alternate --config training/configs/lab.yaml \\
        --router r2graph/lab/artefacts/router --out runs/rl/seed-1 --seed 1

Every phase is a directory with its router, its log and `standing.json`; a phase that has one is not
made again, and one that was interrupted goes on from its last checkpoint. The best router is in
`--out/router`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import yaml

from r2graph import OutcomeCache, load_pool, load_router
from r2graph.router import CARD, MODULES
from training.grpo import folder, held_out_tasks, rows, train
from training.held_out import Standing, references, standing, worth
from training.rl_data import Row
from training.rollouts import Rollouts
from training.settings import Module, Settings, load_settings

SEEDS_A_ROUND = 100  # every round draws other queries


def assemble(
    parent: Path, module: Module, trained: Path, out: Path, prompts: Sequence[Row], seed: int
) -> None:
    """Write a router: the parent with one module replaced by what was trained on `prompts`. The
    check's thresholds stay, for they are the scale of the levels that an allocator writes.
    """
    router = load_router(parent)
    for name in MODULES:
        source = trained if name == module else folder(router, name)
        shutil.copytree(
            source, out / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints")
        )
    card = router.card.model_copy(
        update={
            "base": f"{router.card.name}, trained with: {router.card.trained_with}",
            "trained_with": f"GRPO of the {module}, with TRL",
            "command": f"python -m training.alternate --seed {seed}",
            "seed": seed,
            "data_sha256": sha256(json.dumps(prompts).encode()).hexdigest(),
        }
    )
    (out / CARD).write_text(yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False))


class Comparison:
    """Held-out queries, none of them trained on, and where routers stand on them."""

    def __init__(self, settings: Settings, parent: Path, outcomes: OutcomeCache) -> None:
        self.pool = load_pool(settings.pool)
        self.outcomes = outcomes
        self.tasks = held_out_tasks(settings)
        self.references = references(self.pool, load_router(parent), self.tasks, outcomes)

    def standing(self, router: Path) -> dict[int, Standing]:
        return standing(self.pool, load_router(router), self.tasks, self.references, self.outcomes)


def phase(
    settings: Settings, module: Module, parent: Path, out: Path, held_out: Comparison, seed: int
) -> dict[int, Standing]:
    """Train a module of the parent and say where the new router stands; done once."""
    done = out / "standing.json"
    if not done.exists():
        router = load_router(parent)
        prompts = rows(module, settings, router, held_out.outcomes, seed)
        rollouts = Rollouts(held_out.pool, router, held_out.outcomes)
        train(module, getattr(settings, module), router, prompts, rollouts, out / "trained", seed)
        assemble(parent, module, out / "trained", out / "router", prompts, seed)
        done.write_text(json.dumps(held_out.standing(out / "router"), indent=1) + "\n")
    return {int(level): at for level, at in json.loads(done.read_text()).items()}


def alternate(settings: Settings, parent: Path, out: Path, seed: int) -> Path:
    """Rounds until one improves nothing; the best router's directory."""
    with OutcomeCache(out / "outcomes.sqlite") as outcomes:
        held_out = Comparison(settings, parent, outcomes)
        best, value = parent, worth(held_out.standing(parent))
        print(f"parent: {value:.4f}", flush=True)
        for number in range(1, settings.rounds + 1):
            before, drawn = best, seed + SEEDS_A_ROUND * (number - 1)
            for module in MODULES:
                if getattr(settings, module) is None:
                    continue
                at = out / f"round-{number}-{module}"
                reached = worth(phase(settings, module, best, at, held_out, drawn))
                print(f"round {number}, {module}: {reached:.4f}", flush=True)
                if reached > value:
                    best, value = at / "router", reached
            if best == before:
                break
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="empty, or of the same arguments")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    best = alternate(
        load_settings(arguments.config), arguments.router, arguments.out, arguments.seed
    )
    shutil.copytree(best, arguments.out / "router", dirs_exist_ok=True)
    print(f"best router: {best}")


if __name__ == "__main__":
    main()
