"""What comes of calling a chat model, in our words: a response, or a kind of failure."""

from __future__ import annotations

import json
from typing import TypedDict

from langchain_core.messages import AIMessage

from r2graph.errors import CallErrorKind, R2Error
from r2graph.pricing import Usage

RESPONSE_FORMAT = 1  # part of a kept response's key: one of another form is never found


class Response(TypedDict):
    """What a model said, as plain JSON; an outcome cache keeps it."""

    text: str
    input_tokens: int
    output_tokens: int
    seconds: float
    truncated: bool
    mean_logprob: float | None
    top_logprobs: list[dict[str, float]]
    cpu_s: float
    """CPU time of a model that reports it, else 0."""


def read(message: AIMessage, seconds: float, worst: Usage, *, is_json: bool) -> Response:
    """The response in a message; tokens that the provider does not count are the worst case's."""
    said, metadata = message.usage_metadata, message.response_metadata
    content = (metadata.get("logprobs") or {}).get("content") or []
    return Response(
        text=_text(message, is_json=is_json),
        input_tokens=said["input_tokens"] if said else worst.input_tokens,
        output_tokens=said["output_tokens"] if said else worst.output_tokens,
        seconds=seconds,
        truncated=_finish(message) in ("length", "max_tokens"),
        mean_logprob=sum(t["logprob"] for t in content) / len(content) if content else None,
        top_logprobs=[
            {top["token"]: top["logprob"] for top in token.get("top_logprobs") or []}
            for token in content
        ],
        cpu_s=metadata.get("cpu_s", 0.0),
    )


def _text(message: AIMessage, *, is_json: bool) -> str:
    if is_json and message.tool_calls:
        return json.dumps(message.tool_calls[0]["args"])
    return str(message.text).strip()


def _finish(message: AIMessage) -> object:
    """Why generation ended, in the words of OpenAI or Anthropic."""
    metadata = message.response_metadata
    return metadata.get("finish_reason") or metadata.get("stop_reason")


_KIND_OF_STATUS: dict[int, CallErrorKind] = {
    401: "auth",
    403: "auth",
    408: "timeout",
    429: "rate_limit",
    504: "timeout",
}


def failure_kind(error: Exception) -> CallErrorKind:
    """What happened, by status code or class; the text of the error is not looked at."""
    if isinstance(error, R2Error):  # of a local model: a prompt that it cannot take
        return "bad_request"
    status = getattr(error, "status_code", None)
    if status is None:
        status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        default: CallErrorKind = "server" if status >= 500 else "bad_request"
        return _KIND_OF_STATUS.get(status, default)
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    if "Timeout" in names:
        return "timeout"
    return "server" if "Connect" in names else "other"
