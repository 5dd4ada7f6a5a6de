"""What the ledger needs of a database, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

TABLES = (
    """CREATE TABLE IF NOT EXISTS calls (
        key TEXT, try INTEGER, scope TEXT NOT NULL, period TEXT NOT NULL, run TEXT NOT NULL,
        role TEXT NOT NULL, member TEXT NOT NULL, step TEXT, state TEXT NOT NULL, kind TEXT,
        usd TEXT NOT NULL, reply TEXT, at DOUBLE PRECISION NOT NULL, owner TEXT NOT NULL,
        PRIMARY KEY (key, try))""",
    "CREATE INDEX IF NOT EXISTS calls_of_run ON calls (run)",
    """CREATE TABLE IF NOT EXISTS totals (
        scope TEXT, period TEXT, pico BIGINT NOT NULL, PRIMARY KEY (scope, period))""",
)


class Connection(Protocol):
    """A connection whose queries mark their values with `?`."""

    def execute(self, query: str, values: Sequence[Any] = ()) -> Any:
        """A cursor with `fetchone` and `fetchall`."""


class Database(Protocol):
    """Transactions, and which processes are alive."""

    owner: str
    """A name that no other process has."""

    def transaction(self, *, write: bool = True) -> AbstractContextManager[Connection]:
        """All or nothing; one that writes sees what all before it wrote."""

    def is_gone(self, connection: Connection, owner: str) -> bool:
        """Whether the process of that name has ended; asked within a transaction."""

    def close(self) -> None: ...
