"""The ledger's database in PostgreSQL, for many processes on many machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import finalize

from r2graph.errors import LedgerError, MissingExtraError
from r2graph.ledger.database import TABLES, Connection, check_process

if TYPE_CHECKING:
    import psycopg

CONNECTIONS = 4
PATIENCE_S = 30.0
_NAME = "PostgreSQL"  # its URL may hold a password


class PostgresDatabase:
    """A small pool of connections; each process holds an advisory lock on one more."""

    def __init__(self, url: str) -> None:
        try:
            import psycopg
            from psycopg_pool import ConnectionPool
        except ImportError:
            raise MissingExtraError("a ledger in PostgreSQL", "postgres") from None
        self._error = psycopg.Error
        self.owner = uuid4().hex
        self._process = os.getpid()
        self._connect: Callable[[], psycopg.Connection] = partial(
            psycopg.connect, url, autocommit=True
        )
        self._lock = Lock()
        with self._told():
            self._presence = self._present(self.owner)
            with self._presence.transaction():
                # One process alone makes the tables: `IF NOT EXISTS` is not safe in a race.
                self._presence.execute("SELECT pg_advisory_xact_lock(%s)", (_number("tables"),))
                for table in TABLES:
                    self._presence.execute(table)
            self._pool = ConnectionPool(
                url,
                min_size=1,
                max_size=CONNECTIONS,
                timeout=PATIENCE_S,
                open=True,
                check=ConnectionPool.check_connection,  # the server may have been started anew
            )

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Connection]:
        check_process(self._process, _NAME)
        with self._told(), self._pool.connection() as connection:
            if write:
                self._stay_present(connection)
            yield _Marked(connection)

    def now(self, connection: Connection) -> float:
        query = "SELECT extract(epoch FROM clock_timestamp())::float8"
        now: float = connection.execute(query).fetchone()[0]
        return now

    def is_gone(self, connection: Connection, owner: str) -> bool:
        if owner == self.owner:
            return False
        query = "SELECT pg_try_advisory_xact_lock_shared(?)"  # others may look at the same time
        gone: bool = connection.execute(query, (_number(owner),)).fetchone()[0]
        return gone

    def close(self) -> None:
        self._pool.close()
        self._presence.close()

    def _present(self, owner: str) -> psycopg.Connection:
        """A connection that says that this process is alive: its lock goes when it goes."""
        connection = self._connect()
        finalize(self, _end, connection, self._process)
        connection.execute("SELECT pg_advisory_lock(%s)", (_number(owner),))
        return connection

    def _stay_present(self, connection: psycopg.Connection) -> None:
        """Take another name if the connection that holds the lock has broken: the first is gone."""
        query = "SELECT pg_try_advisory_xact_lock_shared(%s)"
        with self._lock:
            if connection.execute(query, (_number(self.owner),)).fetchone() == (True,):
                owner = uuid4().hex
                broken, self._presence = self._presence, self._present(owner)
                self.owner = owner
                broken.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """PostgreSQL's errors in our words: theirs may quote values, and where the server is."""
        try:
            yield
        except (self._error, TimeoutError) as error:
            raise LedgerError(_NAME, type(error).__name__) from None


class _Marked:
    """A connection whose queries mark their values with `?`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, query: str, values: Sequence[Any] = ()) -> Any:
        return self._connection.execute(query.replace("?", "%s"), values)


def _end(connection: psycopg.Connection, process: int) -> None:
    if os.getpid() == process:  # a forked child does not speak for its parent
        connection.close()


def _number(name: str) -> int:
    """The advisory lock of a name: a signed 64-bit number."""
    return int.from_bytes(sha256(f"r2graph {name}".encode()).digest()[:8], "big", signed=True)
