"""`r2graph eval`: methods against each other on the lab's benchmarks."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2graph.cli.options import PoolName, Quality, RouterName, open_pool, router_for

if TYPE_CHECKING:
    from r2graph.evaluation.bars import Bar
    from r2graph.evaluation.frontier import Gain, Point
    from r2graph.evaluation.outcomes import Row
    from r2graph.evaluation.run import Evaluation, Setup

WIDTH = 110  # of the tables in a file


def evaluate(
    pool: PoolName = "lab",
    router: RouterName = None,
    benchmarks: Annotated[
        str, typer.Option(help="Comma-separated; arith-deep is one more.")
    ] = "scan-simple,scan-length,arith,geo",
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: single-K, cot-strongest, plan-K, random, cheapest-first, "
            "router (or rl), sft, router:PATH, each with @QUALITY or @all; oracle, or all."
        ),
    ] = "all",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Queries a benchmark [default: 2,000]")
    ] = None,
    quality: Quality = 0.9,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Save the rows as JSON.")
    ] = None,
    bars_file: Annotated[
        Path | None, typer.Option("--bars", dir_okay=False, help="Save the bars as JSON.")
    ] = None,
    frontier_file: Annotated[
        Path | None,
        typer.Option(
            "--frontier",
            dir_okay=False,
            help="Save accuracy and costs by quality as CSV, and set routers against sft.",
        ),
    ] = None,
    outcomes_file: Annotated[
        Path | None,
        typer.Option(
            "--outcomes", dir_okay=False, help="Keep replies here, and ask no model again."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes; each takes one benchmark at a time.")
    ] = 1,
) -> None:
    """Compare methods on the lab's benchmarks: accuracy, cost with and without overhead, CPU."""
    from r2graph.errors import ConfigError, MissingExtraError

    try:
        from r2graph.evaluation.bars import bars
        from r2graph.evaluation.frontier import curves, gains, points
        from r2graph.evaluation.lineup import chosen_methods
        from r2graph.evaluation.outcomes import rows
        from r2graph.evaluation.run import Setup
    except ModuleNotFoundError as error:
        raise MissingExtraError("r2graph eval", "eval") from error
    for file in (json_file, bars_file, frontier_file, outcomes_file):
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"{file.parent} is no directory: nothing could be saved there")
    members = open_pool(pool)
    setup = Setup(
        pool=pool,
        router=router_for(members, router),
        quality=quality,
        methods=tuple(chosen_methods(methods, members)),
        limit=limit,
        outcomes=outcomes_file,
    )
    done = _with_progress(setup, [name.strip() for name in benchmarks.split(",")], workers)
    table, verdicts = rows(done.outcomes), bars(done.outcomes)
    found = curves(done.outcomes, quality) if frontier_file is not None else {}
    _show(table, verdicts, gains(found, quality))
    for file, lines in ((json_file, table), (bars_file, verdicts)):
        if file is not None:
            _save(file, lines)
    if frontier_file is not None:
        _save_points(frontier_file, points(found, done.outcomes))
    if calls := done.hits + done.misses:
        typer.echo(f"{outcomes_file} knew {done.hits / calls:.1%} of {calls:,} calls", err=True)


def _with_progress(setup: Setup, names: list[str], workers: int) -> Evaluation:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from r2graph.evaluation.run import evaluate
    from r2graph.lab.benchmarks import SIZE

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    total = len(names) * len(setup.methods) * (setup.limit or SIZE)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("loading", total=total)

        def advance(benchmark: str, method: str) -> None:
            progress.update(bar, advance=1, description=f"{benchmark}, {method}")

        return evaluate(setup, names, advance, workers=workers)


def _show(table: Sequence[Row], verdicts: Sequence[Bar], gained: Sequence[Gain]) -> None:
    from rich.console import Console

    from r2graph.evaluation.report import bar_table, gain_table, row_table

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(row_table(table))
    if verdicts:
        console.print(bar_table(verdicts))
    if gained:
        console.print(gain_table(gained))


def _save(file: Path, lines: Sequence[Row | Bar]) -> None:
    rows = ",\n".join(json.dumps(asdict(line)) for line in lines)
    file.write_text(f"[\n{rows}\n]\n", encoding="utf-8")


def _save_points(file: Path, found: Sequence[Point]) -> None:
    from r2graph.evaluation.frontier import Point

    with file.open("w", encoding="utf-8", newline="") as opened:
        table = csv.DictWriter(opened, [field.name for field in fields(Point)])
        table.writeheader()
        table.writerows(map(asdict, found))
