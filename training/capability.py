"""The capability gradient: accuracy of each model on each kind of subtask, on test tasks, as a
Markdown table.

python -m training.capability --pool r2graph/lab/artefacts --out runs/lab/capability.md
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from r2graph.lab import benchmarks
from r2graph.lab.task import Task
from training.outcomes import MODELS, Outcomes

TASKS = 1_000  # of each benchmark


def asked(task: Task, benchmark: str) -> list[tuple[str, str, str]]:
    """`(kind, prompt, right output)`: the oracle steps, and the whole task as one subtask."""
    steps = [(f"{task.family} {kind}", prompt, output) for kind, prompt, output in task.steps()]
    return [*steps, (f"{benchmark}, whole task", task.query, task.answer)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--outcomes", type=Path, default=Path("runs/lab/capability.jsonl"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.outcomes.parent.mkdir(parents=True, exist_ok=True)
    outcomes = Outcomes(arguments.pool, arguments.outcomes)
    questions: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in benchmarks.NAMES[:4]:
        for task in benchmarks.tasks(name, TASKS):
            for kind, prompt, output in asked(task, name):
                questions[kind].append((prompt, output))
    outcomes.fill(prompt for pairs in questions.values() for prompt, _ in pairs)
    lines = [
        f"| kind of subtask | n | {' | '.join(MODELS)} |",
        f"|---|---|{'---|' * len(MODELS)}",
    ]
    for kind, pairs in sorted(questions.items()):
        shares = []
        for model in MODELS:
            said = outcomes.get_all(model, [prompt for prompt, _ in pairs])
            right = sum(
                outcome.text.split() == output.split()
                for outcome, (_, output) in zip(said, pairs, strict=True)
            )
            shares.append(f"{right / len(pairs):.2f}".lstrip("0") if right < len(pairs) else "1.0")
        lines.append(f"| {kind} | {len(pairs):,} | {' | '.join(shares)} |")
    arguments.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
