"""The graph over OpenAI's models, for the LangGraph server; a run needs OPENAI_API_KEY."""

from __future__ import annotations

from graphs.environment import LEDGER, POOL_BUDGET
from r2graph import create_r2_graph

graph = create_r2_graph("openai", ledger=LEDGER, pool_budget=POOL_BUDGET, name="openai")
