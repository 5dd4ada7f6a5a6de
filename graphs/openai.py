"""The graph over OpenAI's models, for the LangGraph server; a run needs OPENAI_API_KEY."""

from __future__ import annotations

from r2graph import create_r2_graph

graph = create_r2_graph("openai", name="openai")
