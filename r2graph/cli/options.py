"""Options that several commands take, and what their defaults mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from r2graph.pool import ModelPool

PoolName = Annotated[
    str, typer.Option("--pool", help="lab, openai, vllm, hybrid, paper, or a YAML file.")
]
RouterName = Annotated[
    str | None,
    typer.Option("--router", help="lab, a directory, or none [default: lab for the lab's pool]"),
]
Quality = Annotated[float, typer.Option(help="How sure each step should be, 0 to 1.")]


def router_for(pool: ModelPool, name: str | None) -> str | None:
    """The router that is meant: by default the one that speaks the pool's language, if any does."""
    if name is None:
        return "lab" if pool.language == "lab" else None
    return None if name == "none" else name
