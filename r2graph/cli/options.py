"""Options that several commands take, and what their defaults mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from r2graph.pool import ModelPool

# In the environment a URL's password is not in the list of processes, as it is on a command line.
LEDGER_VARIABLE = "R2GRAPH_LEDGER"

PoolName = Annotated[
    str, typer.Option("--pool", help="lab, openai, vllm, hybrid, paper, or a YAML file.")
]
RouterName = Annotated[
    str | None,
    typer.Option("--router", help="lab, a directory, or none [default: lab for the lab's pool]"),
]
Quality = Annotated[float, typer.Option(help="How sure each step should be, 0 to 1.")]


def open_pool(name: str) -> ModelPool:
    """The pool of that name or file. Call it before torch is imported."""
    from r2graph.pool import load_pool

    pool = load_pool(name)
    if pool.language == "lab":
        # The lab's models are too small to share: a second thread makes them ten times slower.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    return pool


def make_parent(file: Path) -> None:
    """Make the directory that a file is to be in; raises `ConfigError`, before any work is done."""
    from r2graph.errors import ConfigError

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise ConfigError(
            f"{file.parent} is no directory and none can be made: nothing could be saved there"
        ) from None


def router_for(pool: ModelPool, name: str | None) -> str | None:
    """The router that is meant: by default the one that speaks the pool's language, if any does."""
    if name is None:
        return "lab" if pool.language == "lab" else None
    return None if name == "none" else name
