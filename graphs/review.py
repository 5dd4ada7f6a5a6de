"""The lab's graph for the LangGraph server, with a human who decides on each plan."""

from __future__ import annotations

from graphs.environment import LEDGER, POOL_BUDGET
from r2graph import create_r2_graph
from r2graph.lab import geo

geo.facts()  # as in graphs/lab.py

graph = create_r2_graph(
    "lab", router="lab", review_plan=True, ledger=LEDGER, pool_budget=POOL_BUDGET, name="review"
)
