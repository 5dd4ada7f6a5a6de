"""The lab's training corpus: subtasks, plans, whole tasks and worked solutions of training queries,
tokenised once.

    python -m training.corpus --out runs/lab/corpus.npz

Subtasks come from the oracle plans of training queries, so that what a plan can ask has been seen.
A row is a prompt and a completion; rows are kept by bucket `(family, form)` and mixed at training
time (`MIXTURE`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

from r2graph.lab import arith, geo, scan
from r2graph.lab.task import Task, is_test
from r2graph.plan import render_text
from training.tokenizer import build

DRAWS = 300_000  # training queries of arith and of geo
SEED = 1
# Share of training rows by bucket. Subtasks most: they are what the pool is asked in the end.
MIXTURE = {
    ("arith", "subtask"): 0.27,
    ("arith", "plan"): 0.06,
    ("arith", "whole"): 0.08,
    ("arith", "think"): 0.05,
    ("geo", "subtask"): 0.27,
    ("geo", "plan"): 0.04,
    ("geo", "whole"): 0.07,
    ("geo", "think"): 0.03,
    ("scan", "subtask"): 0.03,
    ("scan", "plan"): 0.03,
    ("scan", "whole"): 0.05,
    ("scan", "think"): 0.02,
}


def target(family: str, output: str) -> str:
    """What the model should write for `output`: numbers of arith are preceded by hidden digits,
    last first.
    """
    if family != "arith":
        return output
    return "".join(f"<{character}>" for character in reversed(output)) + output


def worked(task: Task) -> str:
    """Plan, step answers and final answer in one text (what `think:` asks for)."""
    lines = [
        _append(f"{step.id}: {prompt} ->", target(task.family, output))
        for step, (_, prompt, output) in zip(task.plan.subtasks, task.steps(), strict=True)
    ]
    return "\n".join([*lines, _append("answer:", target(task.family, task.answer))])


def _append(text: str, completion: str) -> str:
    """A space between the two, unless hidden digits stand there (the number after them brings its
    own).
    """
    return f"{text}{'' if completion.startswith('<') else ' '}{completion}"


def rows(task: Task) -> Iterator[tuple[str, str, str]]:
    """`(form, prompt, completion)` for one task."""
    for _, prompt, output in task.steps():
        yield "subtask", prompt, target(task.family, output)
    yield "plan", f"plan: {task.query}", render_text(task.plan)
    yield "whole", task.query, target(task.family, task.answer)
    yield "think", f"think: {task.query}", worked(task)


def training_tasks(draws: int = DRAWS, seed: int = SEED) -> Iterator[Task]:
    """Every training command of SCAN once; `draws` training queries of arith and of geo."""
    yield from scan.split("train")
    for draw in (arith.draw, geo.draw):
        rng = Random(seed)
        kept = 0
        while kept < draws:
            task = draw(rng)
            if not is_test(task.query):
                kept += 1
                yield task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=DRAWS)
    arguments = parser.parse_args()
    tokenizer = build()
    texts: dict[tuple[str, str], list[tuple[str, str]]] = {bucket: [] for bucket in MIXTURE}
    for task in training_tasks(arguments.draws):
        for form, prompt, completion in rows(task):
            texts[task.family, form].append((prompt, completion))
    arrays: dict[str, np.ndarray] = {}
    for (family, form), pairs in texts.items():
        prompts = _ids(tokenizer, [f"<s>{prompt}<sep>" for prompt, _ in pairs])
        completions = _ids(tokenizer, [f"{completion}</s>" for _, completion in pairs])
        name = f"{family}-{form}"
        arrays[f"{name}-tokens"] = np.concatenate(
            [np.array(p + c, dtype=np.uint8) for p, c in zip(prompts, completions, strict=True)]
        )
        arrays[f"{name}-prompt"] = np.array([len(p) for p in prompts], dtype=np.uint8)
        arrays[f"{name}-length"] = np.array(
            [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], dtype=np.uint8
        )
        mean = arrays[f"{name}-length"].mean()
        print(f"{name:14} {len(pairs):9,} rows, {mean:5.1f} tokens a row", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(arguments.out, **arrays)


def _ids(tokenizer, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = []
    for start in range(0, len(texts), 10_000):
        ids += tokenizer(texts[start : start + 10_000], add_special_tokens=False)["input_ids"]
    return ids


if __name__ == "__main__":
    main()
