"""Train the whole lab from nothing: corpus, nine models, router; then copy it into the package
(`make lab`).

    python -m training.lab

Every stage is a script of its own, run as a process with its log under `runs/lab/log`; a finished
stage is skipped and an interrupted one resumes. Two lanes run side by side.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.progress import Progress, TextColumn, TimeElapsedColumn

RUNS = Path("runs/lab")
MODULES = {"decomposer": "planner", "allocator": "allocator"}  # as `training/pretrain.py` has them

Stage = tuple[str, Path, list[str]]  # name, the file that says it is done, module and arguments


def pretrain(model: str, corpus: str = "corpus", out: str | None = None) -> Stage:
    folder = RUNS / (out or model)
    arguments = ["--model", model, "--corpus", str(RUNS / f"{corpus}.npz"), "--out", str(folder)]
    return model, folder / "training.json", ["training.pretrain", *arguments]


def module(name: str) -> list[Stage]:
    """A module of the router: what it is taught, and its training."""
    model = MODULES[name]
    arguments = ["--pool", str(RUNS), "--out", str(RUNS), "--only", model]
    data = f"{model} data", RUNS / f"{model}.npz", ["training.router_data", *arguments]
    return [data, pretrain(model, model, f"router/{name}")]


CORPUS: Stage = (
    "corpus",
    RUNS / "corpus.npz",
    ["training.corpus", "--out", str(RUNS / "corpus.npz")],
)
LANES = (
    [*map(pretrain, ("m9", "m1", "m2", "m3"))],
    [*map(pretrain, ("m6", "m5", "m7", "m8", "m4")), *module("decomposer")],
)
THRESHOLD: Stage = (
    "threshold",
    RUNS / "threshold.json",
    ["training.threshold", "--pool", str(RUNS), "--out", str(RUNS)],
)
FINISH = [*module("allocator"), THRESHOLD]


def run(stages: list[Stage], progress: Progress) -> None:
    """Run one stage after the other; stops at the first that fails."""
    for name, done, command in stages:
        row = progress.add_task(name, total=1)
        if not done.exists():
            log = RUNS / "log" / f"{name.replace(' ', '-')}.log"
            with log.open("a") as file:
                subprocess.run(
                    [sys.executable, "-m", *command], check=True, stdout=file, stderr=file
                )
        progress.update(row, completed=1, description=f"{name} done")


def main() -> None:
    (RUNS / "log").mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with Progress(TextColumn("{task.description}"), TimeElapsedColumn()) as progress:
        run([CORPUS], progress)
        with ThreadPoolExecutor(len(LANES)) as lanes:
            for lane in [lanes.submit(run, stages, progress) for stages in LANES]:
                lane.result()
        run(FINISH, progress)
    subprocess.run([sys.executable, "-m", "training.ship", "--runs", str(RUNS)], check=True)
    print(f"the lab is trained and in the package, {(time.monotonic() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
