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
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any, Literal, TypeVar

from r2graph.errors import ConfigError, MissingExtraError, R2Error, WorkerError

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
    has to know. Raises what a worker raises, of other processes only `R2Error`s and for all else
    `WorkerError`; `MissingExtraError` without Ray.
    """
    if not shards:
        return iter(())
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
        left = iter(shards)
        running = {processes.submit(_work, shard) for shard in islice(left, workers)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result = _told(future.result())
                    running |= {processes.submit(_work, shard) for shard in islice(left, 1)}
                    yield result
        except BrokenProcessPool:
            raise WorkerError("it ended") from None


class _Elsewhere:
    """The worker of another process, opened for its first shard. Its errors are results: what does
    not pickle would end the process, and Ray repeats what fails.
    """

    def __init__(self, opens: Opens[Any, Any]) -> None:
        self._held = opens()  # a worker is closed when nobody holds it
        self._worker: Worker[Any, Any] | None = None

    def __call__(self, shard: Any) -> Any:
        try:
            if self._worker is None:
                self._worker = self._held.__enter__()
            return self._worker(shard)
        except R2Error as error:
            return error
        except Exception as error:  # noqa: BLE001 - its text may hold anything
            return WorkerError(type(error).__name__)


def _told(result: Any) -> Any:
    if isinstance(result, R2Error):
        raise result
    return result


_elsewhere: _Elsewhere  # of a process that was spawned


def _begin(opens: Opens[Any, Any]) -> None:
    global _elsewhere
    _elsewhere = _Elsewhere(opens)


def _work(shard: Any) -> Any:
    return _elsewhere(shard)


def _on_ray(opens: Opens[S, R], shards: Sequence[S], workers: int) -> Iterator[R]:
    with _cluster(workers) as ray:
        rows = [{"shard": pickle.dumps(shard)} for shard in shards]
        pool = ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2)
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Actor, fn_constructor_args=(pickle.dumps(opens),), compute=pool, num_cpus=1
        )
        done.context.enable_progress_bars = False
        for row in done.iter_rows():
            yield _told(pickle.loads(row["result"]))


class _Actor:
    """A worker on Ray; it takes pickles, so that no table of Ray's shows what is in a shard."""

    def __init__(self, opens: bytes) -> None:
        self._elsewhere = _Elsewhere(pickle.loads(opens))

    def __call__(self, row: Mapping[str, bytes]) -> dict[str, bytes]:
        return {"result": pickle.dumps(self._elsewhere(pickle.loads(row["shard"])))}


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
    try:
        ray.init(**options)
    except (ConnectionError, ray.exceptions.AuthenticationError):
        raise ConfigError(
            f"no Ray cluster lets us in at RAY_ADDRESS={address}: check that it is up and, if it "
            "was started with a token, that RAY_AUTH_MODE=token is set here as well"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()
