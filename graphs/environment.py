"""What the server's environment says of records and money: one ledger for all its graphs.

R2GRAPH_LEDGER       an SQLite file or a postgresql:// URL that keeps all calls
R2GRAPH_POOL_BUDGET  dollars that all runs together may spend
R2GRAPH_CHECKPOINTS  a postgresql:// URL for `langgraph.postgres.json`
"""

from __future__ import annotations

import os

from r2graph import Ledger

POOL_BUDGET = os.environ.get("R2GRAPH_POOL_BUDGET") or None
SOURCE = os.environ.get("R2GRAPH_LEDGER") or (":memory:" if POOL_BUDGET else None)
LEDGER = None if SOURCE is None else Ledger(SOURCE)
