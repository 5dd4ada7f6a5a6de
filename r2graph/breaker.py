"""How a pool is doing: which members are left alone for a while, and how many retries it bears."""

from __future__ import annotations

import json
import platform
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import ip_address
from threading import Lock
from typing import Self
from urllib.parse import urlsplit

from r2graph.pool import ModelPool, ModelSpec

FAILURES_IN_A_ROW = 5
WINDOW_S = 30.0
WINDOW_CALLS = 10  # fewer say nothing about a share
FAILED_SHARE = 0.5
REST_S = 30.0  # the n-th time in a row that a breaker opens, n times as long
MOST_RESTS = 10
RETRY_SHARE = 0.3  # of the pool's calls of late
RETRY_BURST = 3  # whatever the share
SHARE_S = 1.0  # between two looks at what other processes have found


@dataclass(frozen=True, slots=True)
class Pass:
    """Leave to send one call; `succeed`, `fail` or `withdraw` takes it back."""

    member: str
    number: int
    """Calls are numbered as they are sent."""
    is_probe: bool
    """Whether it is the call that a resting member is tried with."""


@dataclass(frozen=True, slots=True)
class Rest:
    """A member that is left alone, as processes tell each other."""

    left_s: float
    """Until it may be probed."""
    rests: int
    """How often in a row it was found to be down."""
    age_s: float = 0.0
    """Since it was found so."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What this process knows of a member."""

    number: int
    """How often it has opened or closed the member's breaker by itself."""
    is_new: bool
    """Whether others do not know it yet."""
    rest: Rest | None


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
    probe: int | None = None
    """The number of the call that it is being tried with. An earlier probe, sent before another
    process closed the breaker, is a call like others.
    """
    answered: float = float("-inf")
    """When the last answer came that counts."""
    changes: int = 0
    """How often this process opened or closed it."""
    told: int = 0
    """The last of the changes that others know of."""


class Health:
    """Circuit breakers of a pool's members, and the retry budget that they share.

    A breaker opens at five failures in a row, or when more than half of at least ten calls within
    30 s failed, for 30 s times the number of openings in a row; then one call at a time probes it.
    Errors arrive before answers do: an answer to what was sent after the failures began closes it.
    The last member whose breaker is closed keeps it closed: a pool always has someone to ask.
    Retries are bounded to 30 % of the pool's calls of late, so that they cannot make an outage
    worse. Safe to share between threads. `clock` counts seconds.

    Processes with a common ledger exchange what they find (`r2graph/ledger/rests.py`): a member
    that failed one of them is left alone by all, but by those whom it has answered since; the first
    answer to a probe ends its rest for all.
    """

    def __init__(
        self,
        members: tuple[str, ...],
        clock: Callable[[], float] = time.monotonic,
        *,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.names = names or {name: name for name in members}
        """What other processes know the members by."""
        self._members = members
        self._clock = clock
        self._share_at = clock()
        self._breakers: dict[str, _Breaker] = {name: _Breaker() for name in members}
        self._calls = self._retries = 0.0  # decayed, by half each window
        self._counted = clock()
        self._lock = Lock()

    @classmethod
    def of(cls, pool: ModelPool) -> Self:
        """The health of a pool, with names that mean the same member in any process."""
        names = {spec.name: _shared_name(pool.name, spec) for spec in pool.members}
        return cls(pool.names, names=names)

    def admit(self, member: str) -> Pass | None:
        """Leave to send a call; `None`: the member is left alone."""
        with self._lock:
            breaker = self._breaker(member)
            if breaker.is_open:
                if breaker.probe is not None or self._clock() < breaker.rests_until:
                    return None
                breaker.probe = breaker.sent + 1
            breaker.sent += 1
            return Pass(member, breaker.sent, is_probe=breaker.is_open)

    def succeed(self, leave: Pass) -> None:
        """The call was answered."""
        with self._lock:
            breaker = self._breaker(leave.member)
            if breaker.probe == leave.number:
                _forget(breaker)
                self._close(breaker)
            self._record(breaker, failed=False)
            if breaker.is_open and leave.number < breaker.failing_from:
                return
            breaker.answered = self._counted
            breaker.in_a_row = 0
            if not breaker.is_open:
                breaker.rests = 0
            elif not self._is_failing(breaker):
                self._close(breaker)
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
            is_probe = breaker.probe == leave.number
            if is_probe:
                breaker.probe = None
            if is_probe if breaker.is_open else self._is_failing(breaker):
                self._open(leave.member, breaker)

    def withdraw(self, leave: Pass) -> None:
        """The call was not sent after all, or says nothing about the member."""
        with self._lock:
            breaker = self._breaker(leave.member)
            if breaker.probe == leave.number:
                breaker.probe = None

    def is_open(self, member: str) -> bool:
        """Whether the member is being left alone."""
        with self._lock:
            return self._breaker(member).is_open

    def has_other(self, member: str) -> bool:
        """Whether another member than this one can be asked."""
        with self._lock:
            return self._has_other(member)

    def may_retry(self) -> bool:
        """Whether the pool bears another retry, which is then counted."""
        with self._lock:
            self._decay()
            if self._retries + 1 > RETRY_BURST + RETRY_SHARE * self._calls:
                return False
            self._retries += 1
            return True

    def is_due(self) -> bool:
        """Whether it is time for an exchange with other processes; who hears so makes it.

        That is at once when a member has opened or closed, and else once a second.
        """
        with self._lock:
            now = self._clock()
            if now < self._share_at or not self._members:
                return False
            self._share_at = now + SHARE_S
            return True

    def findings(self) -> dict[str, Finding]:
        """What others are to be told, and what they know, by member."""
        with self._lock:
            return {name: self._finding(self._breakers[name]) for name in self._members}

    def adopt(self, told: Mapping[str, Finding], rests: Mapping[str, Rest]) -> None:
        """Others know what was `told`; with it, these are all that rest."""
        with self._lock:
            for name, finding in told.items():
                breaker = self._breakers[name]
                if breaker.changes == finding.number:  # else this process has found more since
                    breaker.told = finding.number
                    self._adopt(name, breaker, rests.get(name))

    def _adopt(self, member: str, breaker: _Breaker, rest: Rest | None) -> None:
        now = self._clock()
        if rest is None:
            if breaker.is_open:  # it has answered another
                _forget(breaker)
                breaker.is_open, breaker.probe = False, None
                breaker.in_a_row = breaker.rests = 0
        elif rest.left_s <= 0 or breaker.answered > now - rest.age_s:
            return
        elif breaker.is_open:
            breaker.rests = max(rest.rests, breaker.rests)
            breaker.rests_until = max(now + rest.left_s, breaker.rests_until)
        elif self._has_other(member):  # a pool always has someone to ask
            breaker.is_open = True
            breaker.rests, breaker.rests_until = rest.rests, now + rest.left_s
            breaker.failing_from = breaker.sent + 1  # calls on their way do not speak for it

    def _finding(self, breaker: _Breaker) -> Finding:
        rest = Rest(breaker.rests_until - self._clock(), breaker.rests) if breaker.is_open else None
        return Finding(breaker.changes, breaker.changes != breaker.told, rest)

    def _has_other(self, member: str) -> bool:
        return any(not self._breakers[name].is_open for name in self._members if name != member)

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
        if member in self._members and not self._has_other(member):
            return
        breaker.is_open = True
        self._changed(breaker)
        breaker.rests = min(breaker.rests + 1, MOST_RESTS)
        breaker.rests_until = self._clock() + REST_S * breaker.rests

    def _close(self, breaker: _Breaker) -> None:
        if breaker.is_open:
            self._changed(breaker)
        breaker.is_open, breaker.probe = False, None

    def _changed(self, breaker: _Breaker) -> None:
        breaker.changes += 1
        self._share_at = self._clock()

    def _decay(self) -> None:
        now = self._clock()
        left = 0.5 ** ((now - self._counted) / WINDOW_S)
        self._calls *= left
        self._retries *= left
        self._counted = now


def _forget(breaker: _Breaker) -> None:
    """What failed before a rest says nothing any more."""
    breaker.recent.clear()
    breaker.failed = 0


def _shared_name(pool: str, spec: ModelSpec) -> str:
    """Pool, member, and a hash of what the member is: of a chat model of one's own, its class.

    What runs in this process, or behind this machine's loopback, is not what others have there.
    """
    url = spec.base_url or ""
    model = spec.model if isinstance(spec.model, str) else type(spec.model).__qualname__
    place = platform.node() if spec.provider == "local" or _is_loopback(url) else ""
    what = sha256(json.dumps([model, url, place]).encode()).hexdigest()[:16]
    return f"{pool}/{spec.name}/{what}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
