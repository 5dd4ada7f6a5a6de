"""`r2graph run`: one query, and what becomes of it as it happens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r2graph.cli.options import PoolName, Quality, RouterName, open_pool, router_for

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
    from r2graph.cli.story import Story
    from r2graph.graph import create_r2_graph

    members = open_pool(pool)
    if local_only:
        members = members.local_only()
    graph = create_r2_graph(
        members, router=router_for(members, router), quality=quality, budget_usd=budget
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
    """The result's public keys, with its messages as roles and texts."""
    from langchain_core.messages import convert_to_openai_messages

    from r2graph.state import R2Output

    public = {key: result[key] for key in R2Output.__annotations__}  # type: ignore[literal-required]
    return public | {"messages": convert_to_openai_messages(result["messages"])}
