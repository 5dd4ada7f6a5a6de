"""`r2graph trace export`: the runs that a checkpointer has kept, as traces."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r2graph.cli.options import make_parent

if TYPE_CHECKING:
    from langgraph.checkpoint.sqlite import SqliteSaver

    from r2graph.trace import Trace


def export(
    checkpoints: Annotated[
        Path, typer.Option(dir_okay=False, help="File of a LangGraph SQLite checkpointer.")
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="File of traces to write.")],
    thread: Annotated[
        list[str] | None, typer.Option(help="This thread only; may be given again [default: all]")
    ] = None,
) -> None:
    """Write each finished run of a checkpointer's threads as a trace, one JSON line each."""
    from r2graph.errors import ConfigError
    from r2graph.trace import write_traces

    if out.resolve() == checkpoints.resolve():
        raise ConfigError(f"{out} holds the checkpoints: name another file for the traces")
    make_parent(out)
    with opened(checkpoints) as saver:
        threads = Threads(saver)
        names = threads.named(thread) if thread else threads.names
        written = write_traces(out, threads.traces(names))
    typer.echo(
        f"finished runs: {written}; threads unfinished: {threads.unfinished}, "
        f"without runs of this graph: {threads.skipped}",
        err=True,
    )


@contextmanager
def opened(path: Path) -> Iterator[SqliteSaver]:
    """The checkpointer in a file, which is only read, and runs no code that its bytes name."""
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

    from r2graph.errors import ConfigError, MissingExtraError

    try:
        from langgraph.checkpoint.sqlite import SqliteSaver
    except ModuleNotFoundError as error:
        raise MissingExtraError("r2graph trace export", "sqlite") from error
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as file:
            saver = SqliteSaver(file, serde=strict)
            saver.is_setup = True  # it would write
            yield saver
    except sqlite3.Error:
        raise ConfigError(f"{path} is no file of LangGraph checkpoints that can be read") from None


class Threads:
    """The threads of a checkpointer, and what was found in those that were read."""

    def __init__(self, saver: SqliteSaver) -> None:
        self.saver = saver
        query = "SELECT thread_id FROM checkpoints GROUP BY thread_id ORDER BY min(checkpoint_id)"
        self.names: list[str] = [name for (name,) in saver.conn.execute(query)]
        self.unfinished = 0
        """Threads whose last run has not ended."""
        self.skipped = 0
        """Threads of other graphs, or of what this graph cannot have written."""

    def named(self, names: Sequence[str]) -> Sequence[str]:
        """Some of the threads; raises `ConfigError` if one does not exist."""
        from r2graph.errors import ConfigError

        if unknown := next((name for name in names if name not in self.names), None):
            raise ConfigError(f"there is no thread {unknown!r} among the checkpoints")
        return names

    def traces(self, names: Sequence[str]) -> Iterator[Trace]:
        """The finished runs of some threads, thread by thread, oldest first."""
        for name in names:
            try:
                yield from self._runs(name)
            except (ValueError, TypeError, NotImplementedError):  # it does not even deserialize
                self.skipped += 1

    def _runs(self, name: str) -> list[Trace]:
        from r2graph.trace import trace

        last: str | None = None  # run of the thread
        runs: dict[str, Trace] = {}
        for state in self._states(name):
            last = last or state["run_id"]
            # A run that has just begun still has the result of the one before it.
            if state.get("stop_reason") and state.get("run", {}).get("run_id") not in runs:
                found = trace(state)
                runs[found.run_id] = found
        self.skipped += last is None
        self.unfinished += last is not None and last not in runs
        return list(reversed(runs.values()))

    def _states(self, name: str) -> Iterator[dict[str, Any]]:
        """What this graph has stored in a thread, newest first."""
        for found in self.saver.list({"configurable": {"thread_id": name}}):
            state = found.checkpoint["channel_values"]
            if {"query", "run_id"} <= state.keys() and isinstance(state.get("run", {}), dict):
                yield state
