"""A PostgreSQL server for the tests: in a directory of its own, on a Unix socket, gone after.

    with running_server() as url: …

PostgreSQL refuses to run as root, so root lends it the system's `postgres` or `nobody`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote
from uuid import uuid4

import pytest

START_S = 60
_INSTALLED = "/usr/lib/postgresql", "/usr/local/pgsql", "/opt/homebrew/opt"


class NoServerError(Exception):
    """There is no PostgreSQL here, or none that can be run; it says which."""


@contextmanager
def running_server() -> Iterator[str]:
    """The URL of a database that is empty. Raises `NoServerError`."""
    programs = _programs()
    # A socket's path may have about a hundred characters: pytest's directories are too deep.
    with TemporaryDirectory(prefix="r2pg-") as name:
        home = Path(name)
        _give_away(home)
        data = home / "data"
        options = "-A", "trust", "-U", "r2", "-E", "UTF8", "--no-sync", "--no-locale"
        _run(home, programs / "initdb", "-D", data, *options)
        settings = f"-k {home} -h '' -c fsync=off -c max_connections=200"
        control = programs / "pg_ctl", "-D", data, "-w", "-t", str(START_S)
        _run(home, *control, "-l", home / "log", "-o", settings, "start")
        try:
            yield f"postgresql://r2@/postgres?host={quote(name, safe='')}"
        finally:
            _run(home, *control, "-m", "immediate", "stop")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of the session's server; skips where there is none. Import it to use it."""
    pytest.importorskip("psycopg_pool", reason="needs the extra `postgres`")
    try:
        with running_server() as url:
            yield url
    except NoServerError as error:
        pytest.skip(str(error))


def new_schema(server: str) -> str:
    """The URL of a schema of its own, which is made in no time, unlike a database."""
    import psycopg

    name = f"s{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{server}&options=-csearch_path%3D{name}"


def _programs() -> Path:
    """The directory of the server's programs, of the newest version that is installed."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    there = [path for root in _INSTALLED for path in Path(root).glob("*/bin/initdb")]
    if not there:
        raise NoServerError("PostgreSQL's server is not installed (no initdb)")
    return max(
        there, key=lambda path: [int(n) for n in path.parts[-3].split(".") if n.isdigit()]
    ).parent


def _account() -> pwd.struct_passwd | None:
    """Whom the server runs as, if not as whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NoServerError("PostgreSQL does not run as root, and there is nobody else")


def _give_away(home: Path) -> None:
    if account := _account():
        os.chown(home, account.pw_uid, account.pw_gid)
        home.chmod(0o755)


def _run(home: Path, *command: str | Path) -> None:
    account = _account()
    with (home / "out").open("ab") as out:  # no pipe: the server would inherit it, and hold it open
        done = subprocess.run(
            command,
            user=account and account.pw_uid,
            group=account and account.pw_gid,
            extra_groups=[] if account else None,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise NoServerError(f"{Path(command[0]).name} failed: {(home / 'out').read_text()[-300:]}")
