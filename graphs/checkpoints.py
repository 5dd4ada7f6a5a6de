"""Threads in a PostgreSQL of one's own, for `langgraph dev --config langgraph.postgres.json`.

The server's licensed image brings a checkpointer in PostgreSQL, and needs none of this.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.types import Checkpointer
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from r2graph.checkpoints import strict
from r2graph.errors import ConfigError

CONNECTIONS = 4


@asynccontextmanager
async def postgres() -> AsyncIterator[Checkpointer]:
    """A checkpointer whose loading runs no code; makes its tables where they are not there."""
    url = os.environ.get("R2GRAPH_CHECKPOINTS")
    if not url:
        raise ConfigError("set R2GRAPH_CHECKPOINTS to a postgresql:// URL")
    settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}  # as it asks
    async with AsyncConnectionPool(url, max_size=CONNECTIONS, kwargs=settings) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield strict(saver)
