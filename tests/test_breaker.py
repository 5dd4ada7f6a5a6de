"""Health: members that fail are left alone for a while, and an outage is not made worse."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest

from r2graph.breaker import (
    FAILURES_IN_A_ROW,
    MOST_RESTS,
    REST_S,
    RETRY_BURST,
    RETRY_SHARE,
    SHARE_S,
    WINDOW_S,
    Health,
    Pass,
)
from r2graph.errors import LedgerError
from r2graph.ledger import Ledger
from r2graph.pool import ModelPool
from tests.fakes import ProviderError, echo, pool_of, scripted
from tests.postgres import new_schema, postgres_server
from tests.serving import graph_of

__all__ = ["postgres_server"]  # a fixture


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


# Processes that share a ledger


class Replica:
    """What one process knows of the members, and its ledger."""

    def __init__(self, source: str | Path, members: tuple[str, ...] = ("a", "b", "c")) -> None:
        self.ledger = Ledger(source)
        self.clock = Clock()
        self.health = Health(members, self.clock)

    def share(self) -> None:
        self.ledger.share(self.health)

    def open(self, *members: str) -> bool:
        return all(self.health.is_open(member) for member in members)


@pytest.fixture(params=["sqlite", "postgres"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "ledger.sqlite")
    server: str = request.getfixturevalue("postgres_server")
    return new_schema(server)


@pytest.fixture
def replicas(source: str) -> Iterator[tuple[Replica, Replica]]:
    pair = Replica(source), Replica(source)
    yield pair
    for each in pair:
        each.ledger.close()


def test_what_one_process_finds_down_another_leaves_alone_as_long(
    replicas: tuple[Replica, Replica],
) -> None:
    one, other = replicas
    opened(one.health)
    assert not other.open("a")
    one.share()
    other.share()
    assert other.health.admit("a") is None
    assert not other.open("b")
    other.clock.now += REST_S - 1
    assert other.health.admit("a") is None
    other.clock.now += 2
    assert leave(other.health).is_probe


def test_an_answer_to_any_process_ends_the_rest_for_all(
    replicas: tuple[Replica, Replica],
) -> None:
    one, other = replicas
    opened(one.health)
    one.share()
    other.share()
    other.clock.now += REST_S + 1
    other.health.succeed(leave(other.health))
    other.share()
    assert one.open("a")
    one.share()
    assert not one.open("a")
    end(one.health, [False] * (FAILURES_IN_A_ROW - 1))
    assert not one.open("a")  # what failed before the rest is forgotten


def test_a_failed_probe_of_one_makes_the_rest_of_all_longer(
    replicas: tuple[Replica, Replica],
) -> None:
    one, other = replicas
    opened(one.health)
    one.share()
    other.share()
    for each in replicas:
        each.clock.now += REST_S + 1
    one.health.fail(leave(one.health))
    one.share()
    other.share()
    assert other.health.admit("a") is None
    other.clock.now += REST_S + 5
    assert other.health.admit("a") is None
    other.clock.now += REST_S
    other.health.fail(leave(other.health))
    other.clock.now += 3 * REST_S - 1
    assert other.health.admit("a") is None  # it goes on counting where the first one was


@pytest.mark.parametrize("ended", [Health.withdraw, Health.fail, Health.succeed])
def test_a_probe_that_others_made_needless_does_not_speak_for_the_next(
    replicas: tuple[Replica, Replica], ended: Callable[[Health, Pass], None]
) -> None:
    one, other = replicas
    opened(one.health)
    one.share()
    other.share()
    for each in replicas:
        each.clock.now += REST_S + 1
    first = leave(one.health)
    other.health.succeed(leave(other.health))
    other.share()
    one.share()
    assert not one.open("a")
    opened(one.health)
    one.clock.now += REST_S + 1
    second = leave(one.health)
    assert second.is_probe
    ended(one.health, first)
    assert one.open("a")
    assert one.health.admit("a") is None  # the second is still on its way
    one.health.fail(second)
    one.clock.now += 2 * REST_S - 1
    assert one.health.admit("a") is None
    one.clock.now += 2
    assert leave(one.health).is_probe  # the rest of a second time


def test_the_rest_of_a_process_that_died_ends_by_itself(source: str) -> None:
    one = Replica(source)
    opened(one.health)
    one.share()
    one.ledger.close()
    other = Replica(source)
    other.share()
    assert other.open("a")
    other.clock.now += REST_S + 1
    assert leave(other.health).is_probe
    other.ledger.close()


def test_the_last_healthy_member_is_left_alone_on_nobody_s_word(source: str) -> None:
    one, other = Replica(source), Replica(source, ("a", "b"))
    opened(one.health, "a")
    opened(one.health, "b")
    one.share()
    other.share()
    assert other.open("a")
    assert not other.open("b")
    for each in one, other:
        each.ledger.close()


def test_a_process_that_gets_answers_believes_them_and_not_others(
    replicas: tuple[Replica, Replica],
) -> None:
    one, other = replicas
    opened(one.health)  # its key is wrong, perhaps
    one.share()
    other.clock.now += 0.5
    other.health.succeed(leave(other.health))
    other.share()
    assert not other.open("a")
    opened(other.health)  # it goes by what it finds itself
    assert other.open("a")


def test_calls_on_their_way_when_another_found_a_member_down_do_not_speak_for_it(
    replicas: tuple[Replica, Replica],
) -> None:
    one, other = replicas
    sent = leave(other.health)
    opened(one.health)
    one.share()
    other.share()
    other.health.succeed(sent)
    assert other.open("a")


def test_what_is_found_while_others_are_told_is_told_the_next_time(
    replicas: tuple[Replica, Replica],
) -> None:
    one, other = replicas
    before = one.health.findings()
    opened(one.health)
    one.share()
    one.health.adopt(before, {})  # an exchange that began earlier and ends later
    assert one.open("a")
    one.clock.now += REST_S + 1
    before = one.health.findings()
    one.health.succeed(leave(one.health))
    one.health.adopt(before, {})
    other.share()
    assert other.open("a")
    one.share()
    other.share()
    assert not other.open("a")


def test_an_exchange_is_due_once_a_second_and_at_once_after_a_finding(
    health: Health, clock: Clock
) -> None:
    assert [health.is_due(), health.is_due()] == [True, False]
    clock.now += SHARE_S
    assert [health.is_due(), health.is_due()] == [True, False]
    opened(health)
    assert [health.is_due(), health.is_due()] == [True, False]
    clock.now += REST_S
    health.is_due()
    health.succeed(leave(health))
    assert [health.is_due(), health.is_due()] == [True, False]
    assert not Health(()).is_due()  # there is nobody to speak of


def test_an_exchange_that_fails_is_made_up_for(tmp_path: Path) -> None:
    one, other = Replica(tmp_path / "ledger"), Replica(tmp_path / "ledger")
    opened(one.health)
    broken = Ledger(tmp_path / "ledger")
    broken.close()
    broken.share(one.health)
    with pytest.raises(LedgerError):
        broken.lines()
    assert one.open("a")
    one.share()
    other.share()
    assert other.open("a")
    for each in one, other:
        each.ledger.close()


def test_a_ledger_from_before_there_were_rests_gets_them(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger").close()
    with closing(sqlite3.connect(tmp_path / "ledger")) as file:
        file.execute("DROP TABLE r2graph_rests")
    one, other = Replica(tmp_path / "ledger"), Replica(tmp_path / "ledger")
    opened(one.health)
    one.share()
    other.share()
    assert other.open("a")
    for each in one, other:
        each.ledger.close()


def test_members_are_known_by_pool_name_and_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(name: str = "mine", url: str = "http://gpu:8000/v1", model: str = "m") -> set[str]:
        price = {"input_per_mtok": 1, "output_per_mtok": 1}
        kwargs = {"base_url": url}
        members = [
            {"name": each, "model": f"openai:{model}", "model_kwargs": kwargs, "price": price}
            for each in ("a", "b")
        ]
        pool = ModelPool.model_validate({"name": name, "members": members})
        return set(Health.of(pool).names.values())

    assert names() == names()
    others = [names("yours"), names(url="http://gpu:8001/v1"), names(model="n")]
    local = names(url="http://127.0.0.1:8000/v1")
    assert all(not names() & each for each in [*others, local])
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    assert names() == names()
    assert not local & names(url="http://127.0.0.1:8000/v1")  # it is another machine's
    assert len(Health.of(pool_of(echo(), scripted("a"))).names) == 2


@pytest.mark.parametrize("sharing", [True, False])
def test_graphs_tell_each_other_with_the_call_that_opens_a_breaker(
    sharing: bool, tmp_path: Path
) -> None:
    down, up = scripted(ProviderError(401)), echo()
    with Ledger(tmp_path / "one") as first, Ledger(tmp_path / ("one" if sharing else "b")) as other:
        for ledger in (first, other):
            graph = graph_of(pool_of(down, up), "s1: one", ledger=ledger)
            before = len(down.calls)
            for _ in range(FAILURES_IN_A_ROW):
                assert graph.invoke({"query": "q"})["steps"]["s1"]["member"] == "m2"
            again = 0 if sharing and ledger is other else FAILURES_IN_A_ROW
            assert len(down.calls) - before == again
