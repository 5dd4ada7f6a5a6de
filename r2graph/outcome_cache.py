"""What models have said, in an SQLite file that search, training and evaluation ask first.

It keeps one JSON object a key and knows nothing of models. Of a key, which may hold a prompt, only
the hash gets into the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, Self

from r2graph.errors import ConfigError
from r2graph.sqlite_file import Form, open_file

FORM = Form(
    "outcome cache",
    application_id=0x52324F43,  # "R2OC"
    version=1,
    tables=("CREATE TABLE outcomes (key TEXT PRIMARY KEY, value TEXT NOT NULL)",),
)
IN_MEMORY = 10_000  # the values read last, which are not read from the file again


class OutcomeCache:
    """Values by key, in the file at `path`, which is made if it is not there.

    Any number of threads share an instance, any number of processes a file on a local disk. The
    first value of a key stays. A pickle opens the file anew, and so must a forked process.

    Raises `ConfigError` for a file that is no outcome cache, and leaves it as it is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.hits = 0
        self.misses = 0
        self._memory: dict[str, str] = {}
        self._lock = Lock()
        with self._told():
            self._file = open_file(self.path, FORM)

    def get(self, key: object) -> dict[str, Any] | None:
        """The value of a key, which is any JSON value."""
        name = _name(key)
        with self._lock:
            text = self._memory.get(name) or self._read(name)
            if text is None:
                self.misses += 1
                return None
            self.hits += 1
        value: dict[str, Any] = json.loads(text)  # a new one for each, who may change it
        return value

    def put(self, key: object, value: Mapping[str, Any]) -> None:
        """Keep a value; it is in the file when this returns."""
        row = _name(key), json.dumps(value)
        with self._lock, self._told():
            self._file.execute("INSERT OR IGNORE INTO outcomes VALUES (?, ?)", row)

    @property
    def hit_rate(self) -> float:
        """The share of `get`s that found something; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.path,)

    def _read(self, name: str) -> str | None:
        with self._told():
            query = "SELECT value FROM outcomes WHERE key = ?"
            row = self._file.execute(query, (name,)).fetchone()
        if row is None:
            return None
        if len(self._memory) >= IN_MEMORY:
            del self._memory[next(iter(self._memory))]
        self._memory[name] = row[0]
        return self._memory[name]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors in our words; they quote no values."""
        try:
            yield
        except sqlite3.Error as error:
            raise ConfigError(
                f"outcome cache {self.path} cannot be used ({error}): name another file, or move "
                "this one away"
            ) from None


def _name(key: object) -> str:
    """SHA-256 of the canonical JSON; what is not JSON counts by its `repr`."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), default=repr)
    return sha256(text.encode()).hexdigest()
