"""Who watches a call of `ChatR2`: what callbacks see of it, and what they are told."""

from __future__ import annotations

from contextvars import Context

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackHandler, CallbackManager
from langchain_core.messages import BaseMessage
from langchain_core.tracers import BaseTracer
from langgraph.types import StreamMode

from r2graph.graph import R2Graph
from r2graph.state import R2Output, RunContext

_MODES: list[StreamMode] = ["custom", "values"]


def within(watching: CallbackManager) -> CallbackManager:
    """The callbacks of what a call consists of: tracers alone.

    Whoever counts usage or shows tokens is to see one call with one answer.
    """
    tracers: list[BaseCallbackHandler] = [
        handler for handler in watching.handlers if isinstance(handler, BaseTracer)
    ]
    return CallbackManager(
        tracers, inheritable_handlers=tracers, parent_run_id=watching.parent_run_id
    )


def uncounted(context: Context) -> None:
    """Keep handlers that live in context variables, such as usage counters, out of what is within.

    `get_usage_metadata_callback` would count the models, and then the call that they are part of.
    """
    for variable, value in context.items():
        if isinstance(value, BaseCallbackHandler) and not isinstance(value, BaseTracer):
            context.run(variable.set, None)


def result(
    graph: R2Graph, context: RunContext, messages: list[BaseMessage], watching: CallbackManager
) -> R2Output | None:
    """What a run of the graph comes to; those who watch are told how."""
    last = None
    for mode, data in graph.stream({"messages": messages}, context=context, stream_mode=_MODES):
        if mode == "custom":
            watching.on_custom_event(f"r2_{data['event']}", data, watching.parent_run_id)
        else:
            last = data
    return last


async def aresult(
    graph: R2Graph, context: RunContext, messages: list[BaseMessage], watching: CallbackManager
) -> R2Output | None:
    """As `result`."""
    telling, last = AsyncCallbackManager.configure(watching), None
    stream = graph.astream({"messages": messages}, context=context, stream_mode=_MODES)
    async for mode, data in stream:
        if mode == "custom":
            await telling.on_custom_event(f"r2_{data['event']}", data, telling.parent_run_id)
        else:
            last = data
    return last
