"""How a pool is doing: which members are left alone for a while, and how many retries it bears."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

FAILURES_IN_A_ROW = 5
WINDOW_S = 30.0
WINDOW_CALLS = 10  # fewer say nothing about a share
FAILED_SHARE = 0.5
REST_S = 30.0  # the n-th time in a row that a breaker opens, n times as long
MOST_RESTS = 10
RETRY_SHARE = 0.3  # of the pool's calls of late
RETRY_BURST = 3  # whatever the share


@dataclass(frozen=True, slots=True)
class Pass:
    """Leave to send one call; `succeed`, `fail` or `withdraw` takes it back."""

    member: str
    number: int
    """Calls are numbered as they are sent."""
    is_probe: bool
    """Whether it is the call that a resting member is tried with."""


@dataclass
class _Breaker:
    """What one member's calls have come to."""

    sent: int = 0
    in_a_row: int = 0
    failing_from: int = 0
    """The number of the first call, as they were sent, that failed of those in a row."""
    recent: deque[tuple[float, bool]] = field(default_factory=deque)
    """When a call ended, and whether it failed; no older than the window."""
    failed: int = 0
    """Of the recent ones."""
    rests: int = 0
    """How often in a row it opened."""
    rests_until: float = 0.0
    """When a probe may be sent; of use while `is_open`."""
    is_open: bool = False
    probing: bool = False


class Health:
    """Circuit breakers of a pool's members, and the retry budget that they share.

    A breaker opens at five failures in a row, or when more than half of at least ten calls within
    30 s failed, for 30 s times the number of openings in a row; then one call at a time probes it.
    Errors arrive before answers do: an answer to what was sent after the failures began closes it.
    The last member whose breaker is closed keeps it closed: a pool always has someone to ask.
    Retries are bounded to 30 % of the pool's calls of late, so that they cannot make an outage
    worse. Safe to share between threads. `clock` counts seconds.
    """

    def __init__(
        self, members: tuple[str, ...], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._members = frozenset(members)
        self._clock = clock
        self._breakers: dict[str, _Breaker] = {name: _Breaker() for name in members}
        self._calls = self._retries = 0.0  # decayed, by half each window
        self._counted = clock()
        self._lock = Lock()

    def admit(self, member: str) -> Pass | None:
        """Leave to send a call; `None`: the member is left alone."""
        with self._lock:
            breaker = self._breaker(member)
            if breaker.is_open:
                if breaker.probing or self._clock() < breaker.rests_until:
                    return None
                breaker.probing = True
            breaker.sent += 1
            return Pass(member, breaker.sent, is_probe=breaker.is_open)

    def succeed(self, leave: Pass) -> None:
        """The call was answered."""
        with self._lock:
            breaker = self._breaker(leave.member)
            if leave.is_probe:  # what failed before the rest says nothing any more
                breaker.recent.clear()
                breaker.failed = 0
                breaker.is_open = breaker.probing = False
            self._record(breaker, failed=False)
            if breaker.is_open and leave.number < breaker.failing_from:
                return
            breaker.in_a_row = 0
            if not breaker.is_open:
                breaker.rests = 0
            elif not self._is_failing(breaker):
                breaker.is_open = breaker.probing = False
                breaker.rests -= 1

    def fail(self, leave: Pass) -> None:
        """The call failed through no fault of its own."""
        with self._lock:
            breaker = self._breaker(leave.member)
            if breaker.in_a_row == 0:
                breaker.failing_from = leave.number
            elif not breaker.is_open:
                breaker.failing_from = min(leave.number, breaker.failing_from)
            breaker.in_a_row += 1
            self._record(breaker, failed=True)
            if leave.is_probe:
                breaker.probing = False
            if leave.is_probe if breaker.is_open else self._is_failing(breaker):
                self._open(leave.member, breaker)

    def withdraw(self, leave: Pass) -> None:
        """The call was not sent after all, or says nothing about the member."""
        if leave.is_probe:
            with self._lock:
                self._breaker(leave.member).probing = False

    def is_open(self, member: str) -> bool:
        """Whether the member is being left alone."""
        with self._lock:
            return self._breaker(member).is_open

    def has_other(self, member: str) -> bool:
        """Whether another member than this one can be asked."""
        with self._lock:
            return any(not self._breakers[name].is_open for name in self._members - {member})

    def may_retry(self) -> bool:
        """Whether the pool bears another retry, which is then counted."""
        with self._lock:
            self._decay()
            if self._retries + 1 > RETRY_BURST + RETRY_SHARE * self._calls:
                return False
            self._retries += 1
            return True

    def _breaker(self, member: str) -> _Breaker:
        return self._breakers.setdefault(member, _Breaker())  # a router's modules are no members

    def _record(self, breaker: _Breaker, *, failed: bool) -> None:
        self._decay()
        self._calls += 1
        breaker.recent.append((self._counted, failed))
        breaker.failed += failed
        while breaker.recent[0][0] < self._counted - WINDOW_S:
            breaker.failed -= breaker.recent.popleft()[1]

    def _is_failing(self, breaker: _Breaker) -> bool:
        calls = len(breaker.recent)
        return breaker.in_a_row >= FAILURES_IN_A_ROW or (
            calls >= WINDOW_CALLS and breaker.failed > FAILED_SHARE * calls
        )

    def _open(self, member: str, breaker: _Breaker) -> None:
        others = self._members - {member}
        if member in self._members and all(self._breakers[name].is_open for name in others):
            return
        breaker.is_open = True
        breaker.rests = min(breaker.rests + 1, MOST_RESTS)
        breaker.rests_until = self._clock() + REST_S * breaker.rests

    def _decay(self) -> None:
        now = self._clock()
        left = 0.5 ** ((now - self._counted) / WINDOW_S)
        self._calls *= left
        self._retries *= left
        self._counted = now
