"""What the ledger needs of a database, and its tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from r2graph.errors import LedgerError

TABLES = (
    """CREATE TABLE IF NOT EXISTS r2graph_calls (
        key TEXT, try INTEGER, scope TEXT NOT NULL, period TEXT NOT NULL, run TEXT NOT NULL,
        role TEXT NOT NULL, member TEXT NOT NULL, step TEXT, state TEXT NOT NULL, kind TEXT,
        usd TEXT NOT NULL, reply TEXT, at DOUBLE PRECISION NOT NULL, owner TEXT NOT NULL,
        PRIMARY KEY (key, try))""",
    "CREATE INDEX IF NOT EXISTS r2graph_calls_of_run ON r2graph_calls (run)",
    """CREATE TABLE IF NOT EXISTS r2graph_totals (
        scope TEXT, period TEXT, pico BIGINT NOT NULL, PRIMARY KEY (scope, period))""",
    """CREATE TABLE IF NOT EXISTS r2graph_rests (
        member TEXT PRIMARY KEY, until DOUBLE PRECISION NOT NULL, rests INTEGER NOT NULL,
        at DOUBLE PRECISION NOT NULL)""",
)


class Connection(Protocol):
    """A connection whose queries mark their values with `?`."""

    def execute(self, query: str, values: Sequence[Any] = ()) -> Any:
        """A cursor with `fetchone` and `fetchall`."""


class Database(Protocol):
    """Transactions, a clock for all, and which processes are alive."""

    owner: str
    """A name that no other process has."""

    def transaction(self, *, write: bool = True) -> AbstractContextManager[Connection]:
        """All or nothing; one that writes sees what all before it wrote."""

    def now(self, connection: Connection) -> float:
        """Seconds since 1970, by a clock that all its processes share."""

    def is_gone(self, connection: Connection, owner: str) -> bool:
        """Whether the process of that name has ended; asked within a transaction."""

    def close(self) -> None: ...


def check_process(opened_in: int, where: str) -> None:
    """Raise `LedgerError` in a forked child, whose connections and locks are its parent's."""
    if os.getpid() != opened_in:
        raise LedgerError(where, "it was opened before a fork: open it anew in each process")
