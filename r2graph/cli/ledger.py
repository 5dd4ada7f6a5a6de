"""`r2graph ledger`: what runs have cost, call by call, and what is in doubt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from r2graph.ledger import Line


def ledger(
    source: Annotated[
        str, typer.Argument(help="Its SQLite file, or a postgresql:// URL (see PGPASSFILE).")
    ],
    run: Annotated[str | None, typer.Argument(help="Id of a run [default: all runs]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what each run has cost, or one run's calls, and what is in doubt.

    A call is in doubt if its process ended, or gave up, before an answer came: it may have been
    answered, and billed, and counts at its worst case.
    """
    calls = read(source, run)
    if as_json:
        told = {"runs": runs_of(calls)} if run is None else {"run": run, "calls": bill_of(calls)}
        typer.echo(json.dumps(told, ensure_ascii=False))
    else:
        show(calls, runs_table(calls) if run is None else bill_table(calls))


@dataclass(frozen=True, slots=True)
class Call:
    """A call, and how it stands now that its process may be gone."""

    line: Line
    is_in_doubt: bool

    @property
    def state(self) -> str:
        if self.is_in_doubt:
            return "in doubt"
        return "in flight" if self.line.state == "intent" else self.line.state


def read(source: str, run: str | None) -> list[Call]:
    """The calls in a ledger; raises `ConfigError` if there is no such ledger, or no such run."""
    from r2graph.errors import ConfigError
    from r2graph.ledger import Ledger

    is_file = "://" not in source
    if is_file and not Path(source).is_file():  # opening it would make one
        raise ConfigError(f"there is no ledger {source}: give the file of `ledger=`")
    with Ledger(source) as opened:
        calls = [Call(line, opened.is_in_doubt(line)) for line in opened.lines(run)]
    if run is not None and not calls:
        raise ConfigError(f"there is no run {run!r}: leave it out to see which there are")
    return calls


def runs_of(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """What each run has cost, in the order in which the runs began."""
    from r2graph.pricing import to_text

    runs: dict[str, list[Call]] = {}
    for call in calls:
        runs.setdefault(call.line.run, []).append(call)
    return [
        {
            "run": run,
            "calls": len(its),
            "cost_usd": to_text(dollars(its)),
            "in_doubt": sum(call.is_in_doubt for call in its),
            "in_doubt_usd": to_text(doubtful(its)),
        }
        for run, its in runs.items()
    ]


def bill_of(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Each call of a run; tokens are null where no reply says how many there were."""
    from r2graph.pricing import to_text

    return [
        {
            "role": call.line.role,
            "member": call.line.member,
            "step": call.line.step,
            "state": call.state,
            "kind": call.line.kind,
            "input_tokens": (call.line.reply or {}).get("input_tokens"),
            "output_tokens": (call.line.reply or {}).get("output_tokens"),
            "cost_usd": to_text(call.line.usd),
        }
        for call in calls
    ]


def dollars(calls: Sequence[Call]) -> Decimal:
    return sum((call.line.usd for call in calls), Decimal(0))


def doubtful(calls: Sequence[Call]) -> Decimal:
    return dollars([call for call in calls if call.is_in_doubt])


def runs_table(calls: Sequence[Call]) -> Table:
    table = table_of("run", numbers=("calls", "$", "in doubt", "$ in doubt"))
    table.columns[0].no_wrap = True  # it is copied to ask for one run
    for row in runs_of(calls):
        table.add_row(*(str(cell) for cell in row.values()))
    return table


def bill_table(calls: Sequence[Call]) -> Table:
    texts = "role", "member", "step", "state"
    table = table_of(*texts, numbers=("tokens in", "tokens out", "$"))
    for row in bill_of(calls):
        kind = row.pop("kind")
        row["state"] += f": {kind}" if kind else ""
        table.add_row(*("" if cell is None else f"{cell}" for cell in row.values()))
    return table


def table_of(*texts: str, numbers: Sequence[str]) -> Table:
    """An empty table whose cells are shown whole."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    return table


def show(calls: Sequence[Call], table: Table) -> None:
    from rich.console import Console

    from r2graph.pricing import to_text

    console = Console(highlight=False, markup=False)
    console.print(table)
    in_doubt = sum(call.is_in_doubt for call in calls)
    note = (
        f"; ${to_text(doubtful(calls))} of it is in doubt: calls that may have been answered, "
        f"and billed ({in_doubt})"
        if in_doubt
        else ""
    )
    console.print(f"${to_text(dollars(calls))} in all{note}", soft_wrap=True)
