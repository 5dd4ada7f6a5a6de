"""Health: members that fail are left alone for a while, and an outage is not made worse."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from r2graph.breaker import (
    FAILURES_IN_A_ROW,
    MOST_RESTS,
    REST_S,
    RETRY_BURST,
    RETRY_SHARE,
    WINDOW_S,
    Health,
    Pass,
)


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(("a", "b", "c"), clock)


def leave(health: Health, member: str = "a") -> Pass:
    given = health.admit(member)
    assert given is not None
    return given


def end(health: Health, outcomes: Iterable[bool], member: str = "a") -> None:
    """Calls one after the other, each of which succeeds or does not."""
    for succeeds in outcomes:
        sent = leave(health, member)
        health.succeed(sent) if succeeds else health.fail(sent)


def opened(health: Health, member: str = "a") -> None:
    end(health, [False] * FAILURES_IN_A_ROW, member)
    assert health.is_open(member)


def test_a_member_is_left_alone_after_five_failures_in_a_row(health: Health) -> None:
    end(health, [False] * 4)
    assert not health.is_open("a")
    end(health, [False])
    assert health.is_open("a")
    assert health.admit("a") is None
    assert not health.is_open("b")
    assert health.admit("b")


def test_a_success_starts_the_count_anew(health: Health) -> None:
    end(health, [False] * 4 + [True] + [False] * 4)
    assert not health.is_open("a")


def test_a_member_is_left_alone_when_more_than_half_of_ten_calls_fail(health: Health) -> None:
    end(health, [False, True] * 5)
    assert not health.is_open("a")
    end(health, [False])  # 6 of 11
    assert health.is_open("a")


def test_fewer_than_ten_calls_say_nothing_about_a_share(health: Health) -> None:
    end(health, [False, False, False, True, False, False, False, True, False])  # 7 of 9
    assert not health.is_open("a")
    end(health, [False])
    assert health.is_open("a")


def test_what_is_older_than_the_window_does_not_count(health: Health, clock: Clock) -> None:
    end(health, [False, True, False, True, False, True, False, False])
    clock.now += WINDOW_S + 1
    end(health, [True, False, False])  # with the older ones 7 of 11 had failed
    assert not health.is_open("a")


def test_what_is_remembered_is_no_older_than_the_window(health: Health, clock: Clock) -> None:
    for _ in range(1_000):
        end(health, [True, True, False])
        clock.now += 1.0
    recent = health._breakers["a"].recent
    assert len(recent) <= 3 * (WINDOW_S + 1)
    assert health._breakers["a"].failed == sum(failed for _, failed in recent)


def test_one_call_at_a_time_probes_a_member_that_has_rested(health: Health, clock: Clock) -> None:
    opened(health)
    clock.now += REST_S - 0.1
    assert health.admit("a") is None
    clock.now += 0.1
    probe = leave(health)
    assert probe.is_probe
    assert health.admit("a") is None
    health.succeed(probe)
    assert not health.is_open("a")
    assert leave(health)
    assert leave(health)


def test_each_failed_probe_makes_the_rest_longer(health: Health, clock: Clock) -> None:
    opened(health)
    for rests in range(1, MOST_RESTS + 3):
        rest_s = REST_S * min(rests, MOST_RESTS)
        clock.now += rest_s - 0.1
        assert health.admit("a") is None
        clock.now += 0.2
        health.fail(leave(health))
        assert health.is_open("a")


def test_after_a_good_probe_the_rests_are_short_again(health: Health, clock: Clock) -> None:
    opened(health)
    clock.now += REST_S
    health.fail(leave(health))
    clock.now += 2 * REST_S
    health.succeed(leave(health))
    opened(health)
    clock.now += REST_S
    assert health.admit("a")


def test_a_good_probe_makes_up_for_what_failed_before(health: Health, clock: Clock) -> None:
    opened(health)
    clock.now += REST_S  # the failures are still in the window
    health.succeed(leave(health))
    end(health, [True, False] * 5)
    assert not health.is_open("a")


def test_a_probe_that_was_not_sent_leaves_its_place_to_the_next(
    health: Health, clock: Clock
) -> None:
    opened(health)
    clock.now += REST_S
    health.withdraw(leave(health))
    assert health.is_open("a")
    assert leave(health).is_probe


def test_calls_sent_before_it_opened_do_not_speak_for_the_probe(
    health: Health, clock: Clock
) -> None:
    failing, answered, cancelled = leave(health), leave(health), leave(health)
    opened(health)
    clock.now += REST_S
    probe = leave(health)
    health.fail(failing)
    health.succeed(answered)
    health.withdraw(cancelled)
    assert health.is_open("a")
    assert health.admit("a") is None  # the probe is still on its way
    health.succeed(probe)
    assert not health.is_open("a")


def test_errors_that_arrive_before_the_answers_of_the_same_burst_do_not_count_for_more(
    health: Health, clock: Clock
) -> None:
    burst = [leave(health) for _ in range(60)]
    for sent in burst[::6]:
        health.fail(sent)
    assert health.is_open("a")
    health.succeed(burst[1])
    assert health.is_open("a")  # ten of eleven have failed so far
    for sent in burst[7:12]:
        health.succeed(sent)
    assert health.is_open("a")
    for sent in burst[13:18]:
        health.succeed(sent)
    assert not health.is_open("a")
    clock.now += WINDOW_S + 1
    opened(health)
    clock.now += REST_S  # the rest of a first time
    assert health.admit("a")


def test_late_failures_of_an_open_member_do_not_lengthen_its_rest(
    health: Health, clock: Clock
) -> None:
    sent = [leave(health) for _ in range(100)]
    for each in sent:
        clock.now += 0.1
        health.fail(each)
    clock.now += REST_S - 9.5
    assert health.admit("a")


def test_the_last_healthy_member_is_never_left_alone(health: Health) -> None:
    opened(health, "a")
    opened(health, "b")
    end(health, [False] * 20, "c")
    assert [health.is_open(member) for member in ("a", "b", "c")] == [True, True, False]
    assert not health.has_other("c")
    assert health.has_other("a")


def test_once_another_has_recovered_the_last_one_may_rest_too(health: Health, clock: Clock) -> None:
    opened(health, "a")
    opened(health, "b")
    end(health, [False] * 20, "c")
    clock.now += REST_S
    health.succeed(leave(health, "a"))
    end(health, [False], "c")
    assert health.is_open("c")


def test_a_pool_of_one_has_always_someone_to_ask() -> None:
    health = Health(("a",))
    end(health, [False] * 1_000)
    assert health.admit("a")
    assert not health.has_other("a")


def test_a_model_outside_of_the_pool_rests_too_and_is_no_other(clock: Clock) -> None:
    health = Health(("a",), clock)
    opened(health, "planner")
    end(health, [False] * 20)
    assert not health.is_open("a")
    assert not health.has_other("a")


def test_retries_are_a_share_of_the_calls(health: Health) -> None:
    end(health, [True] * 100)
    granted = sum(health.may_retry() for _ in range(1_000))
    assert granted == RETRY_BURST + RETRY_SHARE * 100


def test_a_few_retries_are_always_allowed() -> None:
    health = Health(("a",))
    assert sum(health.may_retry() for _ in range(100)) == RETRY_BURST


def test_retries_of_long_ago_leave_room_for_new_ones(health: Health, clock: Clock) -> None:
    while health.may_retry():
        pass
    clock.now += 20 * WINDOW_S
    assert sum(health.may_retry() for _ in range(100)) == RETRY_BURST - 1  # a millionth is left


def test_calls_that_were_not_sent_earn_no_retries(health: Health) -> None:
    for _ in range(1_000):
        health.withdraw(leave(health))
    assert sum(health.may_retry() for _ in range(1_000)) == RETRY_BURST


def test_threads_together_send_one_probe(health: Health, clock: Clock) -> None:
    opened(health)
    clock.now += REST_S
    start = Barrier(8)

    def probe(_: int) -> bool:
        start.wait()
        return health.admit("a") is not None

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(probe, range(8))) == 1


def test_threads_together_keep_to_the_share_of_retries(health: Health) -> None:
    end(health, [True] * 100)
    with ThreadPoolExecutor(8) as threads:
        granted = sum(threads.map(lambda _: health.may_retry(), range(1_000)))
    assert granted == RETRY_BURST + RETRY_SHARE * 100


def test_threads_together_open_a_breaker_once(health: Health, clock: Clock) -> None:
    sent = [leave(health) for _ in range(400)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(health.fail, sent))
    assert health._breakers["a"].in_a_row == 400
    clock.now += REST_S
    assert health.admit("a")
