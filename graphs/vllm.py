"""The graph over models that you serve yourself, for the LangGraph server; needs no key."""

from __future__ import annotations

from graphs.environment import LEDGER, POOL_BUDGET
from r2graph import create_r2_graph

graph = create_r2_graph("vllm", ledger=LEDGER, pool_budget=POOL_BUDGET, name="vllm")
