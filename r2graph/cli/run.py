"""`r2graph run`: one query, and what becomes of it as it happens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r2graph.cli.options import PoolName, Quality, RouterName, router_for

if TYPE_CHECKING:
    from r2graph.state import R2Output


def run(
    query: Annotated[str, typer.Argument(help="What to answer.")],
    pool: PoolName = "lab",
    router: RouterName = None,
    quality: Quality = 0.9,
    budget: Annotated[str | None, typer.Option(help="Dollars that the run must not pass.")] = None,
    local_only: Annotated[bool, typer.Option(help="Use only members on this device.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer a query: print its plan, who does what, and the bill."""
    from r2graph import create_r2_graph, load_pool
    from r2graph.cli.story import Story

    members = load_pool(pool)
    graph = create_r2_graph(
        members,
        router=router_for(members, router),
        quality=quality,
        budget_usd=budget,
        local_only=local_only,
    )
    story = Story(quiet=as_json)
    result: Any = None
    for mode, payload in graph.stream({"query": query}, stream_mode=["custom", "values"]):
        if mode == "custom":
            story.tell(payload)
        else:
            result = payload
    if as_json:
        typer.echo(json.dumps(plain(result), ensure_ascii=False))
    else:
        story.end(result, members.names[-1])
    if not result["answer"]:
        raise typer.Exit(1)


def plain(result: R2Output) -> dict[str, Any]:
    """The result with its messages as roles and texts."""
    messages = [{"role": message.type, "content": message.text} for message in result["messages"]]
    return {**result, "messages": messages}
