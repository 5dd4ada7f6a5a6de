"""The lab's graph, for the LangGraph server and Studio; no checkpointer, the server brings its own.

langgraph dev
"""

from __future__ import annotations

from graphs.environment import LEDGER, POOL_BUDGET
from r2graph import create_r2_graph
from r2graph.lab import geo

geo.facts()  # read here, for reading a file would block the server's event loop

graph = create_r2_graph("lab", router="lab", ledger=LEDGER, pool_budget=POOL_BUDGET, name="lab")
