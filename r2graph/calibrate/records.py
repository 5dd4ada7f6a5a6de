"""What became of queries, at the levels of a router and by other methods: read from files.

A file is the `--out` of `r2graph eval`, or holds traces of runs. A query counts once a method, as
it first went.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from r2graph.allocate import quality_level
from r2graph.errors import ConfigError
from r2graph.evaluation.lineup import OWN, routed
from r2graph.evaluation.record import read_outcomes
from r2graph.trace import MAX_LINE_BYTES, Trace, read_traces


@dataclass(frozen=True)
class Done:
    """How a query went; `right` is `None` where nobody has said."""

    right: bool | None
    usd: float


ByQuery = dict[str, Done]


@dataclass(frozen=True)
class Records:
    """By level of the router and by the name of any other method, each by query."""

    levels: dict[int, ByQuery] = field(default_factory=dict)
    others: dict[str, ByQuery] = field(default_factory=dict)

    @property
    def singles(self) -> list[str]:
        """The methods that are one call of one model."""
        return [name for name in self.others if name.startswith(("single-", "cot-"))]


def read(files: Iterable[Path], router: str = "router") -> Records:
    """The records of files; `router` is the method of `r2graph eval` whose levels are meant.

    A router without a quality in its name is another method. Raises `ConfigError` for a file that
    does not read.
    """
    own = OWN if router in OWN else (router,)
    records = Records()
    for file in files:
        lines = _traced(file, router) if _holds_traces(file) else _measured(file)
        for method, query, done in lines:
            family, quality = routed(method) or (method, None)
            if quality is None or family not in own:
                records.others.setdefault(method, {}).setdefault(query, done)
            else:
                level = records.levels.setdefault(quality_level(quality), {})
                level.setdefault(query, done)
    return records


Line = tuple[str, str, Done]  # the method, the query, and how it went


def _holds_traces(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return b'"schema_version"' in opened.readline(MAX_LINE_BYTES)
    except OSError:
        raise ConfigError(f"{file} is not a file that can be read") from None


def _measured(file: Path) -> Iterator[Line]:
    try:
        outcomes = read_outcomes(file)
    except (KeyError, TypeError, ArithmeticError):
        raise ConfigError(f"{file} has a line that is no outcome of `r2graph eval`") from None
    for each in outcomes:
        yield each.method, each.query, Done(each.right, float(each.net_usd))


def _traced(file: Path, router: str) -> Iterator[Line]:
    """Traces of one router on one pool, as it is deployed."""
    origin = None
    for trace in read_traces(file):
        first = origin or (trace.pool, trace.members, trace.router)
        if (origin := (trace.pool, trace.members, trace.router)) != first:
            raise ConfigError(f"{file} has traces of several pools or routers: calibrate one")
        if _explored(trace):
            raise ConfigError(
                f"{file} has a run with choices drawn at random, as the router would not make them"
            )
        yield f"{router}@{trace.quality:f}", trace.query, Done(trace.right, float(trace.cost_usd))


def _explored(trace: Trace) -> bool:
    return any(step.choice.propensity is not None for step in trace.steps)
