"""SQLite files of ours: told from those of others, shared by threads and by processes."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 60.0  # how long another process may hold the file


@dataclass(frozen=True)
class Form:
    """What is in a file; SQLite keeps both numbers in its header."""

    what: str
    application_id: int
    version: int
    tables: tuple[str, ...]


def open_file(
    path: str | Path, form: Form, *, fsync: bool = False, patience_s: float = PATIENCE_S
) -> sqlite3.Connection:
    """A connection, in autocommit mode, to a file that is made if it is not there.

    Raises `sqlite3.Error`, also for a file of another form, which is left as it is.
    """
    file = sqlite3.connect(path, timeout=patience_s, isolation_level=None, check_same_thread=False)
    marks = {"application_id": form.application_id, "user_version": form.version}
    try:
        file.execute("BEGIN IMMEDIATE")  # so that one process alone makes the tables
        found = [file.execute(f"PRAGMA {mark}").fetchone()[0] for mark in marks]
        there = file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if found == [0, 0] and there == 0:
            for table in form.tables:
                file.execute(table)
            for mark, value in marks.items():
                file.execute(f"PRAGMA {mark} = {value}")
        elif found != list(marks.values()):
            raise sqlite3.DatabaseError(f"no {form.what} of version {form.version}")
        file.execute("COMMIT")
        file.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a writer
        # With WAL a crash of the machine may cost the last commits, never the file, and no commit
        # waits for the disk, unless it is asked to. OFF would be no quicker, and risk the file.
        file.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
    except BaseException:
        file.close()
        raise
    return file
