"""Outcomes in a file of JSON lines, one as soon as each query is done: what a rerun goes on from.

The first line tells what hangs on what the outcomes say, so that those of other settings are not
taken for them; which methods, benchmarks and queries there are may differ from run to run.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

from r2graph.errors import ConfigError
from r2graph.evaluation.outcomes import Detail, Outcome, Paid, Tried
from r2graph.pricing import to_text

FORMAT = 1
_LISTS = ((Paid, "paid"), (Tried, "tried"))
Key = tuple[str, str, str]
"""Benchmark, method and query."""


class Record:
    """The outcomes in the file at `path`, which is made if it is not there.

    Any number of processes may add to it. Raises `ConfigError` if it holds something else, or
    outcomes of other settings.
    """

    def __init__(self, path: Path, settings: object) -> None:
        self.path = path
        head = {"format": FORMAT, "settings": digest(settings)}
        lines = _lines(path)
        if lines and lines[0] != head:
            raise ConfigError(
                f"{path} holds outcomes of another pool or router, quality or length of replies: "
                "name another file"
            )
        self.outcomes = {key(o): o for o in map(_outcome, lines[1:])}
        if not lines:
            append(path, json.dumps(head).encode())

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome; it is in the file when this returns."""
        append_outcome(self.path, outcome)


def append_outcome(path: Path, outcome: Outcome) -> None:
    """Add an outcome to the file of a record, for a process that does not read it."""
    fields = asdict(outcome)
    for name in ("pool_usd", "net_usd"):
        fields[name] = to_text(fields[name])
    append(path, json.dumps(fields).encode())


def append(path: Path, line: bytes) -> None:
    """Add a line in one write to a file opened for appending: those of processes do not mix."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, line + b"\n")
    finally:
        os.close(file)


def read_outcomes(path: Path) -> list[Outcome]:
    """The outcomes in a file, of whatever settings; raises `ConfigError`."""
    return [_outcome(line) for line in _lines(path)[1:]]


def key(outcome: Outcome) -> Key:
    return outcome.benchmark, outcome.method, outcome.query


def digest(settings: object) -> str:
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; what a crash left of one is passed over, and ended."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    if content and not content.endswith(b"\n"):
        append(path, b"")
    lines = [line for line in map(_parsed, content.split(b"\n")) if line is not None]
    if content and (not lines or lines[0].get("format") != FORMAT):
        raise ConfigError(f"{path} is no file of outcomes: name another one")
    return lines


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _outcome(line: dict[str, Any]) -> Outcome:
    money = {name: Decimal(line[name]) for name in ("pool_usd", "net_usd")}
    return Outcome(**line | money | {"detail": _detail(line.get("detail"))})


def _detail(fields: dict[str, Any] | None) -> Detail | None:
    if fields is None:
        return None
    paid, tried = (tuple(map(kind._make, fields[name])) for kind, name in _LISTS)
    return Detail(**fields | {"paid": paid, "tried": tried})


def complete(outcomes: Iterable[Outcome], methods: Collection[str]) -> list[Outcome]:
    """The outcomes of the queries that every one of the methods has done."""
    found = list(outcomes)
    done = Counter((o.benchmark, o.query) for o in found)
    return [o for o in found if done[o.benchmark, o.query] == len(methods)]
