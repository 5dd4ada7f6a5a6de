"""Alternating reinforcement learning (R2-Reasoner, stage 2): train one module while the other is
frozen, compare on held-out queries, keep the better router, and stop when nothing improves.

    python -m training.alternate --config training/configs/lab.yaml \\
        --router lab-sft --out runs/rl/seed-1 --seed 1

Every phase is a directory with its router, its log and `standing.json`. A finished one is not made
again, and an interrupted one goes on from its last checkpoint, so that the same command ends with
the same result however often it was killed. The best router is in `--out/router`, where each one
stands in `--out/table.md`, how training went in `--out/curves.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import yaml

from r2graph import OutcomeCache, load_pool, load_router
from r2graph.errors import ConfigError
from r2graph.router import CARD, MODULES, Router, RouterCard
from training import outcome_gradient
from training.curves import learning
from training.grpo import RL_SEED, folder, held_out_tasks, rows, train
from training.held_out import Standing, references, standing, table, worth
from training.rollouts import Rollouts
from training.router_data import asked, known
from training.settings import Module, Settings, load_settings

SEEDS_A_ROUND = 100  # every round draws other queries
GRADIENT = "outcome_gradient"


def assemble(
    parent: Path,
    module: Module,
    trained: Path,
    out: Path,
    method: str,
    data_sha256: str,
    seed: int,
) -> None:
    """Write a router: the parent with one module replaced by what was trained.

    The check's thresholds stay, for they are the scale of the levels that an allocator may write.
    """
    router = load_router(parent)
    for name in MODULES:
        source = trained if name == module else folder(router, name)
        shutil.copytree(
            source, out / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints")
        )
    card = router.card.model_copy(
        update={
            "parent": _reference(parent, out),
            "trained_with": f"{router.card.trained_with}, then {method} of the {module}",
            "command": f"python -m training.alternate --seed {seed}",
            "seed": seed,
            "data_sha256": data_sha256,
        }
    )
    write_card(out, card)


def write_card(router: Path, card: RouterCard) -> None:
    text = yaml.safe_dump(card.model_dump(mode="json", exclude_none=True), sort_keys=False)
    _keep(router / CARD, text)


def _reference(router: Path, seen_from: Path) -> str:
    """What a card in `seen_from` calls a router: a path, or the name of one that is shipped."""
    return os.path.relpath(router, seen_from) if router.is_dir() else str(router)


def publish(best: Path, parent: Path, out: Path, command: str) -> None:
    """Write the best router of a run, whose parent is the one that the run began with."""
    router = load_router(best)
    for module in MODULES:
        shutil.copytree(folder(router, module), out / module, dirs_exist_ok=True)
    before = None if best == parent else _reference(parent, out)
    made = {"parent": before} | ({} if before is None else {"command": command})
    write_card(out, router.card.model_copy(update=made))


class Comparison:
    """Held-out queries, none of them trained on, and where routers stand on them."""

    def __init__(self, settings: Settings, parent: Path, outcomes: OutcomeCache) -> None:
        self.pool = load_pool(settings.pool)
        self.outcomes = outcomes
        self.tasks = held_out_tasks(settings)
        self.references = references(self.pool, load_router(parent), self.tasks, outcomes)

    def standing(self, router: Path, file: Path) -> dict[int, Standing]:
        """Where a router stands, kept in a file: found once."""
        if not file.exists():
            found = standing(
                self.pool, load_router(router), self.tasks, self.references, self.outcomes
            )
            _keep(file, json.dumps(found, indent=1) + "\n")
        return kept(file)


def kept(file: Path) -> dict[int, Standing]:
    """A standing that was kept."""
    return {int(level): at for level, at in json.loads(file.read_text()).items()}


def phase(
    settings: Settings, name: str, parent: Path, out: Path, held_out: Comparison, seed: int
) -> None:
    """Train a module of the parent; the new router is in `out/router`."""
    if (out / "router" / CARD).exists():
        return
    router, trained = load_router(parent), out / "trained"
    if name == GRADIENT:
        known = gradient(settings, router, trained, seed)
        assemble(parent, "allocator", trained, out / "router", GRADIENT, known, seed)
        return
    module: Module = "decomposer" if name == "decomposer" else "allocator"
    prompts = rows(module, settings, router, held_out.outcomes, seed)
    rollouts = Rollouts(held_out.pool, router, held_out.outcomes)
    train(module, getattr(settings, module), router, prompts, rollouts, trained, seed)
    digest = sha256(json.dumps(prompts).encode()).hexdigest()
    assemble(parent, module, trained, out / "router", "GRPO", digest, seed)


def gradient(settings: Settings, router: Router, out: Path, seed: int) -> str:
    """Train the allocator on recorded outcomes; returns the hash of the questions."""
    pool = load_pool(settings.pool)
    usd = [float(member.price.output_per_mtok) / 1e6 for member in pool.members]
    folder_of_pool = Path(str(pool[0].model).removeprefix("local:")).parent
    out.mkdir(parents=True, exist_ok=True)
    chosen, checks = settings.outcome_gradient, router.card.confidence_thresholds
    if chosen is None or checks is None:
        raise ConfigError("the outcome gradient needs settings, and a router with thresholds")
    labels, facts = known(folder_of_pool, usd, out.parent / "outcomes.jsonl", checks)
    without = {task.query for task in held_out_tasks(settings)}
    found = asked(labels, facts, chosen.queries, RL_SEED + seed, without)
    questions = [question for _, question in found]
    outcome_gradient.train(
        chosen, folder(router, "allocator"), outcome_gradient.Rows(questions, labels), out, seed
    )
    return sha256(repr(questions).encode()).hexdigest()


def alternate(
    settings: Settings, parent: Path, out: Path, seed: int, replies: Path | None = None
) -> Path:
    """Rounds until one improves nothing; the best router's directory.

    `replies` is the file of an outcome cache, by default one in `out`.
    """
    with OutcomeCache(replies or out / "outcomes.sqlite") as outcomes:
        held_out = Comparison(settings, parent, outcomes)
        standings = {"parent": held_out.standing(parent, out / "parent.json")}
        best, value = parent, worth(standings["parent"])
        for number in range(1, settings.rounds + 1):
            before, drawn = best, seed + SEEDS_A_ROUND * (number - 1)
            for kind in (*MODULES, GRADIENT):
                if getattr(settings, kind) is None:
                    continue
                name = f"round-{number}-{kind}"
                phase(settings, kind, best, out / name, held_out, drawn)
                found = held_out.standing(out / name / "router", out / name / "standing.json")
                standings[name] = found
                if worth(found) > value:
                    best, value = out / name / "router", worth(found)
            if best == before:
                break
    _keep(out / "table.md", table(standings))
    return best


def _keep(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)


def claim(out: Path, settings: Settings, router: Path, seed: int) -> None:
    """Mark a directory as that of these arguments; raises `ConfigError` if it is of others."""
    arguments = {"settings": settings.model_dump(mode="json"), "router": str(router), "seed": seed}
    file = out / "run.json"
    out.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        _keep(file, json.dumps(arguments, indent=1) + "\n")
    elif json.loads(file.read_text()) != arguments:
        raise ConfigError(f"{out} holds a run of other arguments: choose another --out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--router", type=Path, default=Path("lab-sft"))
    parser.add_argument("--out", type=Path, default=Path("runs/rl"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="check everything and train nothing")
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    if arguments.dry_run:
        from training.dry_run.report import dry_run

        router = None if settings.base else str(arguments.router)
        print(dry_run(settings, arguments.config, router))
        if settings.outcome_gradient:
            print("outcome_gradient: of the lab's small models alone, so there is nothing to check")
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("rounds run in one process: launch each phase, `training.grpo`")
    claim(arguments.out, settings, arguments.router, arguments.seed)
    best = alternate(settings, arguments.router, arguments.out, arguments.seed)
    command = (
        f"python -m training.alternate --config {arguments.config} --router {arguments.router} "
        f"--seed {arguments.seed}"
    )
    publish(best, arguments.router, arguments.out / "router", command)
    logs = sorted(arguments.out.glob("round-*/trained/log.json"))
    learning(logs).savefig(arguments.out / "curves.png", dpi=150)
    print((arguments.out / "table.md").read_text(), f"best router: {best}", sep="\n")


if __name__ == "__main__":
    main()
