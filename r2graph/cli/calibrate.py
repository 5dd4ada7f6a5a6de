"""`r2graph calibrate`: the quality of a router that keeps a promise."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from r2graph.calibrate.promise import Calibration, Intervals, LevelTest


def calibrate(
    files: Annotated[
        list[Path],
        typer.Argument(help="Outcomes of `r2graph eval --out`, or traces with grades."),
    ],
    target_quality: Annotated[
        float | None,
        typer.Option(min=0.01, help="How often to be right, as a share of the best rival."),
    ] = None,
    target_cost: Annotated[
        float | None, typer.Option(help="Mean dollars a query; wants --max-usd.")
    ] = None,
    max_usd: Annotated[
        float | None, typer.Option(help="What a query can cost at most: the graph's `budget_usd`.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Comma-separated rivals [default: all single-K and cot-K]"),
    ] = None,
    router: Annotated[
        str, typer.Option(help="Whose levels: router, sft, or router:PATH.")
    ] = "router",
    delta: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="How likely the promise may be broken.")
    ] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Pick the quality that keeps a promise about accuracy or cost, or say that none does.

    Without a target the promise is to be right 0.95 times as often as the best single model. The
    exit code is 1 where the data cannot support it.
    """
    from r2graph.allocate import quality_level
    from r2graph.errors import ConfigError, MissingExtraError

    try:
        from r2graph.calibrate.promise import for_cost, for_quality, intervals
        from r2graph.calibrate.records import read
    except ModuleNotFoundError as error:
        raise MissingExtraError("r2graph calibrate", "eval") from error
    if target_quality is not None and target_cost is not None:
        raise ConfigError("--target-quality and --target-cost are two promises: give one")
    records = read(files, router)
    if target_cost is None:
        share = 0.95 if target_quality is None else target_quality
        rivals = records.singles if against is None else against.replace(" ", "").split(",")
        found = for_quality(records, share, rivals, delta)
    elif max_usd is None:
        raise ConfigError(
            "--target-cost wants --max-usd, for of costs without a bound nothing can be promised: "
            "it is the `budget_usd` that runs are given"
        )
    else:
        found = for_cost(records, target_cost, max_usd, delta)
    within = None
    if found.chosen is not None:
        within = intervals(records, quality_level(found.chosen.quality), delta, max_usd)
    if as_json:
        told = asdict(found) | {"intervals": within and asdict(within)}
        typer.echo(json.dumps(told, ensure_ascii=False))
    else:
        show(found, within)
    if found.chosen is None:
        raise typer.Exit(1)


def show(found: Calibration, within: Intervals | None) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table(found))
    console.print(f"{found.promise}, with a confidence of {1 - found.delta:.6g}:")
    if found.chosen is None or within is None:
        console.print(f"the data cannot support it ({_wanting(found.tests[0])})")
        return
    means = [f"${found.chosen.usd:.3g} a query{_within(within.usd, '${:.3g}')}"]
    if found.chosen.accuracy is not None:
        means.insert(0, f"accuracy {found.chosen.accuracy:.1%}{_within(within.accuracy, '{:.1%}')}")
    console.print(f"create_r2_graph(…, quality={found.chosen.quality:g})")
    console.print(f"{', '.join(means)}; {found.chosen.n:,} queries")


def table(found: Calibration) -> Table:
    """The tests in their sequence."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("quality", "queries", "accuracy", "$ a query", "p"):
        table.add_column(name, justify="right")
    table.add_column("")
    for test in found.tests:
        accuracy = "" if test.accuracy is None else f"{test.accuracy:.1%}"
        row = f"{test.quality:g}", f"{test.n:,}", accuracy, f"{test.usd:.3g}", f"{test.p:.2g}"
        table.add_row(*row, "holds" if test.holds else "not shown")
    return table


def _within(interval: tuple[float, float] | None, form: str) -> str:
    return f" ({' to '.join(map(form.format, interval))})" if interval else ""


def _wanting(test: LevelTest) -> str:
    """What a level that failed would need."""
    if test.enough is None:
        return f"quality {test.quality:g} misses it on these queries, and more are of no use"
    more = f"about {test.enough - test.n:,}" if test.enough > test.n else "a few"
    return f"{more} more queries like these could, at quality {test.quality:g}"
