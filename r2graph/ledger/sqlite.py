"""The ledger's database in a file."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO
from uuid import uuid4
from weakref import finalize

from r2graph.errors import LedgerError
from r2graph.ledger.database import TABLES, Connection, check_process
from r2graph.sqlite_file import PATIENCE_S, Form, open_file

FORM = Form("ledger", application_id=0x52324C47, version=1, tables=TABLES)  # "R2LG"


class SqliteDatabase:
    """One connection, shared by threads; each process holds a lock on a file of its own."""

    def __init__(self, path: str | Path, *, fsync: bool, patience_s: float = PATIENCE_S) -> None:
        self.owner = uuid4().hex
        self._path = str(path)
        if self._path != ":memory:":  # one name for all, for presence files stand beside it
            self._path = str(Path(path).expanduser().resolve())
        self._lock = Lock()
        self._process = os.getpid()
        with self._told():
            self._file = open_file(self._path, FORM, fsync=fsync, patience_s=patience_s)
        self._end: finalize[..., SqliteDatabase] | None = None
        if self._path != ":memory:":
            with self.transaction() as file:
                for table in TABLES:  # a file from before it had them all gets the others
                    file.execute(table)
                # In the same transaction, so that nobody takes a file for left behind before its
                # lock.
                self._sweep()
                presence = _Presence(self._presence_file(self.owner))
            self._end = finalize(self, presence.end)  # when Python ends, at the latest

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Connection]:
        check_process(self._process, self._path)
        with self._lock, self._told():
            try:
                if write:
                    self._file.execute("BEGIN IMMEDIATE")
                yield self._file
                if write:
                    self._file.execute("COMMIT")
            except BaseException:
                if self._file.in_transaction:  # SQLite ends some that fail by itself
                    self._file.execute("ROLLBACK")
                raise

    def now(self, connection: Connection) -> float:
        return time.time()  # they are all on this machine

    def is_gone(self, connection: Connection, owner: str) -> bool:
        return owner != self.owner and not _is_locked(self._presence_file(owner))

    def close(self) -> None:
        with self._lock:
            self._file.close()
        if self._end is not None:
            self._end()

    def _presence_file(self, owner: str) -> Path:
        return Path(f"{self._path}-{owner}")

    def _sweep(self) -> None:
        """Take away the files of processes that were killed."""
        path = Path(self._path)
        for each in path.parent.iterdir():
            if re.fullmatch(re.escape(path.name) + "-[0-9a-f]{32}", each.name):
                _is_locked(each)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of SQLite and of the file system in our words; they quote no values."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(self._path, str(error)) from None


class _Presence:
    """Says that this process is alive: the lock on its file goes when it goes, however it goes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process = os.getpid()
        self._file = path.open("w")
        if not _lock(self._file):
            raise LedgerError(str(path), "its file system has no locks")

    def end(self) -> None:
        if os.getpid() == self._process:  # a forked child does not speak for its parent
            self._path.unlink(missing_ok=True)
        self._file.close()


def _is_locked(path: Path) -> bool:
    try:
        file = path.open()
    except FileNotFoundError:
        return False
    with file:
        if not _lock(file, shared=True):  # of two who look at once, none is in the other's way
            return True
        path.unlink(missing_ok=True)  # its process is gone and will not do it
    return False


def _lock(file: IO[str], *, shared: bool = False) -> bool:
    """Whether the lock is now ours; where there are none, nobody can tell who is alive."""
    try:
        import fcntl
    except ImportError:
        raise LedgerError(file.name, "this system has no file locks: use PostgreSQL") from None
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
