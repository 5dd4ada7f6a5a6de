"""A closed system of users, replicas, a ledger's database and models, as discrete events.

Pure: the same `System` gives the same `Outcome`. A process is a generator that yields what it waits
for: seconds, a place at a `Station`, or a `Gate`. `benchmarks.capacity` measures what goes in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from statistics import NormalDist
from typing import Any, NamedTuple

Process = Generator[Any, None, None]


class Clock:
    """Time, and what happens next; what happens at the same time happens in the order of asking."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Process]] = []
        self._order = count()

    def start(self, process: Process, after_s: float = 0.0) -> None:
        heappush(self._events, (self.now + after_s, next(self._order), process))

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._events:
            self.now, _, process = heappop(self._events)
            for wanted in process:
                if isinstance(wanted, float):
                    self.start(process, wanted)
                    break
                if not wanted.admit(process):
                    break


class Station:
    """So many places, first come, first served. Who yields it holds a place until `leave`."""

    def __init__(self, clock: Clock, places: float) -> None:
        self.clock = clock
        self.places = places
        self.held = 0
        self.busy_s = 0.0
        """Of all places together, from the beginning."""
        self.queue: deque[Process] = deque()
        self._since = 0.0

    def admit(self, process: Process) -> bool:
        if self.held >= self.places:
            self.queue.append(process)
            return False
        self._hold(1)
        return True

    def leave(self) -> None:
        if self.queue:
            self.clock.start(self.queue.popleft())
        else:
            self._hold(-1)

    def use(self, seconds: float) -> Process:
        yield self
        yield seconds
        self.leave()

    def _hold(self, more: int) -> None:
        self.busy_s += self.held * (self.clock.now - self._since)
        self._since = self.clock.now
        self.held += more


class First:
    """The same places for who goes before the queue: a thread gets the interpreter sooner."""

    def __init__(self, station: Station) -> None:
        self._station = station

    def admit(self, process: Process) -> bool:
        if self._station.held >= self._station.places:
            self._station.queue.appendleft(process)
            return False
        return self._station.admit(process)

    def use(self, seconds: float) -> Process:
        yield self
        yield seconds
        self._station.leave()


class Gate:
    """Closed until so many have come; who comes before it opens waits."""

    def __init__(self, clock: Clock, awaited: int = 1) -> None:
        self._clock = clock
        self._awaited = awaited
        self._waiting: list[Process] = []

    def admit(self, process: Process) -> bool:
        if self._awaited > 0:
            self._waiting.append(process)
        return self._awaited <= 0

    def come(self) -> None:
        self._awaited -= 1
        if self._awaited == 0:
            for process in self._waiting:
                self._clock.start(process)


class Step(NamedTuple):
    """A step of a run: what it needs, and whom it asks one after the other."""

    needs: tuple[int, ...]
    """Places of earlier steps in the plan."""
    asked: tuple[int, ...]
    """Slots, from 1 for the cheapest; 0 is the router, asked again once operands are known."""


class Shape(NamedTuple):
    """The calls of a run: so many of the router, then the steps as their needs allow."""

    before: int
    steps: tuple[Step, ...]

    @property
    def calls(self) -> int:
        return self.before + sum(len(step.asked) for step in self.steps)


@dataclass(frozen=True)
class Latency:
    """Lognormal."""

    median_s: float
    p99_s: float

    def draw(self, random: Random) -> float:
        if self.median_s <= 0:
            return 0.0
        sigma = math.log(self.p99_s / self.median_s) / NormalDist().inv_cdf(0.99)
        return self.median_s * math.exp(sigma * random.gauss())


@dataclass(frozen=True)
class Service:
    """CPU and database seconds of a run; all but these are waiting."""

    run_s: float
    """CPU of a replica for a run without its calls."""
    call_s: float
    """CPU of a replica for each call, without the ledger."""
    written_s: float = 0.0
    """CPU of a replica for a transaction of the ledger, before it locks the row of its budget."""
    held_s: float = 0.0
    """CPU of a replica while it has the lock."""
    trips_s: float = 0.0
    """Network of a transaction before the lock."""
    row_s: float = 0.0
    """Network and disk while the row is locked."""
    database_s: float = 0.0
    """CPU of the database for a transaction."""
    reads: int = 0
    writes: int = 0
    """Transactions of a call: those before it that lock no row, and those that do."""


@dataclass(frozen=True)
class System:
    """A replica is a process on a core. With endless `replicas` nobody waits for a row either."""

    users: int
    replicas: float
    service: Service
    shapes: Sequence[Shape]
    latency: Sequence[Latency]
    """Of the router, then of each slot."""
    think_s: float = 0.0
    """Mean of an exponential distribution."""
    database_cores: float = math.inf
    scopes: int = 1
    """Rows of budgets, over which runs are spread."""
    writers: int = 4
    """Threads of a replica that write to the ledger."""
    speed: float = 1.0
    """The share of a core that a replica gets."""
    seconds: float = 240.0
    """No run begins after that, nor after `runs` of them."""
    runs: float = math.inf
    warm_up_s: float = 60.0
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """What a system did. `responses_s` are of the runs that began after the warm-up, sorted."""

    responses_s: list[float]
    throughput: float
    """Runs a second that ended between warm-up and end."""
    replica_load: float
    database_load: float
    row_load: float
    """Shares of the time, from the first run to the last."""
    lasted_s: float
    in_flight_s: float
    """The integral over time of the number of runs in flight."""
    all_responses_s: list[float]

    def quantile(self, share: float) -> float:
        return self.responses_s[min(int(share * len(self.responses_s)), len(self.responses_s) - 1)]


class _Replica:
    def __init__(self, clock: Clock, system: System, cores: float) -> None:
        self.core = Station(clock, cores)
        self.writers = Station(clock, system.writers * cores)
        self.runs = 0


@dataclass
class _World:
    """The stations of a system, and what has happened so far."""

    system: System
    clock: Clock = field(default_factory=Clock)
    begun: int = 0
    ended: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        each = math.isfinite(self.system.replicas)
        replicas = int(self.system.replicas) if each else 1
        cores = 1 if each else math.inf
        self.replicas = [_Replica(self.clock, self.system, cores) for _ in range(replicas)]
        self.database = Station(self.clock, self.system.database_cores)
        self.rows = [Station(self.clock, cores) for _ in range(self.system.scopes)]
        self.flight = Station(self.clock, math.inf)

    def user(self, number: int) -> Process:
        """Thinks, asks, waits for the answer, and again. What is drawn hangs on user and turn."""
        system, clock = self.system, self.clock
        for turn in count():
            random = Random(f"{system.seed} {number} {turn}")
            yield random.expovariate(1 / system.think_s) if system.think_s else 0.0
            began = clock.now
            if began >= system.seconds or self.begun >= system.runs:
                return
            self.begun += 1
            replica = min(self.replicas, key=lambda each: each.runs)
            replica.runs += 1
            yield self.flight
            yield from self._run(random, replica, self.rows[number % len(self.rows)])
            self.flight.leave()
            replica.runs -= 1
            self.ended.append((began, clock.now))

    def _run(self, random: Random, replica: _Replica, row: Station) -> Process:
        """Half of what a run costs comes before its calls, half after them."""
        system, clock = self.system, self.clock
        half = system.service.run_s / 2 / system.speed
        shape = random.choice(system.shapes)
        yield from replica.core.use(half)
        for _ in range(shape.before):
            yield from self._call(0, random, replica, row)
        done = [Gate(clock) for _ in shape.steps]
        over = Gate(clock, len(shape.steps))

        def step(number: int, draws: Random) -> Process:
            for need in shape.steps[number].needs:
                yield done[need]
            for slot in shape.steps[number].asked:
                yield from self._call(slot, draws, replica, row)
            done[number].come()
            over.come()

        for number in range(len(shape.steps)):
            clock.start(step(number, Random(random.getrandbits(64))))
        yield over
        yield from replica.core.use(half)

    def _call(self, slot: int, random: Random, replica: _Replica, row: Station) -> Process:
        service, latency_s = self.system.service, self.system.latency[slot].draw(random)
        half = service.call_s / 2 / self.system.speed
        yield from replica.core.use(half)
        for lock in [None] * service.reads + [row] * (service.writes - 1):
            yield from self._transaction(replica, lock)
        yield latency_s
        if service.writes:  # the reply, once it is there
            yield from self._transaction(replica, row)
        yield from replica.core.use(half)

    def _transaction(self, replica: _Replica, row: Station | None) -> Process:
        """On one of the replica's threads, which wants the core again before it can commit.

        So a busy replica holds the row for longer.
        """
        service, thread, speed = self.system.service, First(replica.core), self.system.speed
        yield replica.writers
        yield from thread.use(service.written_s / speed)
        yield service.trips_s
        yield from self.database.use(service.database_s)
        if row is not None:
            yield row
            yield service.row_s
        yield from thread.use(service.held_s / speed)
        if row is not None:
            row.leave()
        replica.writers.leave()


def simulate(system: System) -> Outcome:
    """Let all users think and ask for `system.seconds`, and wait for their last answers."""
    world = _World(system)
    for number in range(system.users):
        world.clock.start(world.user(number))
    world.clock.run()
    return _outcome(world)


def _outcome(world: _World) -> Outcome:
    system, lasted_s = world.system, world.clock.now
    counted = [(began, end) for began, end in world.ended if began >= system.warm_up_s]
    ended = sum(system.warm_up_s <= end < system.seconds for _, end in world.ended)

    def load(stations: Sequence[Station]) -> float:
        return sum(each.busy_s / each.places for each in stations) / len(stations) / lasted_s

    return Outcome(
        responses_s=sorted(end - began for began, end in counted),
        throughput=ended / (system.seconds - system.warm_up_s),
        replica_load=load([each.core for each in world.replicas]),
        database_load=load([world.database]),
        row_load=load(world.rows),
        lasted_s=lasted_s,
        in_flight_s=world.flight.busy_s,
        all_responses_s=[end - began for began, end in world.ended],
    )
