"""kill -9 at any instant: no run is lost, no recorded call is bought again, and what was is known.

pytest tests/reliability/test_kill.py -s              # a few kills
pytest tests/reliability/test_kill.py -s -m slow      # 50 chains, 50 fans, 20 on PostgreSQL
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest

from r2graph.ledger import Ledger, Line
from r2graph.plan import fill, parse_text
from tests.conftest import Figure
from tests.postgres import new_schema, postgres_server
from tests.reliability.victim import CALLS, Job, Metered, plan

__all__ = ["postgres_server"]  # a fixture

ROOT = Path(__file__).parent.parent.parent
KILLS = 3  # of one run, at most
MICRO = Decimal("1e-6")  # dollars a token, of all models here


class Victims:
    """The process that has victims for children."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.victim"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, job: Job) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def rivals() -> Iterator[tuple[Victims, Victims]]:
    started = Victims(), Victims()
    yield started
    for each in started:
        each.close()


@pytest.fixture
def victims(rivals: tuple[Victims, Victims]) -> Victims:
    return rivals[0]


@dataclass
class Place:
    """Where runs keep what they have, and where their provider keeps its meter."""

    folder: Path
    checkpoints: str
    ledger: str | None
    """`None`: the control."""

    @property
    def meter(self) -> Path:
        return self.folder / "meter.jsonl"

    def metered(self, run: str) -> list[Metered]:
        if not self.meter.exists():
            return []
        # A line that a kill cut short was not answered either.
        lines = [line for line in self.meter.read_text().split("\n")[:-1] if line]
        return [entry for entry in map(json.loads, lines) if entry["run"] == run]

    def lines(self, run: str) -> list[tuple[Line, bool]]:
        """The run's calls in the ledger, and whether each is in doubt."""
        if self.ledger is None:
            return []
        with Ledger(self.ledger) as ledger:
            return [(line, ledger.is_in_doubt(line)) for line in ledger.lines(run)]

    def recorded(self, run: str) -> set[str]:
        """The steps whose replies are in the ledger."""
        return {step_of(line) for line, _ in self.lines(run) if line.state == "reply"}

    def job(self, shape: str, *, run: str = "", **fields: Any) -> Job:
        run = run or str(uuid4())
        defaults: dict[str, Any] = {
            "world": "sync",
            "durability": "async",
            "kill_after_s": None,
            "die_in_call": None,
            "dies_for_checkpoint": False,
        }
        places = {
            "run": run,
            "checkpoints": self.checkpoints,
            "ledger": self.ledger,
            "meter": str(self.meter),
            "result": str(self.folder / f"{run}.json"),
        }
        job: Job = {"shape": shape, **places, **defaults, **fields}  # type: ignore[typeddict-item]
        return job


def on_sqlite(folder: Path, *, ledger: bool = True) -> Place:
    path = str(folder / "ledger.sqlite")
    return Place(folder, str(folder / "checkpoints.sqlite"), path if ledger else None)


def on_postgres(folder: Path, server: str) -> Place:
    from langgraph.checkpoint.postgres import PostgresSaver

    url = new_schema(server)
    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()
    return Place(folder, url, url)


def step_of(line: Line) -> str:
    return line.step or "plan"


def expected(job: Job) -> dict[str, str]:
    """Each step's own output."""
    outputs: dict[str, str] = {}
    for step in parse_text(plan(job["shape"], job["run"])).subtasks:
        outputs[step.id] = f"[{fill(step.text, outputs)}]"
    return outputs


@dataclass
class Tally:
    """What came of some runs."""

    runs: int = 0
    lost: int = 0
    kills: int = 0
    provider_calls: int = 0
    duplicates: int = 0
    """Calls of the provider beyond those that a run needs."""
    bought_again: int = 0
    """Those of them whose reply had been recorded."""
    in_doubt: int = 0
    unknown: int = 0
    """Duplicates that nobody could know of."""
    wrong_outputs: int = 0
    billed_usd: Decimal = Decimal(0)
    metered_usd: Decimal = Decimal(0)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if name != "faults"}
        return ", ".join(f"{name} {value}" for name, value in shown.items())

    def check(self, kills: int) -> None:
        """What is promised of runs with a ledger."""
        assert self.kills >= kills
        assert (self.lost, self.bought_again, self.unknown, self.wrong_outputs) == (0, 0, 0, 0)
        assert self.duplicates <= self.in_doubt
        assert self.billed_usd >= self.metered_usd
        assert not self.faults


def survive(victims: Victims, place: Place, job: Job, waits: Iterator[float], tally: Tally) -> None:
    """Run a job, killed and resumed, to its end, and enter what came of it."""
    recorded: set[str] = set()
    for kill in range(KILLS + 1):
        before = len(place.metered(job["run"]))
        job["kill_after_s"] = next(waits) if kill < KILLS else None
        how = victims.do(job)
        later = place.metered(job["run"])[before:]
        tally.bought_again += sum(entry["step"] in recorded for entry in later)
        if how != "killed":
            break
        tally.kills += 1
        recorded = place.recorded(job["run"])
        job["die_in_call"] = None
    audit(place, job, how, tally)


def audit(place: Place, job: Job, how: str, tally: Tally) -> None:
    run = job["run"]
    entries, lines = place.metered(run), place.lines(run)
    bought = Counter(entry["step"] for entry in entries)
    replied = Counter(step_of(line) for line, _ in lines if line.state == "reply")
    doubted = Counter(step_of(line) for line, in_doubt in lines if in_doubt)
    tally.runs += 1
    tally.provider_calls += len(entries)
    tally.duplicates += len(entries) - CALLS
    tally.in_doubt += doubted.total()
    tally.unknown += (bought - replied - doubted).total() if place.ledger else 0
    tally.metered_usd += sum(
        (entry["input_tokens"] + entry["output_tokens"]) * MICRO for entry in entries
    )
    if how != "ended" or not Path(job["result"]).exists():
        tally.lost += 1
        tally.faults.append(f"{run} {how}")
        return
    result = json.loads(Path(job["result"]).read_text())
    tally.billed_usd += Decimal(result["cost_usd"])
    outputs = {name: step["output"] for name, step in result["steps"].items()}
    right = expected(job)
    tally.wrong_outputs += sum(outputs.get(name) != text for name, text in right.items())
    tally.wrong_outputs += result["answer"] != right[f"s{CALLS - 1}"]
    if result["run_id"] != run:
        tally.faults.append(f"{run} ended as {result['run_id']}")
    if place.ledger is not None:
        check_bill(job, entries, lines, Decimal(result["cost_usd"]), tally)


def check_bill(
    job: Job, entries: list[Metered], lines: list[tuple[Line, bool]], billed: Decimal, tally: Tally
) -> None:
    """The run's bill is what was delivered, as the provider metered it, and what is in doubt."""
    delivered = {step_of(line): line.usd for line, _ in lines if line.state == "reply"}
    doubt = sum((line.usd for line, in_doubt in lines if in_doubt), Decimal(0))
    once = {e["step"]: (e["input_tokens"] + e["output_tokens"]) * MICRO for e in entries}
    if delivered != once:
        tally.faults.append(f"{job['run']}: delivered {delivered}, metered {once}")
    if billed != sum(delivered.values()) + doubt:
        tally.faults.append(f"{job['run']}: billed {billed}, {delivered} and {doubt} in doubt")


def storm(victims: Victims, place: Place, shape: str, runs: int, seed: int) -> Tally:
    """Runs one after the other, each killed at random instants."""
    tally, random = Tally(), Random(f"{shape} {seed}")
    for _ in range(2):  # the first waits until everything is imported
        began = time.monotonic()
        assert victims.do(place.job(shape)) == "ended"
    usual_s = time.monotonic() - began

    def waits() -> Iterator[float]:
        while True:
            yield random.uniform(0, 0.8 * usual_s)

    for number in range(runs):
        run = str(UUID(int=random.getrandbits(128), version=4))
        job = place.job(
            shape,
            run=run,
            world=("sync", "async")[number % 2],
            durability=("async", "sync", "exit")[number % 3],
        )
        survive(victims, place, job, waits(), tally)
    return tally


@pytest.mark.parametrize("shape", ["chain", "fan"])
@pytest.mark.parametrize("runs", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_run_ends_and_buys_nothing_again(
    victims: Victims, tmp_path: Path, figure: Figure, shape: str, runs: int
) -> None:
    place = on_sqlite(tmp_path)
    tally = storm(victims, place, shape, runs, seed=1)
    figure(f"kill -9, SQLite, {shape}", tally)
    tally.check(kills=runs // 2)
    Ledger(str(place.ledger)).close()
    left = {file.name for file in tmp_path.iterdir() if file.suffix != ".json"}
    assert {name for name in left if name.startswith("ledger")} == {"ledger.sqlite"}


@pytest.mark.parametrize("runs", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_and_buys_nothing_again_on_postgres(
    victims: Victims, tmp_path: Path, postgres_server: str, figure: Figure, runs: int
) -> None:
    for shape in ("chain", "fan"):
        place = on_postgres(tmp_path, postgres_server)
        tally = storm(victims, place, shape, runs // 2, seed=9)
        figure(f"kill -9, PostgreSQL, {shape}", tally)
        tally.check(kills=runs // 4)


@pytest.mark.parametrize("world", ["sync", "async"])
@pytest.mark.parametrize("shape", ["chain", "fan"])
def test_without_a_ledger_the_same_kill_buys_again_and_nobody_knows(
    victims: Victims, tmp_path: Path, figure: Figure, world: str, shape: str
) -> None:
    # Killed by its fifth step, between the provider's meter and the answer. LangGraph's checkpoints
    # may have the finished steps by then, or not yet; this one surely not.
    found = {}
    for ledger in (True, False):
        folder = tmp_path / str(ledger)
        folder.mkdir()
        place, tally = on_sqlite(folder, ledger=ledger), Tally()
        job = place.job(shape, world=world, durability="exit", die_in_call=5)
        survive(victims, place, job, iter([60.0] * KILLS), tally)
        figure(f"kill -9, {'ledger' if ledger else 'no ledger'}, {shape}, {world}", tally)
        assert (tally.kills, tally.lost, tally.wrong_outputs) == (1, 0, 0)
        found[ledger] = tally
    found[True].check(kills=1)
    assert found[True].duplicates <= CALLS - 2  # in flight: one step of a chain, up to six of a fan
    assert found[True].in_doubt >= found[True].duplicates >= 1
    assert found[False].duplicates > (found[True].duplicates if shape == "chain" else 0)
    assert found[False].billed_usd < found[False].metered_usd  # paid, and on no bill


def test_a_run_that_was_killed_before_its_first_checkpoint_is_begun_again_under_its_name(
    victims: Victims, tmp_path: Path
) -> None:
    place, tally = on_sqlite(tmp_path), Tally()
    job = place.job("chain", dies_for_checkpoint=True)
    assert victims.do(job) == "killed"
    recorded = place.recorded(job["run"])
    assert "plan" in recorded
    job["dies_for_checkpoint"], before = False, len(place.metered(job["run"]))
    how = victims.do(job)
    later = {entry["step"] for entry in place.metered(job["run"])[before:]}
    assert not recorded & later
    audit(place, job, how, tally)
    tally.check(kills=0)
    assert tally.duplicates == 0


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
@pytest.mark.parametrize("shape", ["chain", "fan"])
def test_two_who_resume_the_same_run_buy_no_call_twice(
    rivals: tuple[Victims, Victims],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    figure: Figure,
    database: str,
    shape: str,
) -> None:
    if database == "postgres":
        place = on_postgres(tmp_path, request.getfixturevalue("postgres_server"))
    else:
        place = on_sqlite(tmp_path)
    job = place.job(shape, die_in_call=2)
    assert rivals[0].do(job) == "killed"
    recorded, before = place.recorded(job["run"]), len(place.metered(job["run"]))
    job["die_in_call"] = None
    with ThreadPoolExecutor(2) as threads:
        ends = [threads.submit(each.do, job) for each in rivals]
        assert [end.result() for end in ends] == ["ended", "ended"]
    later = Counter(entry["step"] for entry in place.metered(job["run"])[before:])
    assert set(later.values()) == {1}
    assert not recorded & later.keys()
    tally = Tally()
    audit(place, job, "ended", tally)
    figure(f"kill -9 and two resumers, {database}, {shape}", tally)
    tally.check(kills=0)
