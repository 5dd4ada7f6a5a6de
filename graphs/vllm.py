"""The graph over models that you serve yourself, for the LangGraph server; needs no key."""

from __future__ import annotations

from r2graph import create_r2_graph

graph = create_r2_graph("vllm", name="vllm")
