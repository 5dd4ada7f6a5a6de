"""A report of an evaluation as files: a page, Markdown, tables as CSV and the frontier as PNG.

The page is one file that asks for nothing else. What models and users wrote is in its examples
alone, and is text there: the template escapes whatever it is given.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from r2graph.evaluation import chart
from r2graph.evaluation.causes import CAUSES, Cause
from r2graph.evaluation.compare import Interval
from r2graph.evaluation.findings import PURPOSES, SINGLE, Findings, Spent
from r2graph.evaluation.outcomes import Row

MAIN = CAUSES[:4]  # shown even where they are nobody's
THOUSAND, MILLION = 1_000, 1_000_000
MOST_CHARS = 1_500  # of a text in an example
TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: Path, found: Findings) -> None:
    """Write `report.html`, `report.md`, `rows.csv`, `money.csv` and `frontier.png`."""
    dearest = max(standing.net_usd.value for standing in found.standings)
    unit = THOUSAND if dearest * THOUSAND >= 0.1 else MILLION  # where prices are legible
    facts = {
        "found": found,
        "unit": unit,
        "purposes": [p for p in PURPOSES if any(line.purpose == p for line in found.spent)],
        "causes": [cause for cause in CAUSES if cause in MAIN or _counts(found, cause)],
        "totals": {each.method: _totals(found, each.method) for each in found.standings},
        "models": _models(found),
        "alone": [each.method for each in found.standings if each.method.startswith(SINGLE)],
        "wide": Markup(chart.svg(found.standings, unit)),
        "narrow": Markup(chart.svg(found.standings, unit, narrow=True)),
    }
    environment = _environment(unit)
    for name in ("report.html", "report.md"):
        text = environment.get_template(f"{name}.jinja").render(facts)
        (folder / name).write_text(text, encoding="utf-8")
    _save(folder / "rows.csv", [field.name for field in fields(Row)], map(asdict, found.rows))
    _save(folder / "money.csv", Spent._fields, (line._asdict() for line in found.spent))
    (folder / "frontier.png").write_bytes(chart.png(found.standings, unit))


def _environment(unit: int) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.startswith("report.html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "share": lambda share: f"{share:.1%}",
        "range": _range,
        "points": lambda value: f"{100 * value:+.1f}",
        "usd": lambda dollars: _dollars(float(dollars) * unit),
        "cut": _cut,
        "cell": _cell,
        "fenced": _fenced,
    }
    environment.filters |= filters
    return environment


def _totals(found: Findings, method: str, member: str | None = None) -> dict[str, float]:
    """What a method pays for each purpose, to all models or to one."""
    lines = [
        line for line in found.spent if line.method == method and member in (None, line.member)
    ]
    return {p: sum(line.usd for line in lines if line.purpose == p) for p in PURPOSES}


def _counts(found: Findings, cause: Cause) -> bool:
    return any(failures.causes[cause] for failures in found.failures)


def _models(found: Findings) -> list[dict[str, Any]]:
    """What the method that the report is about pays each model."""
    method = found.headline.method
    lines = [line for line in found.spent if line.method == method]
    return [
        {
            "name": member,
            "calls": sum(line.calls for line in lines if line.member == member),
            "usd": _totals(found, method, member),
        }
        for member in _in_order(found, {line.member for line in lines})
    ]


def _in_order(found: Findings, names: set[str]) -> list[str]:
    others = sorted(names.difference(found.members))
    return [*(name for name in found.members if name in names), *others]


def _dollars(amount: float) -> str:
    if amount == 0:
        return "$0"
    return f"${amount:,.2f}" if abs(amount) >= 0.1 else f"${amount:.2g}"


def _range(interval: Interval, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f}"


def _cut(text: object) -> str:
    shown = str(text)
    return shown if len(shown) <= MOST_CHARS else f"{shown[:MOST_CHARS]} …"


def _cell(text: object) -> str:
    """In a cell of a Markdown table."""
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", str(text)).replace("\n", " ")


def _fenced(text: object) -> str:
    """A block of code that its text cannot end."""
    shown = _cut(text)
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{shown}\n{fence}"


def _save(file: Path, columns: Sequence[str], lines: Iterable[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as opened:
        table = csv.DictWriter(opened, columns)
        table.writeheader()
        table.writerows(lines)
