"""Which members rest, as the processes that share a ledger tell each other.

A row is a member that one of them found to be down, and until when nobody is to try it. Whoever
gets an answer from it deletes the row; that of a process that died ends by itself. Times are those
of the database, so that the clocks of machines need not agree.
"""

from __future__ import annotations

from r2graph.breaker import Health, Rest
from r2graph.ledger.database import Connection, Database

FORGOTTEN_S = 24 * 3600.0  # rows of members that are no more


def exchange(database: Database, health: Health) -> None:
    """Write what this process has found, read what all have. Raises `LedgerError`."""
    findings, names = health.findings(), health.names
    news = {member: finding for member, finding in findings.items() if finding.is_new}
    with database.transaction(write=bool(news)) as connection:
        now = database.now(connection)
        for member, finding in news.items():
            _tell(connection, names[member], finding.rest, now)
        rows = connection.execute(
            "SELECT member, until, rests, at FROM r2graph_rests "
            f"WHERE member IN ({', '.join('?' * len(names))})",
            tuple(names.values()),
        ).fetchall()
    resting = {name: Rest(until - now, rests, now - at) for name, until, rests, at in rows}
    health.adopt(
        findings, {member: resting[name] for member, name in names.items() if name in resting}
    )


def _tell(connection: Connection, name: str, rest: Rest | None, now: float) -> None:
    if rest is None:
        connection.execute("DELETE FROM r2graph_rests WHERE member = ?", (name,))
        return
    connection.execute(
        "INSERT INTO r2graph_rests (member, until, rests, at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (member) DO UPDATE SET "
        "until = excluded.until, rests = excluded.rests, at = excluded.at "
        "WHERE excluded.until > r2graph_rests.until",
        (name, now + rest.left_s, rest.rests, now),
    )
    connection.execute("DELETE FROM r2graph_rests WHERE until < ?", (now - FORGOTTEN_S,))
