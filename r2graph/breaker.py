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


@dataclass
class _Breaker:
    """What one member's calls have come to."""

    in_a_row: int = 0
    recent: deque[tuple[float, bool]] = field(default_factory=deque)
    """When a call ended, and whether it failed; no older than the window."""
    rests: int = 0
    """How often in a row it opened."""
    closed_until: float = 0.0
    """When a probe may be sent; of use while `is_open`."""
    is_open: bool = False
    probing: bool = False


class Health:
    """Circuit breakers of a pool's members, and the retry budget that they share.

    A breaker opens at five failures in a row, or when more than half of at least ten calls within
    30 s failed, for 30 s times the number of openings in a row; then one call at a time probes it.
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

    def admit(self, member: str) -> bool:
        """Whether a call may be sent; after a yes comes `succeed`, `fail` or `withdraw`."""
        with self._lock:
            breaker = self._breaker(member)
            if breaker.is_open:
                if breaker.probing or self._clock() < breaker.closed_until:
                    return False
                breaker.probing = True
            self._decay()
            self._calls += 1
            return True

    def succeed(self, member: str) -> None:
        """The call was answered."""
        with self._lock:
            breaker = self._breaker(member)
            if breaker.is_open:  # what failed before the rest says nothing any more
                breaker.recent.clear()
            breaker.in_a_row = breaker.rests = 0
            breaker.is_open = breaker.probing = False
            self._record(breaker, failed=False)

    def fail(self, member: str) -> None:
        """The call failed through no fault of its own."""
        with self._lock:
            breaker = self._breaker(member)
            breaker.in_a_row += 1
            self._record(breaker, failed=True)
            probed, breaker.probing = breaker.probing, False
            if probed or (not breaker.is_open and self._is_failing(breaker)):
                self._open(member, breaker)

    def withdraw(self, member: str) -> None:
        """The call was not sent after all, or says nothing about the member."""
        with self._lock:
            self._breaker(member).probing = False

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
        now = self._clock()
        breaker.recent.append((now, failed))
        while breaker.recent[0][0] < now - WINDOW_S:
            breaker.recent.popleft()

    def _is_failing(self, breaker: _Breaker) -> bool:
        failed = sum(each for _, each in breaker.recent)
        return breaker.in_a_row >= FAILURES_IN_A_ROW or (
            len(breaker.recent) >= WINDOW_CALLS and failed > FAILED_SHARE * len(breaker.recent)
        )

    def _open(self, member: str, breaker: _Breaker) -> None:
        others = self._members - {member}
        if member in self._members and all(self._breakers[name].is_open for name in others):
            return
        breaker.is_open = True
        breaker.rests = min(breaker.rests + 1, MOST_RESTS)
        breaker.closed_until = self._clock() + REST_S * breaker.rests

    def _decay(self) -> None:
        now = self._clock()
        left = 0.5 ** ((now - self._counted) / WINDOW_S)
        self._calls *= left
        self._retries *= left
        self._counted = now
