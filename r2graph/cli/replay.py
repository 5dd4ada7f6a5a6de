"""`r2graph eval --replay`: a router fitted and judged on published outcomes, without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2graph.cli.options import make_parent


def evaluate_replay(name: str, data: Path | None, json_file: Path | None, repeats: int) -> None:
    """Show the result as a table, and save all of it as JSON."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from r2graph.errors import ConfigError, MissingExtraError

    try:
        from r2graph.replay.evaluate import evaluate
        from r2graph.replay.importers import load_replay
        from r2graph.replay.table import FOLDS
    except ModuleNotFoundError as error:
        raise MissingExtraError("r2graph eval --replay", "eval") from error
    if data is None:
        raise ConfigError("a replay is read from your own copy: say with --data where it lies")
    if json_file is not None:
        make_parent(json_file)
    replay = load_replay(name, data)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("folds", total=repeats * FOLDS)
        result = evaluate(replay, repeats=repeats, progress=lambda: progress.advance(bar))
    _show({"replay": name} | result)
    if json_file is not None:
        text = json.dumps({"replay": name} | result, indent=1)
        json_file.write_text(text + "\n", encoding="utf-8")


def _show(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    two = "strong_share_at_95" in result
    names = ("strong_share_at_95", "apgr") if two else ("score", "cost")
    rows: dict[str, Any] = {"router": result} if two else {}
    rows |= {key: row for key, row in result.items() if isinstance(row, dict) and key != "singles"}
    table = Table(
        caption=f"{result['n']:,} questions, {result['repeats']} x {result['folds']} folds"
    )
    for heading in ("method", *names):
        table.add_column(heading)
    for key, row in rows.items():
        if found := [_cell(row, name) for name in names if name in row]:
            table.add_row(key.replace("_", " "), *found)
    Console().print(table)


def _cell(row: Mapping[str, Any], name: str) -> str:
    interval = row.get(f"{name}_interval")
    held = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return f"{row[name]:.4g}{held}"
