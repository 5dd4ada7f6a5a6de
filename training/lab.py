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
DECOMPOSER_BASE, ALLOCATOR_BASE = "m5", "m3"
FAST = ("--learning-rate", "2e-3")

Stage = tuple[str, Path, list[str]]  # name, the file that says it is done, module and arguments


def pretrain(model: str) -> Stage:
    out = RUNS / model
    arguments = ["--model", model, "--corpus", str(RUNS / "corpus.npz"), "--out", str(out)]
    return model, out / "training.json", ["training.pretrain", *arguments]


def fine_tune(course: str, base: Path, data: str, *settings: str) -> Stage:
    out = RUNS / "router" / course
    arguments = ["--base", str(base), "--data", str(RUNS / f"{data}.jsonl")]
    done = out / "model.safetensors"
    return course, done, ["training.sft", *arguments, "--out", str(out), *settings]


def router_data(module: str) -> Stage:
    arguments = ["--pool", str(RUNS), "--out", str(RUNS), "--only", module]
    name = f"{module} data"
    return name, RUNS / f"{module}.jsonl", ["training.router_data", *arguments]


def decomposer() -> list[Stage]:
    """Three courses: precedence takes a small planner long, and names fade meanwhile."""
    first, second = RUNS / "router/decomposer", RUNS / "router/decomposer-arith"
    last = ("--epochs", "2", "--learning-rate", "1.5e-3")
    return [
        router_data("decomposer"),
        fine_tune("decomposer", RUNS / DECOMPOSER_BASE, "decomposer", *FAST),
        router_data("decomposer-arith"),
        fine_tune("decomposer-arith", first, "decomposer-arith", *FAST),
        fine_tune("decomposer-last", second, "decomposer", *last),
    ]


CORPUS: Stage = (
    "corpus",
    RUNS / "corpus.npz",
    ["training.corpus", "--out", str(RUNS / "corpus.npz")],
)
LANES = (
    [*map(pretrain, ("m9", "m1", "m2", "m3"))],
    [*map(pretrain, ("m6", "m5", "m7", "m8", "m4")), *decomposer()],
)
THRESHOLD: Stage = (
    "threshold",
    RUNS / "threshold.json",
    ["training.threshold", "--pool", str(RUNS), "--out", str(RUNS)],
)
FINISH = [
    router_data("allocator"),
    fine_tune("allocator", RUNS / ALLOCATOR_BASE, "allocator", "--epochs", "3", *FAST),
    THRESHOLD,
]


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
