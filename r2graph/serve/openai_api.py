"""OpenAI's chat completions: what is read from a request, and how a result is written.

A request that asks for something this server does not do is refused, rather than answered as if it
had not asked. Parameters that ask for nothing (`n: 1`, `tools: []`, …) are let pass.
"""

from __future__ import annotations

import json
import re
import time
from decimal import Decimal
from typing import Annotated, Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from r2graph.errors import first_fault
from r2graph.pricing import to_text
from r2graph.serve.conversation import (
    Conversation,
    Given,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolChoice,
)
from r2graph.serve.refusals import Refusal
from r2graph.state import R2Output
from r2graph.whole import Bound

ANY = object()  # a value that changes nothing here, whatever it is
_PASSED: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "temperature": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "stop": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "user": (ANY,),
    "metadata": (ANY,),
    "safety_identifier": (ANY,),
    "prompt_cache_key": (ANY,),
}
_HINTS = {
    "max_tokens": "; a run is bounded by budget_usd",
    "max_completion_tokens": "; a run is bounded by budget_usd",
}
_PLAIN = re.compile(r"[A-Za-z0-9_.]{1,60}")

Quality = Annotated[float, Field(ge=0, le=1)]
Dollars = Annotated[Decimal, Field(ge=0, allow_inf_nan=False, max_digits=24)]
Read = TypeVar("Read", bound=BaseModel)


class StreamOptions(Given):
    include_usage: bool = False


class ChatRequest(Given):
    """The body of a request for a chat completion."""

    model: str
    messages: Conversation
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    quality: Quality | None = None
    budget_usd: Dollars | None = None

    @property
    def said(self) -> list[BaseMessage]:
        return [message.read for message in self.messages]

    @property
    def bound(self) -> Bound:
        """What keeps the call whole, in LangChain's words, which all members understand."""
        asked, choice = self.response_format, self.tool_choice
        words = {"none": None, "auto": None, "required": "any"}
        tools = [tool.model_dump(exclude_none=True) for tool in self.tools]
        return Bound(
            tools=tuple(tools if choice != "none" else ()),
            tool_choice=choice.function.name if isinstance(choice, NamedTool) else words[choice],
            parallel_tool_calls=self.parallel_tool_calls,
            output_schema=asked and asked.json_schema.titled,
        )


class RunRequest(Given):
    """The body of a request for a run that is watched."""

    model: str
    query: str
    quality: Quality | None = None
    budget_usd: Dollars | None = None


def read_chat(body: bytes) -> ChatRequest:
    """A request for a completion; raises `Refusal` for what is not supported."""
    fields = _fields(body)
    for name in [name for name, value in fields.items() if _asks_nothing(name, value)]:
        del fields[name]
    for name in fields.keys() - ChatRequest.model_fields.keys():
        raise _unsupported(name)
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [_without_nulls(message) for message in messages]
    request = _validated(ChatRequest, fields)
    if (choice := request.tool_choice) not in ("none", "auto"):
        names = [tool.function.name for tool in request.tools]
        if not names or (isinstance(choice, NamedTool) and choice.function.name not in names):
            raise _invalid("tool_choice", "tool_choice asks for a tool that tools has not")
    if request.bound.tools and request.response_format is not None:
        raise _invalid("response_format", "with tools there can be no response_format")
    return request


def read_run(body: bytes) -> RunRequest:
    """A request for a run; raises `Refusal`."""
    return _validated(RunRequest, _fields(body))


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = from_json(body)
    except ValueError:
        raise Refusal(400, "the body is not JSON", "invalid_json") from None
    if not isinstance(fields, dict):
        raise Refusal(400, "the body is not a JSON object", "invalid_json")
    return fields


def _asks_nothing(name: str, value: object) -> bool:
    passed = _PASSED.get(name, ())
    return value is None or ANY in passed or value in passed


def _without_nulls(message: object) -> object:
    """Clients send messages back as they got them: with `refusal`, `tool_calls` and so on null."""
    if not isinstance(message, dict):
        return message
    return {
        key: value
        for key, value in message.items()
        if value is not None and (key, value) != ("annotations", [])
    }


def _unsupported(name: str) -> Refusal:
    shown = name if _PLAIN.fullmatch(name) else "a parameter"
    return Refusal(
        400,
        f"{shown} is not supported{_HINTS.get(name, '')}",
        "unsupported_parameter",
        param=name if shown == name else None,
    )


def _invalid(param: str, message: str) -> Refusal:
    return Refusal(400, message, "invalid_value", param=param)


def _validated(kind: type[Read], fields: dict[str, Any]) -> Read:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        param = str(error.errors(include_input=False)[0]["loc"][0])
        raise Refusal(
            400,
            first_fault(error)[:300],
            "invalid_value",
            param=param if param in kind.model_fields else None,
        ) from None


def about(result: R2Output) -> dict[str, Any]:
    """What the run was like: `r2` in a response's body."""
    cost, estimate = Decimal(result["cost_usd"]), Decimal(result["counterfactual_usd"])
    return {
        "run_id": result["run_id"],
        "stop_reason": result["stop_reason"],
        "quality": result["run"]["quality"],
        "models": list(result["usage"]),
        "cost_usd": result["cost_usd"],
        "router_cost_usd": result["router_cost_usd"],
        "verifier_cost_usd": result["verifier_cost_usd"],
        "counterfactual_usd": result["counterfactual_usd"],
        "saved_usd": to_text(estimate - cost),
        "local_share": result["local_share"],
    }


def headers(result: R2Output) -> dict[str, str]:
    """The same in short, as headers."""
    r2 = about(result)
    return {
        "x-r2-run-id": r2["run_id"],
        "x-r2-cost-usd": r2["cost_usd"],
        "x-r2-saved-usd": r2["saved_usd"],
        "x-r2-models": ",".join(quote(name, safe="/:+") for name in r2["models"]),
    }


def usage(result: R2Output) -> dict[str, int]:
    """Tokens of all calls of all models, those of router and verifier among them."""
    sent = sum(use["input_tokens"] for use in result["usage"].values())
    written = sum(use["output_tokens"] for use in result["usage"].values())
    return {
        "prompt_tokens": sent,
        "completion_tokens": written,
        "total_tokens": sent + written,
    }


def finish_reason(result: R2Output) -> str:
    """`length`: a limit cut the run short, and the answer is what there was by then."""
    ended = result["stop_reason"] in ("verified", "unverified", "attempts", "rounds")
    last = result["messages"][-1]
    if not ended or last.response_metadata.get("finish_reason") == "length":
        return "length"
    return "tool_calls" if tool_calls(result) else "stop"


def tool_calls(result: R2Output) -> list[dict[str, Any]]:
    """The tools that the client is to call; arguments that do not parse are as the model wrote."""
    last = result["messages"][-1]
    if not isinstance(last, AIMessage):  # there is no answer
        return []
    return [
        {
            "id": call["id"] or f"call_{uuid4().hex}",
            "type": "function",
            "function": {"name": call["name"], "arguments": _arguments(call["args"])},
        }
        for call in [*last.tool_calls, *last.invalid_tool_calls]
    ]


def _arguments(args: dict[str, Any] | str | None) -> str:
    return args if isinstance(args, str) else json.dumps(args or {}, ensure_ascii=False)


def completion(model: str, result: R2Output) -> dict[str, Any]:
    """The body of a response."""
    message: dict[str, Any] = {"role": "assistant", "content": result["answer"], "refusal": None}
    if calls := tool_calls(result):
        message |= {"content": result["answer"] or None, "tool_calls": calls}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": finish_reason(result),
        "logprobs": None,
    }
    return {
        "id": f"chatcmpl-{result['run_id']}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": usage(result),
        "r2": about(result),
    }


class Chunks:
    """The events of one streamed response, in OpenAI's form."""

    def __init__(self, model: str, run_id: str, *, include_usage: bool) -> None:
        self._head = {
            "id": f"chatcmpl-{run_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage

    def begin(self) -> str:
        return self._chunk({"role": "assistant", "content": ""}, None)

    def end(self, result: R2Output) -> str:
        """The answer and all after it; the last chunk has `r2`, and `usage` if it is asked for."""
        r2 = about(result)
        events = self._chunk({"content": result["answer"]}, None)
        if calls := tool_calls(result):
            numbered = [{"index": index} | call for index, call in enumerate(calls)]
            events += self._chunk({"tool_calls": numbered}, None)
        if self._include_usage:
            events += self._chunk({}, finish_reason(result))
            events += sse(self._head | {"choices": [], "usage": usage(result), "r2": r2})
        else:
            events += self._chunk({}, finish_reason(result), r2=r2)
        return events + "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], reason: str | None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        body: dict[str, Any] = self._head | {"choices": [choice]}
        if self._include_usage:
            body["usage"] = None
        return sse(body | more)


def sse(data: dict[str, Any]) -> str:
    """A server-sent event; JSON in ASCII has no line breaks, whatever a model wrote."""
    return f"data: {json.dumps(data)}\n\n"
