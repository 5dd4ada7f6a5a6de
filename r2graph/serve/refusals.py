"""What a client is told when it gets no answer: a status, and an error in OpenAI's form.

The words are ours or the client's own, never a provider's; what is amiss on the server's side is
said in its log alone.
"""

from __future__ import annotations

from math import ceil
from typing import Any, Literal

from fastapi.responses import JSONResponse

from r2graph.errors import (
    AllocationError,
    CallErrorKind,
    EmptyQueryError,
    LedgerError,
    LimitExceeded,
    LimitName,
    ModelCallError,
    PlanError,
    PromptTooLongError,
    QueryError,
    R2Error,
    UnsupportedCallError,
    UnsupportedQueryError,
)

Kind = Literal[
    "invalid_request_error",
    "authentication_error",
    "rate_limit_error",
    "insufficient_quota",
    "server_error",
]
OUR_FAULT = "the server is not set up for this; its log says why"
_OF_CALLS: dict[CallErrorKind, int] = {
    "timeout": 504,
    "rate_limit": 503,
    "unavailable": 503,
    "server": 503,
}
_OF_LIMITS: dict[LimitName, tuple[int, Kind]] = {
    "budget": (402, "insufficient_quota"),
    "pool_budget": (402, "insufficient_quota"),
    "deadline": (504, "server_error"),
    "calls": (422, "invalid_request_error"),
    "rounds": (422, "invalid_request_error"),
}


class Refusal(Exception):  # noqa: N818 - it is an HTTP response
    """A request that gets an error instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        kind: Kind = "invalid_request_error",
        param: str | None = None,
        retry_after_s: float | None = None,
        cost_usd: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.kind: Kind = kind
        self.param = param
        self.retry_after_s = retry_after_s
        self.cost_usd = cost_usd
        self.run_id: str | None = None
        """Both of the run that failed; `None` where there was none."""

    @property
    def body(self) -> dict[str, Any]:
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(ceil(self.retry_after_s))
        elif self.status >= 500:
            # OpenAI's clients try 5xx again unasked: the graph has retried, and a run costs.
            headers["x-should-retry"] = "false"
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.cost_usd is not None:
            headers["x-r2-cost-usd"] = self.cost_usd
        if self.run_id is not None:
            headers["x-r2-run-id"] = self.run_id
        return headers

    def response(self, **headers: str) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers | headers)


def refusal(error: R2Error) -> Refusal:
    """What a client is told of an error of ours."""
    made = _refusal(error)
    made.cost_usd = error.cost_usd
    return made


def _refusal(error: R2Error) -> Refusal:
    match error:
        case PromptTooLongError():
            return Refusal(400, str(error), "context_length_exceeded", param="messages")
        case EmptyQueryError():
            return Refusal(400, str(error), "empty_query", param="messages")
        case UnsupportedQueryError():
            return Refusal(400, str(error), "unsupported_query", param="messages")
        case QueryError():
            return Refusal(400, str(error), "invalid_query", param="messages")
        case UnsupportedCallError():
            param = "tools" if error.what == "tools" else "response_format"
            return Refusal(400, str(error), "unsupported_parameter", param=param)
        case ModelCallError():
            status = _OF_CALLS.get(error.kind, 502)
            return Refusal(status, str(error), f"model_{error.kind}", kind="server_error")
        case PlanError() | AllocationError():
            message = "the planner gave no plan that can be run; put the query in other words"
            return Refusal(502, message, "no_plan", kind="server_error")
        case LimitExceeded():
            return beyond(error.limit)
        case LedgerError():
            return Refusal(503, OUR_FAULT, "ledger", kind="server_error")
    return Refusal(500, OUR_FAULT, "configuration", kind="server_error")


def beyond(limit: LimitName) -> Refusal:
    """A run that a limit ended before there was an answer."""
    status, kind = _OF_LIMITS[limit]
    return Refusal(status, str(LimitExceeded(limit)), f"{limit}_exceeded", kind=kind)


def unforeseen() -> Refusal:
    """An error that nobody meant to raise; its text may hold anything."""
    return Refusal(500, "an unexpected error; the log has it", "internal", kind="server_error")
