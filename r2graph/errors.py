"""The one tree of typed errors.

A message says what failed, which id, and what to do; never a prompt, a key or a provider's text.

R2Error
├── ConfigError (ValueError)        something the user set up is wrong; no model was called
│   ├── PoolFileError               a pool file or dict that does not read
│   ├── UnknownPriceError           a member without a price
│   ├── MissingKeyError             an API key that is not in the environment
│   ├── UnknownModelError           a member, model or pool that does not exist
│   ├── RouterFileError             a router directory that does not read
│   ├── ModelFileError              a local model directory that does not read
│   ├── TraceFileError              a file of traces with a line that does not read
│   ├── BenchmarkFileError          a benchmark's file that is missing or does not read
│   ├── RouterMismatchError         a router asked to serve a pool it was not trained for
│   ├── NeedsInstructionsError      a method whose prompts the pool's members do not understand
│   ├── UnsupportedCallError        tools or a schema, and a pool of which no member takes them
│   ├── MissingExtraError           an optional dependency that is not installed
│   └── SandboxUnavailable          no sandbox for code that a model wrote
├── QueryError (ValueError)         the query cannot be answered
│   ├── EmptyQueryError
│   ├── UnsupportedQueryError       outside the language of the router
│   └── PromptTooLongError          more tokens than a local model holds
├── PlanError (ValueError)          a plan that does not parse
├── AllocationError (ValueError)    an allocation that does not parse
├── ModelCallError                  a pool member's call failed
├── CheckpointError                 a checkpoint holds what this graph cannot have written
├── LedgerError                     the call ledger cannot be read or written
├── WorkerError                     a process that did a part of the work failed
└── LimitExceeded                   a call would pass a limit of the run
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pydantic import ValidationError

CallErrorKind = Literal[
    "timeout", "rate_limit", "auth", "bad_request", "server", "empty", "unavailable", "other"
]
LimitName = Literal["calls", "rounds", "budget", "pool_budget", "deadline"]


class R2Error(Exception):
    """The root: `except R2Error` catches every error that r2graph raises on purpose."""

    cost_usd: str | None = None
    """What the run had spent when it failed, where a graph's run did."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle message and fields; by default Python would call `__init__` with the message."""
        return _restore, (type(self), self.args), self.__dict__


def _restore(kind: type[R2Error], args: tuple[Any, ...]) -> R2Error:
    error = kind.__new__(kind)
    error.args = args
    return error


class ConfigError(R2Error, ValueError):
    """Something the user set up is wrong: a pool, a router, a setting. No model was called."""


class PoolFileError(ConfigError):
    """A pool file or dict that does not read."""


class UnknownPriceError(ConfigError):
    """A pool member whose price is neither stated nor known to `genai-prices`."""

    def __init__(self, member: str) -> None:
        super().__init__(
            f"the price of pool member {member!r} is not known: "
            "state `price: {input_per_mtok: …, output_per_mtok: …}` (dollars per million tokens)"
        )
        self.member = member


class MissingKeyError(ConfigError):
    """An API key that a pool member needs is not in the environment."""

    def __init__(self, member: str, variable: str) -> None:
        super().__init__(
            f"pool member {member!r} needs an API key: set {variable} in the environment"
        )
        self.member = member
        self.variable = variable


class UnknownModelError(ConfigError):
    """A pool, a pool member or a model that does not exist."""


class RouterFileError(ConfigError):
    """A router directory that does not read."""


class ModelFileError(ConfigError):
    """A local model directory that does not read."""


class TraceFileError(ConfigError):
    """A file of traces, or one line of it, that does not read."""


class BenchmarkFileError(ConfigError):
    """A benchmark's file, or its data set on the hub, that is missing or does not read."""


class RouterMismatchError(ConfigError):
    """A router asked to serve a pool whose language it was not trained for."""


class NeedsInstructionsError(ConfigError):
    """A method that prompts models, and a pool whose members answer what they were trained on."""

    def __init__(self, method: str, pool: str) -> None:
        super().__init__(
            f"{method} needs models that follow instructions: those of pool {pool!r} know a "
            "language of their own only"
        )


class UnsupportedCallError(ConfigError):
    """A call with tools or a schema, and a pool of which no member takes them."""

    def __init__(self, pool: str, what: Literal["tools", "schema"]) -> None:
        does = "takes tools" if what == "tools" else "gives structured output"
        super().__init__(f"no member of pool {pool!r} {does}: use a pool with one that does")
        self.what = what


class MissingExtraError(ConfigError):
    """An optional dependency that is not installed; the message names the extra that has it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'r2graph[{extra}]'")
        self.extra = extra


class SandboxUnavailable(ConfigError):  # noqa: N818 - it says what is missing, as HTTP's 503 does
    """There is no sandbox for code that a model wrote; such code never runs without one."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"there is no sandbox for code that a model wrote ({why}): on Linux, run "
            "`apt install bubblewrap` and allow user namespaces "
            "(`sysctl -w kernel.unprivileged_userns_clone=1`, on Ubuntu "
            "`kernel.apparmor_restrict_unprivileged_userns=0`), in a container too"
        )
        self.why = why


class QueryError(R2Error, ValueError):
    """A query that cannot be answered."""


class EmptyQueryError(QueryError):
    """A query without text."""

    def __init__(self) -> None:
        super().__init__("the query is empty: pass a text, {'query': …} or {'messages': […]}")


class UnsupportedQueryError(QueryError):
    """A query outside the language of the router; the message says what the language is."""


class PromptTooLongError(QueryError):
    """A prompt that leaves a local model no room for an answer."""

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(
            f"the prompt has {tokens} tokens and the model's context {context}: "
            "shorten it, or use a model with a longer context"
        )
        self.tokens = tokens
        self.context = context


class PlanError(R2Error, ValueError):
    """A plan that does not parse: malformed, cyclic, too long, or with unknown references."""


class AllocationError(R2Error, ValueError):
    """An allocator's output that does not parse."""


class ModelCallError(R2Error):
    """A pool member's call failed; `kind` says how, in our words and never in the provider's."""

    def __init__(self, member: str, kind: CallErrorKind) -> None:
        super().__init__(f"the call to pool member {member!r} failed: {_REMEDIES[kind]}")
        self.member = member
        self.kind: CallErrorKind = kind


class CheckpointError(R2Error):
    """A checkpoint holds what this graph cannot have written there."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the checkpoint does not fit: {what}; start again on a new thread")


class LedgerError(R2Error):
    """The call ledger cannot be read or written; nothing is spent without it."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            f"the call ledger in {where} cannot be used ({what}): mend that, then resume the run; "
            "nothing that was paid for is lost"
        )


class LimitExceeded(R2Error):  # noqa: N818 - it ends a run as planned, so it is no error
    """A call was not made for it would pass a limit; the graph turns this into `stop_reason`."""

    def __init__(self, limit: LimitName) -> None:
        super().__init__(
            f"the run reached its limit of {limit}: raise it, or accept the partial result"
        )
        self.limit: LimitName = limit


class WorkerError(R2Error):
    """A process that did a part of the work ended, or failed in a way that nobody foresaw."""

    def __init__(self, kind: str) -> None:
        super().__init__(
            f"a worker failed ({kind}): what was done is on record where `--out` names a file, and "
            "the same command goes on from there; a worker that just ends may be short of memory"
        )


_REMEDIES: dict[CallErrorKind, str] = {
    "timeout": "no answer in time; raise `call_timeout_s`, or check that the server is up",
    "rate_limit": "the provider limits the rate; wait, or lower `max_concurrency`",
    "auth": "the provider refused the key; check the environment variable that holds it",
    "bad_request": "the provider refused the request; check the model name and its settings",
    "server": "the provider failed or could not be reached; try again later",
    "unavailable": "it failed too often of late and is left alone for a while; try again later",
    "empty": "the reply held no text; raise `max_output_tokens`, or use another model",
    "other": "an unexpected error; run `r2graph pool check`",
}


def first_fault(error: ValidationError) -> str:
    """What is wrong with a file or a setting of the user's, and where; not what was put in.

    An unknown key comes before a missing one: often it is the same key, misspelt.
    """
    faults = error.errors(include_url=False, include_input=False)
    fault = next((each for each in faults if each["type"] == "extra_forbidden"), faults[0])
    # Pydantic adds the branch of a union, such as `python=is-instance[…]`, to the place.
    place = ".".join(part for part in map(str, fault["loc"]) if "[" not in part)
    if fault["type"] == "extra_forbidden":
        return f"{place} is an unknown key"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
