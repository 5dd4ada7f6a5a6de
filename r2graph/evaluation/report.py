"""The tables that `r2graph eval` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import isfinite, isnan

from rich.table import Table

from r2graph.evaluation.bars import Bar
from r2graph.evaluation.compare import Interval
from r2graph.evaluation.estimate import Estimate
from r2graph.evaluation.frontier import Gain
from r2graph.evaluation.outcomes import Row
from r2graph.evaluation.scores import Score

_MILLION = 1_000_000


def row_table(rows: Sequence[Row]) -> Table:
    """One line a row; money is shown for a million queries, where the lab's prices are legible."""
    table = Table(caption="means per query; dollars for a million queries; 95 % intervals")
    for name in ("benchmark", "method"):
        table.add_column(name, overflow="fold")
    for name in ("n", "accuracy", "interval", "pool $", "net $", "calls", "cpu ms"):
        table.add_column(name, justify="right")
    for _, block in groupby(rows, key=lambda row: row.benchmark):
        for row in block:
            table.add_row(
                row.benchmark,
                row.method,
                f"{row.n:,}",
                f"{row.accuracy:.2%}",
                f"{row.ci_low:.1%} to {row.ci_high:.1%}",
                f"{row.pool_cost_usd * _MILLION:,.2f}",
                f"{row.net_cost_usd * _MILLION:,.2f}",
                f"{row.calls:.2f}",
                f"{row.cpu_s * 1000:.2f}",
            )
        table.add_section()
    return table


def bar_table(bars: Sequence[Bar]) -> Table:
    table = Table(caption="paired bootstrap intervals; `all` is the four benchmarks together")
    for name in ("bar", "benchmark"):
        table.add_column(name)
    for name in ("value", "interval", "target"):
        table.add_column(name, justify="right")
    table.add_column("")
    for bar in bars:
        table.add_row(
            bar.bar,
            bar.benchmark,
            f"{bar.value:.2%}",
            f"{bar.ci_low:.1%} to {bar.ci_high:.1%}",
            f"{'>=' if bar.at_least else '<='} {bar.target:.2%}",
            "[green]met[/green]" if bar.passed else "[red]missed[/red]",
        )
    return table


def gain_table(gains: Sequence[Gain]) -> Table:
    """One line a router, cost and accuracy; the gap is the parent's to the oracle."""
    caption = "cost saved at the accuracy of sft; paired bootstrap intervals over queries"
    table = Table("cost", "at", caption=caption)
    for name in ("saved", "interval", "gap closed", "interval"):
        table.add_column(name, justify="right")
    table.add_column("router", overflow="fold")
    for gain in gains:
        closed = _shown(gain.gap_closed) if gain.gap_closed else ("", "")
        table.add_row(gain.cost, gain.at, *_shown(gain.saving), *closed, gain.family)
    return table


def score_table(scores: Sequence[Score]) -> Table:
    """One line a family of methods; what could not be measured is left blank."""
    caption = (
        "per cent; means over benchmarks, of the most accurate point; CPT is of 80 % of the gap"
    )
    table = Table(caption=caption)
    table.add_column("method", overflow="fold")
    for name in ("accuracy", "PGR", "Gain@B", "Gap@O", "CostSave", "Arena", "APGR", "CPT", "AIQ"):
        table.add_column(name, justify="right")
    for score in scores:
        measured = (
            score.accuracy,
            score.pgr,
            score.gain_at_best,
            score.gap_to_oracle,
            score.cost_save,
            score.arena,
            score.apgr,
            score.cpt_80,
            score.aiq,
        )
        table.add_row(score.family, *("" if isnan(x) else f"{100 * x:.1f}" for x in measured))
    return table


def estimate_table(estimates: Sequence[Estimate]) -> Table:
    table = Table(
        caption="dollars; expected: replies of 256 tokens, plans of three steps, every check "
        "passed; worst: the longest of everything, no check passed (docs/evaluation.md)"
    )
    for name in ("benchmark", "method"):
        table.add_column(name, overflow="fold")
    for name in ("n", "expected $", "worst $"):
        table.add_column(name, justify="right")
    for line in estimates:
        table.add_row(
            line.benchmark, line.method, f"{line.n:,}", *_dollars(line.expected_usd, line.worst_usd)
        )
    table.add_section()
    expected, worst = (sum(values) for values in zip(*map(_both, estimates), strict=True))
    table.add_row("all", "", "", *_dollars(expected, worst))
    return table


def _both(line: Estimate) -> tuple[float, float]:
    return line.expected_usd, line.worst_usd


def _dollars(*amounts: float) -> Iterator[str]:
    return (f"{amount:,.2f}" if amount >= 0.1 else f"{amount:.2g}" for amount in amounts)


def _shown(interval: Interval) -> tuple[str, str]:
    value, low, high = map(_share, (interval.value, interval.low, interval.high))
    return value, f"{low} to {high}"


def _share(value: float) -> str:
    if isnan(value):
        return "-"
    return f"{value:.1%}" if isfinite(value) else "not reached"
