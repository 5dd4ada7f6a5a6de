"""The ledger's database in a file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO
from uuid import uuid4

from r2graph.errors import LedgerError
from r2graph.ledger.database import TABLES, Connection

APPLICATION_ID = 0x52324C47  # "R2LG": tells the file from SQLite files of others
SCHEMA_VERSION = 1
PATIENCE_S = 60.0  # how long another process may hold the file
_MARKS = {"application_id": APPLICATION_ID, "user_version": SCHEMA_VERSION}


class SqliteDatabase:
    """One connection, shared by threads; each process holds a lock on a file of its own."""

    def __init__(self, path: str | Path, *, fsync: bool) -> None:
        self.owner = uuid4().hex
        self._path = str(path)
        self._lock = Lock()
        with self._told():
            self._file = _opened(path, fsync)
        self._presence = None
        if self._path != ":memory:":
            self._presence = _Presence(self._presence_file(self.owner))

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Connection]:
        with self._lock, self._told():
            if write:
                self._file.execute("BEGIN IMMEDIATE")
            try:
                yield self._file
            except BaseException:
                if write:
                    self._file.execute("ROLLBACK")
                raise
            if write:
                self._file.execute("COMMIT")

    def is_gone(self, connection: Connection, owner: str) -> bool:
        return owner != self.owner and not _is_locked(self._presence_file(owner))

    def close(self) -> None:
        with self._lock:
            self._file.close()
        if self._presence is not None:
            self._presence.end()

    def _presence_file(self, owner: str) -> Path:
        return Path(f"{self._path}-{owner}")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors in our words; they quote no values."""
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(self._path, str(error)) from None


def _opened(path: str | Path, fsync: bool) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None, check_same_thread=False)
    try:
        file.execute("BEGIN IMMEDIATE")  # so that one process alone makes the tables
        marks = [file.execute(f"PRAGMA {mark}").fetchone()[0] for mark in _MARKS]
        there = file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if marks == [0, 0] and there == 0:
            for table in TABLES:
                file.execute(table)
            for mark, value in _MARKS.items():
                file.execute(f"PRAGMA {mark} = {value}")
        elif marks != list(_MARKS.values()):
            raise sqlite3.DatabaseError(f"no ledger of version {SCHEMA_VERSION}")
        file.execute("COMMIT")
        file.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a writer
        file.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
    except BaseException:
        file.close()
        raise
    return file


class _Presence:
    """Says that this process is alive: the lock on its file goes when it goes, however it goes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w")
        if not _lock(self._file):
            raise LedgerError(str(path), "its file system has no locks")

    def end(self) -> None:
        self._path.unlink(missing_ok=True)
        self._file.close()


def _is_locked(path: Path) -> bool:
    try:
        file = path.open()
    except FileNotFoundError:
        return False
    with file:
        if not _lock(file):
            return True
        path.unlink(missing_ok=True)  # its process is gone and will not do it
    return False


def _lock(file: IO[str]) -> bool:
    """Whether the lock is now ours; where there are none, nobody can tell who is alive."""
    try:
        import fcntl
    except ImportError:
        raise LedgerError(file.name, "this system has no file locks: use PostgreSQL") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
