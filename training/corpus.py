"""The lab's training corpus: subtasks, plans, whole tasks and worked solutions of training queries,
tokenised once.

    python -m training.corpus --out runs/lab/corpus.npz

Subtasks come from the oracle plans of training queries, so that what a plan can ask has been seen.
A row is a prompt and a completion; rows are kept by bucket `(family, form)` and mixed at training
time (`MIXTURE`). Operations have a bucket for each kind, for what is rare among the steps of
queries (four digits, two by two) is what takes longest to learn.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from r2graph.lab import arith, scan
from r2graph.lab.task import Task
from r2graph.plan import render_text
from training.queries import training_queries
from training.tokenizer import build

DRAWS = 300_000  # training queries of arith and of geo
SEED = 1
# Share of training rows by bucket. Subtasks most: they are what the pool is asked in the end.
MIXTURE = {
    ("arith", "+- 1"): 0.03,
    ("arith", "+- 2"): 0.10,
    ("arith", "+- 3"): 0.09,
    ("arith", "+- 4"): 0.08,
    ("arith", "* 1x1"): 0.03,
    ("arith", "* 2x1"): 0.07,
    ("arith", "* 2x2"): 0.06,
    ("arith", "plan"): 0.025,
    ("arith", "whole"): 0.03,
    ("arith", "think"): 0.02,
    ("geo", "subtask"): 0.345,
    ("geo", "plan"): 0.015,
    ("geo", "whole"): 0.03,
    ("geo", "think"): 0.015,
    ("scan", "subtask"): 0.02,
    ("scan", "plan"): 0.01,
    ("scan", "whole"): 0.02,
    ("scan", "think"): 0.01,
}
# What the router's modules are taught (`training/router_data.py`).
PLANS = {("arith", "plan"): 0.45, ("geo", "plan"): 0.40, ("scan", "plan"): 0.15}
ALLOCATIONS = {
    ("arith", "slots"): 0.30,
    ("geo", "slots"): 0.35,
    ("fact", "slots"): 0.33,
    ("scan", "slots"): 0.02,
}
Arrays = dict[str, np.ndarray]


def target(family: str, prompt: str, output: str) -> str:
    """What the model should write for `output`. Numbers of arith are preceded by hidden digits,
    last first; those of a two-by-two product by the products with ones and tens before them.
    """
    if family != "arith":
        return output
    return "<|>".join(map(_scratch, [*_partial_products(prompt), output])) + output


def _scratch(number: str) -> str:
    return "".join(f"<{character}>" for character in reversed(number))


def _partial_products(prompt: str) -> list[str]:
    """`376, 282` for `47 * 68`; none for any other operation, or for more than one."""
    match prompt.split():
        case [a, "*", b] if min(arith.digits(int(a)), arith.digits(int(b))) == 2:
            tens, ones = divmod(abs(int(b)), 10)
            return [str(abs(int(a)) * ones), str(abs(int(a)) * tens)]
    return []


def worked(task: Task) -> str:
    """Plan, step answers and final answer in one text (what `think:` asks for)."""
    lines = [
        _append(f"{step.id}: {prompt} ->", target(task.family, prompt, output))
        for step, (_, prompt, output) in zip(task.plan.subtasks, task.steps(), strict=True)
    ]
    return "\n".join([*lines, _append("answer:", target(task.family, task.query, task.answer))])


def _append(text: str, completion: str) -> str:
    """A space between the two, unless hidden digits stand there (the number after them brings its
    own).
    """
    return f"{text}{'' if completion.startswith('<') else ' '}{completion}"


def rows(task: Task) -> Iterator[tuple[str, str, str]]:
    """`(form, prompt, completion)` for one task; the form of an operation is its kind."""
    for kind, prompt, output in task.steps():
        form = kind if task.family == "arith" else "subtask"
        yield form, prompt, target(task.family, prompt, output)
    yield "plan", f"plan: {task.query}", render_text(task.plan)
    yield "whole", task.query, target(task.family, task.query, task.answer)
    yield "think", f"think: {task.query}", worked(task)


def training_tasks(family: str, draws: int) -> Iterator[Task]:
    """Every training command of SCAN once, or `draws` training queries of arith or of geo."""
    if family == "scan":
        return iter(scan.split("train"))
    return islice(training_queries(family, SEED), draws)


def tokenised(family: str, draws: int) -> Arrays:
    """Tokens, prompt lengths and row lengths of a family, by bucket."""
    return bucketed(
        (f"{family}-{form}", prompt, completion)
        for task in training_tasks(family, draws)
        for form, prompt, completion in rows(task)
    )


def bucketed(texts: Iterable[tuple[str, str, str]]) -> Arrays:
    """Tokens, prompt lengths and row lengths of `(bucket, prompt, completion)`, by bucket."""
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for bucket, prompt, completion in texts:
        pairs[bucket].append((f"<s>{prompt}<sep>", f"{completion}</s>"))
    encode = build().backend_tokenizer.encode_batch_fast
    arrays: Arrays = {}
    for name, of_bucket in pairs.items():
        prompts, completions = (
            [encoding.ids for encoding in encode(list(side), add_special_tokens=False)]
            for side in zip(*of_bucket, strict=True)
        )
        both = [p + c for p, c in zip(prompts, completions, strict=True)]
        arrays[f"{name}-tokens"] = np.concatenate([np.array(ids, dtype=np.uint8) for ids in both])
        arrays[f"{name}-prompt"] = np.array([len(ids) for ids in prompts], dtype=np.uint8)
        arrays[f"{name}-length"] = np.array([len(ids) for ids in both], dtype=np.uint8)
        mean = arrays[f"{name}-length"].mean()
        print(f"{name:14} {len(of_bucket):9,} rows, {mean:5.1f} tokens a row", flush=True)
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=DRAWS)
    arguments = parser.parse_args()
    families = list(dict.fromkeys(family for family, _ in MIXTURE))
    arrays: Arrays = {}
    with ProcessPoolExecutor() as processes:
        for made in processes.map(tokenised, families, [arguments.draws] * len(families)):
            arrays |= made
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(arguments.out, **arrays)


if __name__ == "__main__":
    main()
