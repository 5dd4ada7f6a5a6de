"""Copy what training made into the package: the nine models with their cards, and the pool file with their prices.

    python -m training.ship --runs runs/lab
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from training.outcomes import MODELS

PACKAGE = Path(__file__).parent.parent / "r2graph"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
HEAD = """\
# The lab: nine models that this project trains from nothing (`make lab`), written by training/ship.py. A price is compute:
# a dollar per million tokens for each million parameters.
name: lab
language: lab
members:
"""
CARD = """\
---
license: apache-2.0
library_name: transformers
---
# {model} of the r2graph lab

A decoder-only transformer (Llama blocks) of {parameters:,} parameters that answers subtasks, plans and whole tasks of the lab's
three families (SCAN commands, integer expressions, questions on places). It knows nothing else.

- Made by: `python -m training.pretrain --model {model} --corpus runs/lab/corpus.npz --out runs/lab/{model}`
  (part of `make lab`), {steps:,} steps, seed {seed}, from random weights.
- From: the corpus of `training/corpus.py` (seed 1): SCAN training commands (BSD), generated expressions, questions over GeoNames
  facts (CC BY 4.0, geonames.org).
- Accuracy by kind of subtask: docs/lab.md.
"""


def copy_model(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, required=True)
    arguments = parser.parse_args()
    pool = HEAD
    for model in MODELS:
        made = json.loads((arguments.runs / model / "training.json").read_text())
        target = PACKAGE / "lab/artefacts" / model
        copy_model(arguments.runs / model, target)
        (target / "README.md").write_text(CARD.format(**made))
        price = f"{made['parameters'] / 1e6:.6f}"
        pool += (
            f"  - name: {model}\n    model: local:../lab/artefacts/{model}\n"
            f"    price: {{input_per_mtok: {price}, output_per_mtok: {price}}}\n"
            f"    context_length: 256\n    tags: [local]\n"
        )
    (PACKAGE / "pools/lab.yaml").write_text(pool)


if __name__ == "__main__":
    main()
