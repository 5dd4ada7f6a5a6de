"""`r2graph eval`: methods against each other on benchmarks, with any pool."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from r2graph.cli.options import (
    LEDGER_VARIABLE,
    PoolName,
    Quality,
    RouterName,
    make_parent,
    open_pool,
    router_for,
)
from r2graph.cli.replay import evaluate_replay

if TYPE_CHECKING:
    from rich.console import Console

    from r2graph.evaluation.bars import Bar
    from r2graph.evaluation.frontier import Gain, Point
    from r2graph.evaluation.outcomes import Row
    from r2graph.evaluation.run import Evaluation
    from r2graph.evaluation.scores import Score
    from r2graph.evaluation.setup import Setup
    from r2graph.spread import Engine

WIDTH = 110  # of the tables in a file


def evaluate(
    pool: PoolName = "lab",
    router: RouterName = None,
    benchmarks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: scan-simple, scan-length, arith, geo, arith-deep; for pools of "
            "instruction-following models also p3, scan, math, champ, csqa, musique, gsm8k, "
            "strategyqa (docs/benchmarks.md)."
        ),
    ] = "scan-simple,scan-length,arith,geo",
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: single-K, cot-K, cot-strongest, tot-K, datashunt, cascade, dot, "
            "plan-K, random, cheapest-first, router (or rl), sft, router:PATH, each with @QUALITY "
            "or @all; best-single, random:METHOD, knn, bow, threshold, oracle, or all "
            "(docs/evaluation.md)."
        ),
    ] = "all",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Queries a benchmark [default: 2,000 of the lab's, 200 of the others]"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, help="Where the benchmarks are [default: the Hugging Face hub]"
        ),
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
    scores_file: Annotated[
        Path | None,
        typer.Option("--scores", dir_okay=False, help="Save the literature's measures as JSON."),
    ] = None,
    record_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            dir_okay=False,
            help="Keep each outcome here as it comes; a rerun goes on from there.",
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            help="Judge a router on recorded outcomes instead: routellm-gsm8k or llmrouter, in "
            "--data (docs/replay.md)."
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Of a replay, how often folds are drawn anew.")
    ] = 20,
    report_dir: Annotated[
        Path | None,
        typer.Option(
            "--report",
            file_okay=False,
            help="Write a report here: report.html, report.md, CSV and PNG; it has examples.",
        ),
    ] = None,
    fit_on: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="The --out of an evaluation on other queries, for knn, bow and threshold "
            "[default: the other queries of this one]",
        ),
    ] = None,
    max_usd: Annotated[
        str | None, typer.Option(help="Stop before more is spent; cached calls are free.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens that a call may generate.")] = 1024,
    concurrency: Annotated[int, typer.Option(min=1, help="Queries at once, in each process.")] = 64,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would cost, and ask no model.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes, of this machine or of the cluster.")
    ] = 1,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="ray: the cluster of RAY_ADDRESS, or one of this machine."),
    ] = "local",
    ledger: Annotated[
        str | None,
        typer.Option(
            envvar=LEDGER_VARIABLE,
            help="SQLite file or postgresql:// URL that keeps all calls: none is paid twice.",
        ),
    ] = None,
) -> None:
    """Compare methods on benchmarks: accuracy, cost with and without overhead, CPU."""
    if replay is not None:
        evaluate_replay(replay, data, json_file, repeats)
        return
    from r2graph.errors import MissingExtraError
    from r2graph.pricing import to_dollars

    try:
        from r2graph.evaluation.bars import bars
        from r2graph.evaluation.frontier import curves, gains, points
        from r2graph.evaluation.lineup import chosen_methods, singles
        from r2graph.evaluation.outcomes import rows
        from r2graph.evaluation.scores import scores
        from r2graph.evaluation.setup import Setup

        if report_dir is not None:
            from r2graph.evaluation.findings import findings
            from r2graph.evaluation.written import write_report
    except ModuleNotFoundError as error:
        raise MissingExtraError("r2graph eval", "eval") from error
    saved = (
        json_file,
        bars_file,
        frontier_file,
        scores_file,
        outcomes_file,
        record_file,
        report_dir,
    )
    for file in saved:
        if file is not None:
            make_parent(file)
    members = open_pool(pool)
    setup = Setup(
        pool=pool,
        router=router_for(members, router),
        quality=quality,
        methods=tuple(chosen_methods(methods, members)),
        limit=limit,
        outcomes=outcomes_file,
        data=data,
        concurrency=concurrency,
        max_tokens=max_tokens,
        max_usd=None if max_usd is None else to_dollars(max_usd),
        out=record_file,
        fit_on=fit_on,
        detailed=report_dir is not None,
        ledger=ledger,
    )
    names = [name.strip() for name in benchmarks.split(",")]
    if dry_run:
        _show_estimates(setup, names)
        return
    done = _with_progress(setup, names, engine, workers)
    table, verdicts = rows(done.outcomes), bars(done.outcomes)
    measured = scores(done.outcomes, singles(members))
    found = curves(done.outcomes, quality) if frontier_file is not None else {}
    _show(table, verdicts, gains(found, quality), measured)
    for file, lines in ((json_file, table), (bars_file, verdicts), (scores_file, measured)):
        if file is not None:
            _save(file, lines)
    if frontier_file is not None:
        _save_points(frontier_file, points(found, done.outcomes))
    if report_dir is not None and done.outcomes:
        report_dir.mkdir(exist_ok=True)
        write_report(report_dir, findings(setup, done.outcomes, stopped=done.stopped))
        typer.echo(f"the report is {report_dir / 'report.html'}", err=True)
    if outcomes_file is not None and (calls := done.hits + done.misses):
        typer.echo(f"{outcomes_file} knew {done.hits / calls:.1%} of {calls:,} calls", err=True)
    if done.stopped:
        typer.echo(f"stopped: more could have passed ${max_usd}; the rest is not done", err=True)
        raise typer.Exit(1)


def _with_progress(setup: Setup, names: list[str], engine: Engine, workers: int) -> Evaluation:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from r2graph.evaluation.run import evaluate
    from r2graph.evaluation.setup import n_outcomes

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    total = n_outcomes(setup, names)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("loading", total=total)

        def advance(benchmark: str, method: str) -> None:
            progress.update(bar, advance=1, description=f"{benchmark}, {method}")

        return evaluate(setup, names, advance, engine=engine, workers=workers)


def _show(
    table: Sequence[Row],
    verdicts: Sequence[Bar],
    gained: Sequence[Gain],
    measured: Sequence[Score],
) -> None:
    from r2graph.evaluation.report import bar_table, gain_table, row_table, score_table

    console = _console()
    console.print(row_table(table))
    if verdicts:
        console.print(bar_table(verdicts))
    if gained:
        console.print(gain_table(gained))
    if measured:
        console.print(score_table(measured))


def _show_estimates(setup: Setup, names: list[str]) -> None:
    from r2graph.evaluation.estimate import estimate
    from r2graph.evaluation.report import estimate_table

    _console().print(estimate_table(estimate(setup, names)))


def _console() -> Console:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    return console


def _save(file: Path, lines: Sequence[Row | Bar | Score]) -> None:
    rows = ",\n".join(json.dumps(_plain(asdict(line))) for line in lines)
    file.write_text(f"[\n{rows}\n]\n", encoding="utf-8")


def _plain(fields: dict[str, object]) -> dict[str, object]:
    """JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in fields.items()
    }


def _save_points(file: Path, found: Sequence[Point]) -> None:
    from r2graph.evaluation.frontier import Point

    with file.open("w", encoding="utf-8", newline="") as opened:
        table = csv.DictWriter(opened, [field.name for field in fields(Point)])
        table.writeheader()
        table.writerows(map(asdict, found))
