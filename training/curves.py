"""Curves of what was evaluated and of how training went, as PNG.

    python -m training.curves frontier runs/frontier.csv --out runs/frontier.png
    python -m training.curves learning runs/rl/seed-*/round-1-allocator/trained/log.json \\
        --out runs/learning.png

Frontiers are the CSV files of `r2graph eval --frontier`, logs the `log.json` of `training.grpo`.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r2graph.evaluation.frontier import cost_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MILLION = 1e6
COSTS = {"net_usd": "net cost", "pool_usd": "pool cost"}
PLOTTED = {
    "reward": "reward",
    "entropy": "entropy, nats",
    "kl": "KL divergence from the parent",
    "completions/mean_length": "completion, tokens",
}
GRID = 200  # accuracies at which a frontier is drawn

Lines = dict[str, list[dict[str, str]]]


def frontier(tables: Sequence[Path]) -> Figure:
    """Accuracy over cost, a frontier for each router and a mark for every other method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    lines = _families(tables)
    for axes, (cost, label) in zip(figure.subplots(1, 2, sharey=True), COSTS.items(), strict=True):
        for family, rows in lines.items():
            _draw(axes, family, rows, cost)
        axes.set(xscale="log", xlabel=f"{label}, dollars for a million queries")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
    figure.axes[0].set_ylabel("accuracy")
    figure.axes[0].legend()
    return figure


def _families(tables: Sequence[Path]) -> Lines:
    """The rows of each family; of several files each has families of its own."""
    lines: Lines = defaultdict(list)
    for table in tables:
        prefix = f"{table.stem}, " if len(tables) > 1 else ""
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                lines[prefix + row["family"]].append(row)
    return lines


def _draw(axes: Any, family: str, rows: Sequence[Mapping[str, str]], cost: str) -> None:
    accuracy = np.array([float(row["accuracy"]) for row in rows])
    dollars = np.array([float(row[cost]) for row in rows]) * MILLION
    if not any(row["quality"] for row in rows):
        axes.plot(dollars, accuracy, "k+")
        axes.annotate(family, (dollars[0], accuracy[0]))
        return
    levels = np.linspace(accuracy.min(), accuracy.max(), GRID)
    hull = cost_at(levels[None], accuracy[None], dollars[None])[0]
    (line,) = axes.plot(hull, levels, label=family)
    axes.plot(dollars, accuracy, "o", color=line.get_color(), markersize=4)


def learning(logs: Sequence[Path]) -> Figure:
    """What GRPO logged, step by step, a line for each log."""
    from matplotlib.figure import Figure

    entries = [json.loads(log.read_text()) for log in logs]
    shown = [key for key in PLOTTED if any(key in entry for log in entries for entry in log)]
    figure = Figure(figsize=(5 * max(1, len(shown)), 4), layout="constrained")
    for at, key in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), at, xlabel="step", ylabel=PLOTTED[key])
        for name, log in zip(names(logs), entries, strict=True):
            logged = [(entry["step"], entry[key]) for entry in log if key in entry]
            axes.plot(*zip(*logged, strict=True), label=name)
    if shown:
        figure.axes[0].legend()
    return figure


def names(paths: Sequence[Path]) -> list[str]:
    """What tells paths apart: `seed-1` and `seed-2` of `rl/seed-1/log` and `rl/seed-2/log`."""
    parts = [path.parts for path in paths]
    if len(parts) == 1:
        return [str(paths[0].parent)]
    first, last = _shared(parts), _shared([part[::-1] for part in parts])
    return ["/".join(part[first : len(part) - last]) for part in parts]


def _shared(sequences: Sequence[Sequence[str]]) -> int:
    """How many parts all begin with."""
    return len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*sequences, strict=False))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("frontier", "learning"))
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="a PNG file")
    given = parser.parse_args()
    draw = {"frontier": frontier, "learning": learning}[given.what]
    draw(given.files).savefig(given.out, format="png", dpi=150)


if __name__ == "__main__":
    main()
