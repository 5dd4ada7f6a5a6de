"""`python -m training.dry_run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from r2graph.errors import ConfigError
from training.dry_run.launch import read
from training.dry_run.report import Machine, dry_run
from training.settings import load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--router", help="one that is there; by default the base of the settings")
    parser.add_argument("--accelerate", type=Path, help="the file of `accelerate launch`")
    parser.add_argument("--processes", type=int, help="by default those of the file, or else one")
    parser.add_argument("--card-gb", type=float, default=80.0, help="memory of a card, 10^9 bytes")
    given = parser.parse_args()
    try:
        launch = read(given.accelerate) if given.accelerate else None
        processes = given.processes or (launch.processes if launch else 1)
        on = Machine(processes, given.card_gb, launch)
        print(dry_run(load_settings(given.config), given.config, given.router, on))
    except ConfigError as error:
        raise SystemExit(f"{given.config}: {error}") from None


if __name__ == "__main__":
    main()
