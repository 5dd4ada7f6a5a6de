"""The command line: `r2graph run`, `serve`, `up`, `eval`, `fit`, `calibrate`, `ledger`,
`pool check`, `trace export` and `doctor`.

A command imports what it needs when it runs, so that `--help` is quick. What r2graph raises on
purpose ends in one line on standard error and exit code 2; checks that fail end in exit code 1.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from r2graph.cli.calibrate import calibrate
from r2graph.cli.doctor import doctor
from r2graph.cli.evaluate import evaluate
from r2graph.cli.fit import fit
from r2graph.cli.ledger import ledger
from r2graph.cli.pool import check
from r2graph.cli.run import run
from r2graph.cli.serve import serve
from r2graph.cli.trace import export
from r2graph.cli.up import up
from r2graph.errors import R2Error


class Commands(TyperGroup):
    """Commands whose errors are messages, not tracebacks."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except R2Error as error:
            spent = f" (${error.cost_usd} had been spent)" if float(error.cost_usd or 0) else ""
            typer.echo(f"r2graph: {error}{spent}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Commands,
    help="Route each step of a task to the cheapest model that can do it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
pool = typer.Typer(help="Look after pools of models.", no_args_is_help=True)
trace = typer.Typer(help="Get at runs as data.", no_args_is_help=True)

app.command()(run)
app.command()(serve)
app.command()(up)
app.command("eval")(evaluate)
app.command()(fit)
app.command()(calibrate)
app.command()(ledger)
app.add_typer(pool, name="pool")
app.add_typer(trace, name="trace")
app.command()(doctor)
pool.command()(check)
trace.command()(export)
