"""The frontier of an evaluation as a picture: accuracy over net cost, with 95 % intervals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from io import BytesIO, StringIO
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from r2graph.evaluation.findings import Standing
from r2graph.evaluation.lineup import swept

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart by the colour-blind too, and legible on white and on black.
COLOURS = ("#2f6fed", "#e0701a", "#12936f", "#c043a5", "#8a63e8", "#b58900")
LADDER = ("single-", "plan-", "cot-", "tot-")
# Stand for colours of the page, which knows whether it is light or dark.
INK, QUIET, LINE = "#010203", "#040506", "#070809"
THEME = {INK: "var(--ink)", QUIET: "var(--quiet)", LINE: "var(--line)"}
ON_WHITE = {INK: "#1b1f27", QUIET: "#667080", LINE: "#dfe2e8"}
LONGEST = 24  # characters of a name
WIDE, NARROW = (9.6, 5.0), (4.4, 5.2)


def png(standings: Sequence[Standing], unit: int) -> bytes:
    """On white; costs are of `unit` queries."""
    file = BytesIO()
    with mpl.rc_context({"text.parse_math": False}):
        figure = _figure(standings, unit, WIDE, ON_WHITE)
        figure.savefig(file, format="png", dpi=160)
    return file.getvalue()


def svg(standings: Sequence[Standing], unit: int, *, narrow: bool = False) -> str:
    """An element to put into a page that has the colours `--ink`, `--quiet` and `--line`."""
    file = StringIO()
    salt = "narrow" if narrow else "wide"  # else the two would have the same ids in a page
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "text.parse_math": False}):
        figure = _figure(standings, unit, NARROW if narrow else WIDE, {})
        figure.savefig(file, format="svg", transparent=True)
    text = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    for stand_in, colour in THEME.items():
        text = text.replace(stand_in, colour)
    title = "Accuracy over net cost of each method"
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _figure(
    standings: Sequence[Standing], unit: int, size: tuple[float, float], colours: dict[str, str]
) -> Figure:
    ink, quiet, line = (colours.get(name, name) for name in (INK, QUIET, LINE))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for spine in axes.spines.values():
        spine.set_color(line)
    axes.grid(color=line, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=quiet, which="both", labelsize=9)
    palette, names = cycle(COLOURS), []
    for family, some in _families(standings):
        if family in LADDER:
            _draw(axes, some, unit, quiet, label=f"{family}K", style=":")
            names += [(each, each.method.removeprefix(family), quiet) for each in some]
        elif swept(some[0].method):
            label = f"{_short(family)}, {len(some)} qualities" if len(some) > 1 else _short(family)
            _draw(axes, some, unit, next(palette), label=label, style="-")
        else:
            _draw(axes, some, unit, ink, label=None, style="")
            names.append((some[0], _short(family), ink))
    if all(standing.net_usd.value > 0 for standing in standings):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"net cost, dollars for {unit:,} queries", color=ink)
    axes.set_ylabel("accuracy", color=ink)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    for standing, text, colour in names:
        _name(axes, standing, unit, text, colour)
    if axes.get_legend_handles_labels()[0]:
        columns = 4 if size == WIDE else 2
        figure.legend(
            frameon=False, labelcolor=ink, fontsize=9, loc="outside upper left", ncols=columns
        )
    return figure


def _families(standings: Sequence[Standing]) -> Iterator[tuple[str, list[Standing]]]:
    """Each line of the picture: a router's qualities, the members of a ladder, or one method."""
    lines: dict[str, list[Standing]] = {}
    for standing in standings:
        family = next((each for each in LADDER if standing.family.startswith(each)), "")
        lines.setdefault(family or standing.family, []).append(standing)
    for family, some in lines.items():
        if family in LADDER and len(some) == 1:
            family = some[0].method
        yield family, sorted(some, key=lambda standing: standing.net_usd.value)


def _draw(
    axes: Axes, some: Sequence[Standing], unit: int, colour: str, *, label: str | None, style: str
) -> None:
    costs = [each.net_usd.value * unit for each in some]
    accuracies = [each.accuracy.value for each in some]
    bars: dict[str, Any] = {
        "xerr": _errors([each.net_usd for each in some], unit),
        "yerr": _errors([each.accuracy for each in some], 1),
    }
    axes.errorbar(costs, accuracies, **bars, fmt="none", ecolor=colour, alpha=0.35, linewidth=1)
    axes.plot(costs, accuracies, f"o{style}", color=colour, label=label, markersize=5)


def _errors(intervals: Sequence[Any], unit: int) -> list[list[float]]:
    low = [max(0.0, each.value - each.low) * unit for each in intervals]
    high = [max(0.0, each.high - each.value) * unit for each in intervals]
    return [low, high]


def _name(axes: Axes, standing: Standing, unit: int, text: str, colour: str) -> None:
    """Beside the mark, on the side where there is room."""
    at = standing.net_usd.value * unit, standing.accuracy.value
    across = axes.transAxes.inverted().transform(axes.transData.transform(at))[0]
    offset, side = ((6, 5), "left") if across < 0.7 else ((-6, 5), "right")
    name = axes.annotate(
        text, at, offset, textcoords="offset points", color=colour, fontsize=9, ha=side
    )
    name.set_in_layout(False)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
