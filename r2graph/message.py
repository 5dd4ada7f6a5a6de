"""What a call of `ChatR2` comes to as LangChain's message, whole or in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from langchain_core.messages import AIMessage, AIMessageChunk, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from r2graph.bill import Bill
from r2graph.errors import LimitExceeded, LimitName, ModelCallError, R2Error
from r2graph.graph import R2Graph
from r2graph.state import R2Output
from r2graph.whole import Outcome, Whole


def replied(whole: Whole, outcome: Outcome, stop: Sequence[str]) -> AIMessage:
    """The message of a call that was routed whole; it ends before the first text of `stop`."""
    reply = outcome.reply
    message = _message(
        reply.text,
        whole.bill(reply),
        stop,
        model_name=whole.run.pool.name,
        run_id=whole.run_id,
        stop_reason=outcome.stop,
        plan=None,
        members={"whole": reply.member},
    )
    message.tool_calls = list(reply.tool_calls)
    message.invalid_tool_calls = list(reply.invalid_tool_calls)
    return message


def answered(graph: R2Graph, result: R2Output | None, stop: Sequence[str]) -> AIMessage:
    """The message of a run of the graph. Raises what ended it, if it has no answer."""
    assert result is not None  # a run that does not raise ends with its state
    if not result["answer"]:
        raise _unanswered(graph, result)
    bill = {key: result[key] for key in Bill.__annotations__}  # type: ignore[literal-required]
    return _message(
        result["answer"],
        bill,
        stop,
        model_name=graph.defaults.pool.name,
        run_id=result["run_id"],
        stop_reason=result["stop_reason"],
        plan=result["plan"],
        members={name: step["member"] for name, step in result["steps"].items()},
    )


def _unanswered(graph: R2Graph, result: R2Output) -> R2Error:
    """A run without an answer: an empty message would pass for one, and end an agent's loop."""
    stop = result["stop_reason"]
    error: R2Error
    if stop in get_args(LimitName) and stop != "rounds":
        error = LimitExceeded(stop)  # type: ignore[arg-type]
    else:
        last = [step["member"] for step in result["steps"].values()][-1:]
        error = ModelCallError("".join(last) or graph.defaults.pool.names[-1], "empty")
    error.cost_usd = result["cost_usd"]
    return error


def _message(text: str, bill: Mapping[str, Any], stop: Sequence[str], **metadata: Any) -> AIMessage:
    used = bill["usage"].values()
    tokens_in = sum(use["input_tokens"] for use in used)
    tokens_out = sum(use["output_tokens"] for use in used)
    return AIMessage(
        _ended(text, stop),
        usage_metadata=UsageMetadata(
            input_tokens=tokens_in, output_tokens=tokens_out, total_tokens=tokens_in + tokens_out
        ),
        response_metadata={**metadata, **bill},
    )


def _ended(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of the words that end it."""
    return text[: min((at for word in stop if (at := text.find(word)) >= 0), default=None)]


def chunks(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    """An answer as a stream of words; all but the text is in the last chunk."""
    for word in re.findall(r"\s*\S+|\s+", message.text):
        yield ChatGenerationChunk(message=AIMessageChunk(content=word))
    calls = [
        tool_call_chunk(
            name=call["name"],
            args=call["args"] if isinstance(call["args"], str) else json.dumps(call["args"]),
            id=call["id"],
            index=index,
        )
        for index, call in enumerate([*message.tool_calls, *message.invalid_tool_calls])
    ]
    last = AIMessageChunk(
        content="",
        tool_call_chunks=calls,
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
        chunk_position="last",
    )
    yield ChatGenerationChunk(message=last)
