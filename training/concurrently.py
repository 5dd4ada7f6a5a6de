"""Many runs of a graph at once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

CONCURRENCY = 256  # local models are quickest in large batches

T = TypeVar("T")
R = TypeVar("R")


async def concurrently(run: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """`run` of each item, in order, `CONCURRENCY` at a time."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(item: T) -> R:
        async with gate:
            return await run(item)

    with _heap_at_rest():
        return await asyncio.gather(*map(one, items))


@contextmanager
def _heap_at_rest() -> Iterator[None]:
    """Garbage is collected only among what is made inside.

    Runs make a lot of it, and torch and its friends keep so many objects that to look through them
    each time took a third of the time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
