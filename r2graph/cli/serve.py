"""`r2graph serve`: pools behind OpenAI's API, with a page to watch runs on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from r2graph.cli.options import LEDGER_VARIABLE, Quality, RouterName, open_pool, router_for

if TYPE_CHECKING:
    from fastapi import FastAPI

    from r2graph.pool import ModelPool

POOL_BUDGET_VARIABLE = "R2GRAPH_POOL_BUDGET"
GRACE_S = 30  # for runs under way when the server is told to end
MAX_CONNECTIONS = 1000
KEEP_ALIVE_S = 65  # longer than clients keep a connection, or they write to one that is closing


def serve(
    pool: Annotated[
        list[str] | None,
        typer.Option(help="lab, openai, …, or a YAML file; may be repeated [default: lab]"),
    ] = None,
    router: RouterName = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8000,
    quality: Quality = 0.9,
    budget: Annotated[str | None, typer.Option(help="Dollars that no run may pass.")] = None,
    pool_budget: Annotated[
        str | None,
        typer.Option(help="Dollars that all runs together may spend.", envvar=POOL_BUDGET_VARIABLE),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(
            help="SQLite file or postgresql:// URL that keeps all calls.", envvar=LEDGER_VARIABLE
        ),
    ] = None,
    max_runs: Annotated[int, typer.Option(help="Runs at once.", min=1)] = 16,
    max_waiting: Annotated[int, typer.Option(help="Runs that may wait.", min=0)] = 64,
) -> None:
    """Serve pools as chat models, with a page to watch runs on, /metrics and /healthz.

    Clients must send the key in R2GRAPH_API_KEY, if that is set; without one only this machine is
    served.
    """
    from r2graph.graph import create_r2_graph
    from r2graph.ledger import Ledger
    from r2graph.serve import create_app
    from r2graph.serve.guard import check_binding, read_key

    key = read_key()
    check_binding(host, key)
    books = None
    if ledger is not None or pool_budget is not None:
        books = Ledger(ledger or ":memory:")  # one for all pools
    pools = {each.name: each for each in map(open_pool, pool or ["lab"])}
    graphs = {
        name: create_r2_graph(
            each,
            router=router_for(each, router),
            quality=quality,
            budget_usd=budget,
            pool_budget=pool_budget,
            ledger=books,
        )
        for name, each in pools.items()
    }
    app = create_app(graphs, key=key, max_runs=max_runs, max_waiting=max_waiting)
    for each in pools.values():
        _load(each)
    _listen(app, host, port, f"{', '.join(graphs)}{'' if key else ', without a key'}")


def _load(pool: ModelPool) -> None:
    """Build all models before anyone waits for them: to load torch alone may take a minute.

    Raises `ConfigError` for one that cannot be had, such as `MissingKeyError`.
    """
    for spec in pool.members:
        chat = spec.chat
        if isinstance(spec.model, str) and spec.model.startswith("local:"):
            chat.get_num_tokens("")  # reads the files


def _listen(app: FastAPI, host: str, port: int, what: str) -> None:
    """Serve until told to end: no new runs then, and those under way have `GRACE_S` seconds."""
    import uvicorn

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("r2graph.serve").setLevel(logging.INFO)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_S,
    )
    socket = config.bind_socket()
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"r2graph serves {what}: http://{shown}:{socket.getsockname()[1]}")
    uvicorn.Server(config).run(sockets=[socket])
