"""Copy what training made into the package, with cards.

python -m training.ship --runs runs/lab            # nine models, pool file, router `lab-sft`
python -m training.ship --router runs/rl/seed-1/router     # artefacts/router

Which of the two routers the name `lab` stands for is said in `r2graph/router.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import yaml

from r2graph import load_router
from training.alternate import write_card
from training.lab import MODULES
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
# The lab: nine models that this project trains from nothing (`make lab`), written by
# training/ship.py. A price is compute: a dollar per million tokens for each million parameters.
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

A decoder-only transformer (Llama blocks) of {parameters:,} parameters that answers subtasks, plans
and whole tasks of the lab's three families (SCAN commands, integer expressions, questions on
places). It knows nothing else.

- Made by: `python -m training.pretrain --model {model} --corpus runs/lab/corpus.npz --out
runs/lab/{model}`
  (part of `make lab`), {steps:,} steps, seed {seed}, from random weights.
- From: the corpus of `training/corpus.py` (seed 1): SCAN training commands (BSD), generated
expressions, questions over GeoNames
  facts (CC BY 4.0, geonames.org).
- Accuracy by kind of subtask: docs/lab.md.
"""


ROUTER_CARD = """\
---
license: apache-2.0
library_name: transformers
---
# {module} of the r2graph lab's router

A decoder-only transformer (Llama blocks) of {parameters:,} parameters, taught from random weights
and taught nothing else. {purpose}

- Made by: `python -m training.pretrain --model {model} --corpus runs/lab/{model}.npz --out
  runs/lab/router/{module}` (part of `make lab`), {steps:,} steps, seed {seed}.
- From: `training/router_data.py` (seed 2): {data}
- How good it is: README.md, docs/lab.md.
"""
PURPOSE = {
    "decomposer": "Asked `plan: QUERY`, it writes the plan in r2graph's plan language.",
    "allocator": "Asked `q9` and a line for each subtask, it writes a slot for each, `m1` to `m9`, "
    "and `q1` after it where the step's output is to be trusted.",
}
DATA = {
    "decomposer": "oracle plans of training queries.",
    "allocator": "labels from what each model of the pool answered to the steps of training "
    "queries\n  and to every fact of the geo family (GeoNames, CC BY 4.0).",
}
TRAINED_CARD = """\
---
license: apache-2.0
library_name: transformers
---
# {module} of the r2graph lab's router

{purpose}

- From: the {module} of `lab-sft`, in `../../router-sft`.
- Made by: {trained_with} (`{command}`); what it was trained on has its sha256 in `router.yaml`.
- How good it is: README.md, docs/training.md.
"""


def copy_model(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--runs", type=Path, help="the lab: models and router after SFT")
    what.add_argument("--router", type=Path, help="the router after reinforcement learning")
    arguments = parser.parse_args()
    if arguments.router:
        ship_trained_router(arguments.router)
    else:
        ship_pool(arguments.runs)
        ship_router(arguments.runs)


def ship_pool(runs: Path) -> None:
    pool = HEAD
    for model in MODELS:
        made = json.loads((runs / model / "training.json").read_text())
        target = PACKAGE / "lab/artefacts" / model
        copy_model(runs / model, target)
        (target / "README.md").write_text(CARD.format(**made))
        price = f"{made['parameters'] / 1e6:.6f}"
        pool += (
            f"  - name: {model}\n    model: local:../lab/artefacts/{model}\n"
            f"    price: {{input_per_mtok: {price}, output_per_mtok: {price}}}\n"
            f"    context_length: 256\n    tags: [local]\n"
        )
    (PACKAGE / "pools/lab.yaml").write_text(pool)


def ship_trained_router(source: Path) -> None:
    router, target = load_router(source), PACKAGE / "lab/artefacts/router"
    card = router.card.model_copy(update={"name": "lab", "parent": "lab-sft"})
    for module in MODULES:
        copy_model(source / module, target / module)
        text = TRAINED_CARD.format(module=module, purpose=PURPOSE[module], **card.model_dump())
        (target / module / "README.md").write_text(text)
    write_card(target, card)


def ship_router(runs: Path) -> None:
    target = PACKAGE / "lab/artefacts/router-sft"
    digests, prices = hashlib.sha256(), {}
    for module, model in MODULES.items():
        digests.update((runs / f"{model}.npz").read_bytes())
        copy_model(runs / "router" / module, target / module)
        made = json.loads((runs / "router" / module / "training.json").read_text())
        price = f"{made['parameters'] / 1e6:.6f}"
        prices[module] = {"input_per_mtok": price, "output_per_mtok": price}
        card = ROUTER_CARD.format(module=module, purpose=PURPOSE[module], data=DATA[module], **made)
        (target / module / "README.md").write_text(card)
    router = {
        "format": 1,
        "name": "lab-sft",
        "language": "lab",
        "n_slots": len(MODELS),
        "base": "random weights",
        "trained_with": "supervised training (training/pretrain.py)",
        "command": "make lab",
        "seed": 1,
        "data_sha256": digests.hexdigest(),
        "prices": prices,
        "confidence_thresholds": json.loads((runs / "threshold.json").read_text())["thresholds"],
    }
    (target / "router.yaml").write_text(yaml.safe_dump(router, sort_keys=False))


if __name__ == "__main__":
    main()
