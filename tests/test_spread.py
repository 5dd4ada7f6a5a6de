"""Shards of work, wherever they are done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from r2graph.errors import ConfigError, WorkerError
from r2graph.spread import Engine, spread
from tests.postgres import postgres_server  # noqa: F401

ROOT = Path(__file__).parent.parent


@contextmanager
def opened(log: Path, bad: int | None = None) -> Iterator[Callable[[int], tuple[int, int]]]:
    """A worker that squares, says which process it is, and writes down that it was opened."""
    with log.open("a") as file:
        file.write("open\n")

    def work(shard: int) -> tuple[int, int]:
        if shard == bad:
            raise ConfigError("shard 3 is not to be had")
        return shard * shard, os.getpid()

    yield work
    with log.open("a") as file:
        file.write("close\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_each_shard_is_done_once_by_workers_that_are_opened_once(
    tmp_path: Path, workers: int
) -> None:
    log = tmp_path / "log"
    done = list(spread(partial(opened, log), range(9), workers=workers))
    assert sorted(square for square, _ in done) == [n * n for n in range(9)]
    opens = log.read_text().split()
    assert opens.count("open") == len({process for _, process in done}) <= workers
    assert (os.getpid() in {process for _, process in done}) == (workers == 1)
    assert workers > 1 or opens == ["open", "close"]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_worker_raises_is_raised(tmp_path: Path, workers: int) -> None:
    with pytest.raises(ConfigError, match="not to be had"):
        list(spread(partial(opened, tmp_path / "log", bad=3), range(9), workers=workers))


@contextmanager
def failing(how: str) -> Iterator[Callable[[int], None]]:
    def work(shard: int) -> None:
        if how == "ends":
            os._exit(9)
        raise RuntimeError("SECRET", object())

    yield work


@pytest.mark.parametrize(("how", "told"), [("ends", "it ended"), ("raises", "RuntimeError")])
def test_a_worker_that_fails_is_a_typed_error_without_its_text(how: str, told: str) -> None:
    with pytest.raises(WorkerError, match=told) as caught:
        list(spread(partial(failing, how), range(3), workers=2))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_nothing_to_do_opens_no_worker(tmp_path: Path, engine: Engine) -> None:
    assert list(spread(partial(opened, tmp_path / "log"), [], engine=engine, workers=2)) == []
    assert not (tmp_path / "log").exists()


def test_no_shard_is_begun_that_nobody_waits_for(tmp_path: Path) -> None:
    begun: list[int] = []

    @contextmanager
    def noting() -> Iterator[Callable[[int], None]]:
        yield begun.append

    done = spread(noting, range(9))
    next(done)
    done.close()
    assert begun == [0]


# A cluster, in a process of its own: pytest-socket would not let Ray find its address.


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    here = {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment = os.environ | here
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


ON_RAY = """
import sys
from functools import partial
from pathlib import Path

from r2graph.errors import ConfigError
from r2graph.spread import spread
from tests.test_spread import opened

try:  # the last one fails; with one worker all others are done before
    for square, _ in spread(
        partial(opened, Path(sys.argv[1]), bad=3), [0, 1, 2, 3], engine="ray", workers=1
    ):
        print(square)
except ConfigError as error:
    print(error)
"""


def test_on_ray_shards_are_done_and_what_a_worker_raises_is_raised(tmp_path: Path) -> None:
    done = command("-c", ON_RAY, str(tmp_path / "log"))
    assert done.stdout.splitlines() == ["0", "1", "4", "shard 3 is not to be had"], done.stderr


@pytest.mark.slow
def test_on_ray_the_command_says_what_it_says_here(tmp_path: Path) -> None:
    evaluate = (
        "-c",
        "from r2graph.cli import app; app()",
        *("eval", "--benchmarks", "scan-simple", "--methods", "plan-2,router", "--limit", "20"),
        *("--concurrency", "4", "--json"),
    )
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    ray = ("--engine", "ray", "--workers", "2", "--out", str(tmp_path / "out.jsonl"))
    done = command(*evaluate, str(there), *ray)
    assert done.returncode == 0, done.stderr
    assert command(*evaluate, str(here)).returncode == 0
    rows = [json.loads(file.read_text()) for file in (here, there)]
    for row in (*rows[0], *rows[1]):
        del row["cpu_s"]
    assert rows[0] == rows[1]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1 + 2 * 20


def test_a_budget_that_none_could_keep_is_refused() -> None:
    evaluate = ("-c", "from r2graph.cli import app; app()", "eval", "--limit", "1")
    told = command(*evaluate, "--engine", "ray", "--max-usd", "1").stderr
    assert "--ledger postgresql://" in told


@pytest.mark.slow
def test_a_node_is_lost_and_no_query_and_nothing_is_bought_twice(
    postgres_server: str,  # noqa: F811
) -> None:
    parts = ("--parts", "lost,dollar", "--queries", "40", "--ledger", postgres_server)
    done = command("-m", "benchmarks.cluster", *parts)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):  # Ray tells of the lost node between them
            found |= json.loads(line)
    lab, slow = found["lost"]["lab"], found["lost"]["slow"]
    assert (lab["lost"], lab["again"], lab["answers_differing"]) == (0, 0, 0)
    assert (slow["done"], slow["again"]) == (slow["queries"], 0)
    assert slow["queries"] <= slow["sent"] <= slow["queries"] + slow["doubt"]
    assert float(found["dollar"]["sent_usd"]) <= 1
