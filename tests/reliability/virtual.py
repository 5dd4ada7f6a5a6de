"""An event loop whose clock jumps over waits: what tests wait for is counted, not sat through."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Impatient(selectors.DefaultSelector):
    """Looks without waiting, and counts how long it would have waited."""

    skipped_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            return super().select(None)  # nothing is planned: a thread has to report
        if not events and timeout is not None:
            self.skipped_s += max(0.0, timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Not for work on threads: time would pass while they are at it."""

    def __init__(self) -> None:
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self) -> float:
        return super().time() + self._impatient.skipped_s

    @property
    def skipped_s(self) -> float:
        """The waits so far, those at the same time counted once."""
        return self._impatient.skipped_s


def run(work: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """Run to the end; returns the result and the seconds that were waited for."""
    loop = VirtualLoop()
    try:
        result = loop.run_until_complete(work)
        loop.run_until_complete(loop.shutdown_asyncgens())
        return result, loop.skipped_s
    finally:
        loop.close()
