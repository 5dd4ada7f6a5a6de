"""What comes of calling a chat model, in our words: a response, or a kind of failure."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NotRequired, TypedDict

from langchain_core.messages import AIMessage, InvalidToolCall, ToolCall

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
    tool_calls: NotRequired[list[ToolCall]]
    invalid_tool_calls: NotRequired[list[InvalidToolCall]]


MAX_REPLY_CHARS = 2**20  # far more than any model writes by itself


def read(message: AIMessage, seconds: float, worst: Usage, *, is_json: bool) -> Response:
    """The response in a message; tokens that the provider does not count are the worst case's."""
    said, metadata = message.usage_metadata, message.response_metadata
    content = (metadata.get("logprobs") or {}).get("content") or []
    text = _text(message, is_json=is_json)
    response = Response(
        text=text[:MAX_REPLY_CHARS],
        input_tokens=said["input_tokens"] if said else worst.input_tokens,
        output_tokens=said["output_tokens"] if said else worst.output_tokens,
        seconds=seconds,
        truncated=_finish(message) in ("length", "max_tokens") or len(text) > MAX_REPLY_CHARS,
        mean_logprob=sum(t["logprob"] for t in content) / len(content) if content else None,
        top_logprobs=[
            {top["token"]: top["logprob"] for top in token.get("top_logprobs") or []}
            for token in content
        ],
        cpu_s=metadata.get("cpu_s", 0.0),
    )
    if message.tool_calls and not is_json:
        response["tool_calls"] = message.tool_calls
    if message.invalid_tool_calls and not is_json:
        response["invalid_tool_calls"] = message.invalid_tool_calls
    return response


def usage_of(response: Response) -> Usage:
    """The tokens of a response; raises `ValidationError` for numbers that make no sense."""
    return Usage(input_tokens=response["input_tokens"], output_tokens=response["output_tokens"])


def _text(message: AIMessage, *, is_json: bool) -> str:
    if is_json and message.tool_calls:
        return json.dumps(message.tool_calls[0]["args"])
    return _without_surrogates(str(message.text)).strip()


def _without_surrogates(text: str) -> str:
    """Text that can be encoded: halves of a pair are joined, what is left alone is replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
    if (status := _status(error)) is not None:
        default: CallErrorKind = "server" if status >= 500 else "bad_request"
        return _KIND_OF_STATUS.get(status, default)
    names = _names(error)
    if "Timeout" in names:
        return "timeout"
    # Of the standard library and SDKs, httpx, and aiohttp: `ServerDisconnectedError`.
    lost = "Connect", "NetworkError", "ProtocolError", "Disconnected"
    return "server" if any(word in names for word in lost) else "other"


def _status(error: Exception) -> int | None:
    """The status that says how the request failed; one of success says nothing of that."""
    status = getattr(error, "status_code", None)
    if status is None:
        status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) and status >= 400 else None


def _names(error: BaseException) -> str:
    return " ".join(kind.__name__ for kind in type(error).__mro__)


# What the standard library, httpx, requests' urllib3 and aiohttp raise before anything was sent.
_UNREACHED = frozenset(
    {
        "ConnectionRefusedError",
        "gaierror",
        "ConnectError",
        "ConnectTimeout",
        "NewConnectionError",
        "ConnectTimeoutError",
        "ClientConnectorError",
    }
)


def may_be_billed(error: Exception) -> bool:
    """Whether a failed call may have been answered, and billed, for all we know.

    Not if the provider says that it failed, nor if it was never reached. A connection that was
    lost may have carried the request.
    """
    if isinstance(error, R2Error):
        return False
    status = _status(error)
    if status is not None:
        return _KIND_OF_STATUS.get(status) == "timeout"
    return not any(_UNREACHED & set(_names(each).split()) for each in _causes(error))


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what led to it."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def retry_after_s(error: Exception) -> float | None:
    """How long the provider asks to wait (`Retry-After`: seconds, or a date), if it does."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    try:
        value = str(headers["retry-after"])  # type: ignore[index]
    except (KeyError, TypeError):
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _until(value)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _until(date: str) -> float:
    try:
        when = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return math.nan
    return (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
