"""Shards of work, done in this process, in several of this machine, or on a Ray cluster.

A *worker* is opened once in each process, with its models, and then does one shard after the other.
What it does is the same everywhere: only who calls it differs.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeVar

from r2graph.errors import MissingExtraError, R2Error

Engine = Literal["local", "ray"]

S = TypeVar("S")
R = TypeVar("R")
Worker = Callable[[S], R]
Opens = Callable[[], AbstractContextManager[Worker[S, R]]]
"""Opens a worker; other processes get it as a pickle, and leave the worker open until they end."""


def spread(
    opens: Opens[S, R], shards: Sequence[S], *, engine: Engine = "local", workers: int = 1
) -> Iterator[R]:
    """The result of each shard, as it comes, in any order; what has not begun when the caller stops
    never does.

    On Ray, a cluster as `RAY_ADDRESS` names it or one of this machine, a worker takes a core, and a
    shard whose worker or machine is lost is done again by another: what it has paid for, a ledger
    has to know. Raises what a worker raises, and `MissingExtraError` without Ray.
    """
    if engine == "ray":
        return _on_ray(opens, shards, workers)
    if workers == 1:
        return _here(opens, shards)
    return _in_processes(opens, shards, workers)


def _here(opens: Opens[S, R], shards: Sequence[S]) -> Iterator[R]:
    with opens() as worker:
        yield from map(worker, shards)


def _in_processes(opens: Opens[S, R], shards: Sequence[S], workers: int) -> Iterator[R]:
    # Spawned, not forked: torch and event loops do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (opens,)) as processes:
        futures = [processes.submit(_work, shard) for shard in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            processes.shutdown(cancel_futures=True)


class _Open:
    """The worker of another process, opened for its first shard."""

    def __init__(self, opens: Opens[Any, Any]) -> None:
        self._opens = opens
        self._worker: Worker[Any, Any] | None = None

    def __call__(self, shard: Any) -> Any:
        if self._worker is None:
            self._held = self._opens()  # it would be closed if nobody held it
            self._worker = self._held.__enter__()
        return self._worker(shard)


_open: _Open  # of a process that was spawned


def _begin(opens: Opens[Any, Any]) -> None:
    global _open
    _open = _Open(opens)


def _work(shard: Any) -> Any:
    return _open(shard)


def _on_ray(opens: Opens[S, R], shards: Sequence[S], workers: int) -> Iterator[R]:
    with _cluster(workers) as ray:
        rows = [{"shard": pickle.dumps(shard)} for shard in shards]
        pool = ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1)
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Actor, fn_constructor_args=(pickle.dumps(opens),), compute=pool, num_cpus=1
        )
        done.context.enable_progress_bars = False
        for row in done.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, R2Error):
                raise result
            yield result


class _Actor:
    """A worker on Ray. Its errors are results: Ray would wrap them, and repeat what it cannot
    pickle. Pickles, so that no table of Ray's shows what is in a shard.
    """

    def __init__(self, opens: bytes) -> None:
        self._open = _Open(pickle.loads(opens))

    def __call__(self, row: Mapping[str, bytes]) -> dict[str, bytes]:
        try:
            result = self._open(pickle.loads(row["shard"]))
        except R2Error as error:
            result = error
        return {"result": pickle.dumps(result)}


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    """Ray, connected: to what the caller is connected to, or to a cluster for this alone."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("the engine `ray`", "ray") from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)  # the caller shows how far it is
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "num_cpus": workers, "include_dashboard": False}
    ray.init(**options)
    try:
        yield ray
    finally:
        ray.shutdown()
