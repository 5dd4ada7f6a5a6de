"""Back-pressure: so many runs at once, a short queue, and a friendly no to all others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from r2graph.serve.refusals import Refusal

LONGEST_RETRY_AFTER_S = 60.0
RECENT_SHARE = 0.2  # of the newest run in the running mean


class Gate:
    """Lets `max_runs` runs in at once; `max_waiting` more wait, each for `max_wait_s` at most."""

    def __init__(self, max_runs: int, max_waiting: int, max_wait_s: float) -> None:
        self.running = 0
        self.waiting = 0
        self._max_runs = max_runs
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._places = asyncio.Semaphore(max_runs)
        self._mean_s = 1.0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for one run; raises `Refusal` if there is none to be had in time."""
        await self._take()
        self.running += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self.running -= 1
            self._places.release()
            self._mean_s += RECENT_SHARE * (time.monotonic() - began - self._mean_s)

    async def _take(self) -> None:
        if self._places.locked() and self.waiting >= self._max_waiting:
            raise self._busy()
        self.waiting += 1
        try:
            async with asyncio.timeout(self._max_wait_s):
                await self._places.acquire()
        except TimeoutError:
            raise self._busy() from None
        finally:
            self.waiting -= 1

    def _busy(self) -> Refusal:
        """When to come back: when those who are here are likely to be done."""
        likely_s = self._mean_s * (self.waiting + 1) / self._max_runs
        return Refusal(
            429,
            "the server has as many runs as it can bear: try again later",
            "busy",
            kind="rate_limit_error",
            retry_after_s=min(max(likely_s, 1.0), LONGEST_RETRY_AFTER_S),
        )
