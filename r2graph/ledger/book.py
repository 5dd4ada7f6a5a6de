"""The ledger, and a call's page in it.

A call is entered as an *intent*, with its worst case reserved, before it is sent; its *reply* is
on disk before anyone sees it. Whoever resumes a run finds the reply here and does not buy it again.
An intent whose process is gone is *in doubt*: the call may have been answered, and billed.

Of a prompt only the hash gets into the ledger; replies are kept as they came.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from r2graph.breaker import Health
from r2graph.errors import LedgerError, LimitExceeded
from r2graph.ledger.database import Connection, Database
from r2graph.ledger.records import Budget, Line, State
from r2graph.ledger.rests import exchange
from r2graph.ledger.sqlite import SqliteDatabase
from r2graph.pricing import to_text

WRITERS = 4
PICO = Decimal("1e-12")  # running totals are whole numbers of this many dollars, rounded up
_COLUMNS = "run, role, member, step, state, kind, usd, reply, at, owner"


class Ledger:
    """A ledger in an SQLite file, made if it is not there, or in PostgreSQL (`postgresql://…`).

    Any number of threads share an instance; any number of processes share a file on a local disk,
    or a database. What was recorded survives the death of the process, and with `fsync` that of the
    machine, for about a millisecond a call (PostgreSQL has its own setting). It is not pickled, and
    a forked process opens it anew. Without `keep` a call is forgotten once it is settled, and only
    what it cost stays, in the totals of budgets. Raises `LedgerError`.
    """

    def __init__(self, source: str | Path, *, fsync: bool = False, keep: bool = True) -> None:
        self._database = _open(source, fsync)
        self._keep = keep
        self._awaited: set[tuple[str, int]] = set()
        # Of its own: models that hang in the event loop's threads hold up no ledger.
        self.writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="r2graph-ledger")

    def page(
        self,
        run: str,
        role: str,
        member: str,
        step: str | None,
        request: object,
        budget: Budget | None = None,
    ) -> Page:
        """The page of a run's call; the same call of the resumed run has the same page.

        `request` is whatever tells the call from others of its step: any JSON value, and what is
        not JSON counts by its `repr`.
        """
        parts = json.dumps([run, role, member, step, request], default=repr)
        key = sha256(parts.encode()).hexdigest()
        call = run, role, member, step, key
        return Page(self._database, self._awaited, self._keep, *call, budget)

    def lines(self, run: str | None = None) -> list[Line]:
        """The calls of a run, or of all runs, in the order in which they were entered."""
        where, values = ("WHERE run = ? ", (run,)) if run is not None else ("", ())
        query = f"SELECT {_COLUMNS} FROM r2graph_calls {where}ORDER BY at, key, try"
        with self._database.transaction(write=False) as database:
            rows = database.execute(query, values).fetchall()
        return [_line(row) for row in rows]

    def is_in_doubt(self, line: Line) -> bool:
        """Whether a call's outcome is unknown and nobody waits for it."""
        if line.state == "intent":
            with self._database.transaction(write=False) as database:
                return self._database.is_gone(database, line.owner)
        return line.state == "in_doubt"

    def left(self, budget: Budget) -> Decimal:
        """Dollars of a budget that are neither spent nor reserved."""
        with self._database.transaction(write=False) as database:
            row = database.execute(
                "SELECT pico FROM r2graph_totals WHERE scope = ? AND period = ?",
                (budget.scope, budget.period_at(time.time())),
            ).fetchone()
        return budget.usd - (row[0] if row else 0) * PICO

    def share(self, health: Health) -> None:
        """Tell the other processes which members of a pool rest, and hear it from them.

        Raises nothing: a ledger that fails says so at the next call, and until then each process
        knows what it found by itself.
        """
        with suppress(LedgerError):
            exchange(self._database, health)

    def close(self) -> None:
        self._database.close()  # the writers go with the ledger; until then they get its error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Page:
    """The tries of one call: `intend`, then `reply`, `fail` or `doubt`. Tries count from 1."""

    database: Database
    awaited: set[tuple[str, int]]
    """Keys and tries of the intents of this process whose reply somebody waits for."""
    keep: bool
    """Whether a try stays in the ledger once it is settled."""
    run: str
    role: str
    member: str
    step: str | None
    key: str
    budget: Budget | None

    def lines(self) -> list[Line]:
        """The tries so far, in order."""
        with self.database.transaction(write=False) as database:
            return self._lines(database)

    def intend(self, worst: Decimal) -> list[Line] | None:
        """Enter a try that is about to be sent; returns those before it.

        `None` if there is nothing to send: the reply is there, or a process that is alive has sent
        the call and waits. Raises `LimitExceeded` if the worst case could pass the budget.
        """
        now = time.time()
        with self.database.transaction() as database:
            earlier = self._lines(database)
            for number, line in enumerate(earlier, start=1):
                if line.state == "reply" or self._is_awaited(database, number, line):
                    return None
                if not self._doubt(database, number) and line.state == "intent":
                    return None  # in PostgreSQL it was settled after it had been read
            account = self._account(now)
            if not self._enter(database, len(earlier) + 1, account, worst, now):
                return None
            total = _add(database, *account, worst)
            if self.budget is not None and total > self.budget.usd:
                raise LimitExceeded("pool_budget")
            self.awaited.add((self.key, len(earlier) + 1))
        return earlier

    def reply(self, number: int, cost: Decimal, reply: Mapping[str, Any]) -> None:
        """The call was answered; when this returns, nobody will buy the answer again."""
        self._settle(number, "reply", cost, reply=json.dumps(reply))

    def fail(self, number: int, cost: Decimal, kind: str) -> None:
        """The call failed, and cost at most so much."""
        self._settle(number, "failed", cost, kind=kind)

    def doubt(self, number: int) -> None:
        """Nobody waits for the call's reply any more; its worst case stays reserved."""
        try:
            with self.database.transaction() as database:
                self._doubt(database, number)
                self._forget(database, number)
        finally:
            self.awaited.discard((self.key, number))

    def _is_awaited(self, database: Connection, number: int, line: Line) -> bool:
        """Whether somebody waits for the reply to an intent."""
        if line.state != "intent":
            return False
        if line.owner == self.database.owner:  # if a write failed, the line stays an intent
            return (self.key, number) in self.awaited
        return not self.database.is_gone(database, line.owner)

    def _lines(self, database: Connection) -> list[Line]:
        query = f"SELECT {_COLUMNS} FROM r2graph_calls WHERE key = ? ORDER BY try"
        return [_line(row) for row in database.execute(query, (self.key,)).fetchall()]

    def _account(self, now: float) -> tuple[str, str]:
        """The scope and the period to whose total the call counts."""
        return (self.budget.scope, self.budget.period_at(now)) if self.budget else ("default", "")

    def _enter(
        self,
        database: Connection,
        number: int,
        account: tuple[str, str],
        worst: Decimal,
        now: float,
    ) -> bool:
        """Whether the line is new: in PostgreSQL another process may enter it at the same time."""
        where = (self.key, number, *account)
        call = (self.run, self.role, self.member, self.step)
        entered = database.execute(
            f"INSERT INTO r2graph_calls (key, try, scope, period, {_COLUMNS}) VALUES "
            "(?, ?, ?, ?, ?, ?, ?, ?, 'intent', NULL, ?, NULL, ?, ?) "
            "ON CONFLICT DO NOTHING RETURNING try",
            (*where, *call, to_text(worst), now, self.database.owner),
        ).fetchall()
        return bool(entered)

    def _doubt(self, database: Connection, number: int) -> bool:
        """Whether it was an intent until now."""
        doubted = database.execute(
            "UPDATE r2graph_calls SET state = 'in_doubt' "
            "WHERE key = ? AND try = ? AND state = 'intent' RETURNING try",
            (self.key, number),
        ).fetchall()
        return bool(doubted)

    def _settle(
        self,
        number: int,
        state: State,
        cost: Decimal,
        *,
        kind: str | None = None,
        reply: str | None = None,
    ) -> None:
        """Replace a reservation by what the call cost."""
        place = self.key, number
        try:
            with self.database.transaction() as database:
                scope, period, worst = database.execute(
                    "SELECT scope, period, usd FROM r2graph_calls WHERE key = ? AND try = ?", place
                ).fetchone()
                database.execute(  # the call before the total, as in `intend`: no deadlock
                    "UPDATE r2graph_calls SET state = ?, usd = ?, kind = ?, reply = ? "
                    "WHERE key = ? AND try = ?",
                    (state, to_text(cost), kind, reply, *place),
                )
                _add(database, scope, period, cost - Decimal(worst))
                self._forget(database, number)
        finally:
            self.awaited.discard(place)

    def _forget(self, database: Connection, number: int) -> None:
        if not self.keep:
            place = self.key, number
            database.execute("DELETE FROM r2graph_calls WHERE key = ? AND try = ?", place)


def _open(source: str | Path, fsync: bool) -> Database:
    if isinstance(source, str) and source.startswith(("postgresql://", "postgres://")):
        from r2graph.ledger.postgres import PostgresDatabase

        return PostgresDatabase(source)
    return SqliteDatabase(source, fsync=fsync)


def _line(row: tuple[Any, ...]) -> Line:
    run, role, member, step, state, kind, usd, reply, at, owner = row
    said = json.loads(reply) if reply else None
    return Line(run, role, member, step, state, kind, Decimal(usd), said, at, owner)


def _add(database: Connection, scope: str, period: str, dollars: Decimal) -> Decimal:
    """Add to the running total of a scope in a period; returns the new total."""
    pico = int((dollars / PICO).to_integral_value(ROUND_CEILING))
    [[total]] = database.execute(
        "INSERT INTO r2graph_totals VALUES (?, ?, ?) ON CONFLICT (scope, period) "
        "DO UPDATE SET pico = r2graph_totals.pico + excluded.pico RETURNING pico",
        (scope, period, pico),
    ).fetchall()
    return Decimal(total) * PICO
