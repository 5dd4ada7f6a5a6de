"""The graph as a tool of an agent: the agent's model asks a query and hears the answer.

What it need not hear, the plan and the bill, is the artifact of the tool's message. A query that
the graph refuses is an error of the tool's, so that the model may ask another one.
"""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, ToolException

from r2graph.errors import QueryError

DESCRIPTION = (
    "Works out the answer to a query, step by step. Put all that it needs into the query: "
    "nothing else is seen."
)

Query = Annotated[str, "What to answer, in one text."]
Heard = tuple[str, dict[str, Any]]


def tool_of(graph: Runnable[Any, dict[str, Any]], name: str, description: str) -> BaseTool:
    """A tool with one argument, `query`; callbacks, context and checkpoints are the agent's."""

    def answer(query: Query, config: RunnableConfig) -> Heard:
        try:
            return _heard(graph.invoke(query, config))
        except QueryError as error:
            raise ToolException(str(error)) from None

    async def aanswer(query: Query, config: RunnableConfig) -> Heard:
        try:
            return _heard(await graph.ainvoke(query, config))
        except QueryError as error:
            raise ToolException(str(error)) from None

    return StructuredTool.from_function(
        answer,
        aanswer,
        name=name,
        description=description,
        response_format="content_and_artifact",
        handle_tool_error=True,
    )


def _heard(result: dict[str, Any]) -> Heard:
    said = result["answer"] or f"There is no answer (stop reason: {result['stop_reason']})."
    return said, result
