"""The card that makes a router of two fine-tuned modules.

    python -m training.new_router --config training/configs/paper.yaml --router runs/paper/router

The modules lie in `decomposer` and `allocator` of that directory, where `training.sft` wrote them;
what they were made of is in the settings' entries `base` and `sft`. The router's check is that of
form: `training/threshold.py` shows how the lab's thresholds are chosen.
"""

from __future__ import annotations

import argparse
from hashlib import sha256
from pathlib import Path

import yaml

from r2graph import load_pool, load_router
from r2graph.errors import ConfigError
from r2graph.router import CARD, MODULES, Prices, Router, RouterCard
from training.settings import Settings, load_settings


def card(settings: Settings, name: str) -> RouterCard:
    """The card of a router that was fine-tuned from the base on the rows that the settings name."""
    if settings.base is None:
        raise ConfigError("a new router needs an entry `base`: the model and what it charges")
    digest = sha256()
    for module in MODULES:
        try:
            digest.update(settings.sft[module].read_bytes())
        except OSError:
            raise ConfigError(f"{settings.sft[module]} cannot be read") from None
    return RouterCard(
        name=name,
        language=load_pool(settings.pool).language,
        base=settings.base.model,
        trained_with="SFT with TRL's SFTTrainer",
        command="python -m training.sft, python -m training.new_router",
        seed=1,
        data_sha256=digest.hexdigest(),
        prices=Prices(decomposer=settings.base.price, allocator=settings.base.price),
    )


def write(settings: Settings, folder: Path, name: str) -> Router:
    """Write the card beside the modules and load the router that it makes."""
    made = card(settings, name).model_dump(mode="json")
    (folder / CARD).write_text(yaml.safe_dump(made, sort_keys=False))
    return load_router(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--router", type=Path, required=True, help="with both modules in it")
    arguments = parser.parse_args()
    write(load_settings(arguments.config), arguments.router, arguments.config.stem)
    print(f"{arguments.router / CARD} is written")


if __name__ == "__main__":
    main()
