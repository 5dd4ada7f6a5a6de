"""Whether GRPO learns the same in two processes as in one.

    python -m benchmarks.processes [--seeds N] [--steps N] [--at-once N] [--out DIR]

The parent is `lab-sft` with noise on its allocator's weights, so that there is something to learn.
Each run is `accelerate launch` of `training.grpo` with the same prompts a step, on CPUs, in a
directory of its own, and is not made again. Printed are mean rewards over the first and the last
20 steps and over all of them, which is the area under the curve.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from r2graph import load_router
from training.grpo import folder
from training.settings import Settings

PARENT, NOISE, SEED = "lab-sft", 0.1, 1
PROCESSES = (1, 2)
ENDS = 20  # steps
LAUNCH = ("-m", "accelerate.commands.launch", "--config_file")
TWO_CPUS = "training/configs/accelerate/two_cpus.yaml"


def settings(steps: int) -> dict[str, Any]:
    return {
        "pool": "lab",
        "queries": {"arith": 80, "geo": 120},
        "held_out": {"arith": 5, "geo": 5},
        "allocator": {
            "steps": steps,
            "prompts": 8,
            "generations": 8,
            "max_completion_tokens": 24,
            "learning_rate": 1e-3,
        },
    }


def handicapped(out: Path, noise: float = NOISE) -> None:
    """Write the parent: `noise` is in standard deviations of each tensor's weights."""
    if out.exists():
        return
    shutil.copytree(folder(load_router(PARENT), "allocator").parent, out)
    file = out / "allocator" / "model.safetensors"
    random = torch.Generator().manual_seed(SEED)
    weights = {
        name: tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=random)
        for name, tensor in load_file(file).items()
    }
    save_file(weights, file, {"format": "pt"})


def rewards(out: Path, router: Path, processes: int, seed: int) -> list[float]:
    """The mean rewards of a run, each of five steps."""
    log = out / f"processes-{processes}-seed-{seed}" / "log.json"
    if not log.exists():
        command = [
            sys.executable, *LAUNCH, TWO_CPUS, "--num_processes", str(processes),
            "-m", "training.grpo", "--module", "allocator", "--config", str(out / "settings.yaml"),
            "--router", str(router), "--seed", str(seed), "--out", str(log.parent),
            "--outcomes", str(out / "outcomes.sqlite"),
        ]  # fmt: skip
        with (out / f"{log.parent.name}.txt").open("w") as told:
            subprocess.run(
                command,
                check=True,
                stdout=told,
                stderr=told,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )
    return [entry["reward"] for entry in json.loads(log.read_text()) if "loss" in entry]


def figures(curve: Sequence[float], steps: int) -> tuple[float, float, float]:
    n = ENDS * len(curve) // steps
    return fmean(curve[:n]), fmean(curve[-n:]), fmean(curve)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--at-once", type=int, default=1, help="runs, where there are cores")
    parser.add_argument("--out", type=Path, default=Path("runs/processes"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    router = given.out / "parent"
    handicapped(router)
    run = Settings.model_validate(settings(given.steps)).model_dump(mode="json", exclude_none=True)
    (given.out / "settings.yaml").write_text(yaml.safe_dump(run))
    print(f"processes  seed  first {ENDS}  last {ENDS}    all")
    runs = list(product(range(1, given.seeds + 1), PROCESSES))
    with ThreadPoolExecutor(given.at_once) as at_once:
        curves = at_once.map(lambda run: rewards(given.out, router, run[1], run[0]), runs)
        found: dict[int, list[tuple[float, float, float]]] = {n: [] for n in PROCESSES}
        for (seed, n), curve in zip(runs, curves, strict=True):
            of = figures(curve, given.steps)
            found[n].append(of)
            print(f"{n:9} {seed:5} {of[0]:9.4f} {of[1]:8.4f} {of[2]:6.4f}", flush=True)
    for n, each in found.items():
        means = [fmean(column) for column in zip(*each, strict=True)]
        print(f"{n:9}  mean {means[0]:9.4f} {means[1]:8.4f} {means[2]:6.4f}")
        if len(each) > 1:
            apart = [stdev(column) for column in zip(*each, strict=True)]
            print(f"    between seeds {apart[0]:6.4f} {apart[1]:8.4f} {apart[2]:6.4f}")


if __name__ == "__main__":
    main()
