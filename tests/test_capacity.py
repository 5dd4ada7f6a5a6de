"""The simulator of `benchmarks.capacity` keeps to what is known of queues."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from statistics import mean

import pytest

from benchmarks.simulation import (
    Clock,
    Latency,
    Process,
    Service,
    Shape,
    Station,
    Step,
    System,
    simulate,
)

INSTANT = Latency(0.0, 0.0)
ONE_STEP = Shape(0, (Step((), (1,)),))
DIAMOND = Shape(1, (Step((), (1,)), Step((), (1, 2)), Step((0, 1), (2,))))
BOOKS = Service(
    0.004, 0.002, written_s=0.0002, held_s=0.0001, row_s=0.002, database_s=0.0005, reads=1, writes=2
)
SYSTEM = System(
    users=20,
    replicas=1,
    service=Service(run_s=0.02, call_s=0.005),
    shapes=(DIAMOND,),
    latency=(INSTANT, INSTANT, INSTANT),
    seconds=100.0,
    warm_up_s=10.0,
)


def mean_wait(service_s: Callable[[Random], float], customers: int = 60_000) -> float:
    """Of a queue with one place, to which 0.8 customers a second come independently."""
    clock, random, waits = Clock(), Random(3), []
    station = Station(clock, 1)

    def customer() -> Process:
        came = clock.now
        yield station
        waits.append(clock.now - came)
        yield service_s(random)
        station.leave()

    def arrivals() -> Process:
        for _ in range(customers):
            yield random.expovariate(0.8)
            clock.start(customer())

    clock.start(arrivals())
    clock.run()
    return mean(waits)


def test_a_queue_with_exponential_service_waits_as_in_theory() -> None:
    assert mean_wait(lambda random: random.expovariate(1)) == pytest.approx(4.0, rel=0.1)  # M/M/1


def test_a_queue_with_constant_service_waits_half_as_long() -> None:
    assert mean_wait(lambda _: 1.0) == pytest.approx(2.0, rel=0.1)  # M/D/1


def test_a_busy_replica_makes_as_many_runs_as_its_core_can() -> None:
    outcome = simulate(SYSTEM)
    assert outcome.throughput == pytest.approx(1 / (0.02 + DIAMOND.calls * 0.005), rel=0.01)
    assert outcome.replica_load == pytest.approx(1.0, abs=0.01)


def test_throughput_stays_below_the_bounds_of_a_closed_system() -> None:
    latency = Latency(0.3, 1.0)
    for users in (1, 5, 50):
        system = replace(SYSTEM, users=users, think_s=1.0, latency=(latency,) * 3)
        outcome = simulate(system)
        cpu_s = 0.02 + DIAMOND.calls * 0.005
        assert outcome.throughput <= 1.01 / cpu_s
        assert outcome.throughput <= users / (1.0 + 3 * cpu_s / 5) * 1.05


def test_nobody_answers_before_all_that_a_run_takes() -> None:
    latency = Latency(0.2, 0.2)  # constant
    system = replace(SYSTEM, users=3, think_s=0.5, latency=(latency,) * 3)
    # One call to plan, two on the longer way through the first steps, one for the last.
    assert min(simulate(system).all_responses_s) >= 4 * 0.2 + 0.02 + 4 * 0.005


def test_little_s_law_holds_exactly() -> None:
    latency = Latency(0.3, 2.0)
    outcome = simulate(replace(SYSTEM, service=BOOKS, think_s=1.0, latency=(latency,) * 3))
    assert outcome.in_flight_s == pytest.approx(sum(outcome.all_responses_s), rel=1e-9)


def test_the_row_of_a_budget_bounds_all_replicas_together() -> None:
    system = replace(SYSTEM, users=60, replicas=20, service=BOOKS, shapes=(ONE_STEP,))
    system = replace(system, seconds=6.0, warm_up_s=1.0)
    one, many = simulate(system), simulate(replace(system, scopes=20))
    assert one.throughput == pytest.approx(1 / (2 * (0.002 + 0.0001)), rel=0.03)
    assert one.row_load > 0.9
    assert many.throughput > 5 * one.throughput


def test_with_endless_machines_only_service_and_latency_are_left() -> None:
    latency = Latency(0.2, 0.2)
    endless = replace(SYSTEM, replicas=math.inf, users=100, latency=(latency,) * 3, service=BOOKS)
    outcome = simulate(replace(endless, think_s=1.0, seconds=20.0))
    assert outcome.responses_s[0] == pytest.approx(outcome.responses_s[-1])
    assert outcome.replica_load == 0


def test_the_same_system_has_the_same_outcome() -> None:
    system = replace(SYSTEM, think_s=1.0, latency=(Latency(0.3, 1.0),) * 3, seconds=30.0)
    assert simulate(system) == simulate(system)
    assert simulate(system) != simulate(replace(system, seed=2))
