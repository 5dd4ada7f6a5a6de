"""`r2graph fit`: a router from recorded outcomes, one's own or published ones, in a minute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from r2graph.replay.fit import Fit
    from r2graph.replay.table import Replay


def fit(
    out: Annotated[Path, typer.Option(file_okay=False, help="The router's directory.")],
    traces: Annotated[
        list[Path] | None,
        typer.Option(dir_okay=False, help="A file of traces; may be given again."),
    ] = None,
    replay: Annotated[
        str | None, typer.Option(help="Published outcomes: routellm-gsm8k or llmrouter.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(file_okay=False, help="Where your copy of those lies.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The router's name [default: of --out]")] = None,
    language: Annotated[str, typer.Option(help="Of the pools that it is to serve.")] = "any",
    decomposer: Annotated[
        Literal["prompted", "single"], typer.Option(help="Who plans; single: nobody.")
    ] = "prompted",
    seed: int = 0,
) -> None:
    """Learn which member does what well from recorded outcomes; needs no model and no download."""
    from r2graph.errors import ConfigError, MissingExtraError

    if (replay is None) == (not traces):
        raise ConfigError("r2graph fit learns from --traces or from a --replay: name one of them")
    try:
        from r2graph.replay.fit import fit, save
        from r2graph.replay.importers import from_traces, load_replay
    except ModuleNotFoundError as error:
        raise MissingExtraError("r2graph fit", "eval") from error
    if replay is None:
        source = " ".join(f"--traces {path.name}" for path in traces or ())
        table = from_traces(traces or ())
    elif data is None:
        raise ConfigError("a replay is read from your own copy: say with --data where it lies")
    else:
        source = f"--replay {replay}"
        table = load_replay(replay, data)
    fitted = fit(table, seed=seed)
    save(
        fitted,
        table,
        out,
        name=name or out.resolve().name,
        command=f"r2graph fit {source}",
        language=language,
        decomposer=decomposer,
        seed=seed,
    )
    _show(fitted, table)
    typer.echo(f"{out} is a router: r2graph run --router {out}", err=True)


def _show(fitted: Fit, table: Replay) -> None:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    shown = Table(caption="squared errors on texts left out: of chances by text, of the mean score")
    for heading in ("member", "outcomes", "mean score", "by text", "by mean"):
        shown.add_column(heading, justify="left" if heading == "member" else "right")
    rows = zip(table.models, table.scores.T, fitted.errors, fitted.base_errors, strict=True)
    for member, scores, error, base in rows:
        told = scores[~np.isnan(scores)]
        shown.add_row(member, f"{len(told):,}", f"{told.mean():.3f}", f"{error:.4f}", f"{base:.4f}")
    Console().print(shown)
