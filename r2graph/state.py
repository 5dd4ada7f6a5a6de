"""What goes into a run, what the checkpointer keeps of it, and what comes out.

State is plain JSON and messages, so that any checkpointer, server or human editor can hold it:
money is a decimal string, plans are in their JSON form. Objects live in `Run`, which is made anew
for each invocation and never stored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from threading import BoundedSemaphore
from typing import Annotated, Any, Literal, NotRequired

from langchain_core.messages import AnyMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langgraph.graph.message import add_messages
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
    with_config,
)
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict  # pydantic, for servers' schemas, wants this one

from r2graph.allocate import QUALITY_LEVELS
from r2graph.breaker import Health
from r2graph.calls import Entry
from r2graph.errors import (
    CheckpointError,
    ConfigError,
    EmptyQueryError,
    LimitName,
    QueryError,
    UnknownModelError,
    first_fault,
)
from r2graph.ledger import Budget, Ledger
from r2graph.limits import Limits
from r2graph.outcome_cache import OutcomeCache
from r2graph.pool import ModelPool
from r2graph.pricing import Dollars, Money

StopReason = Literal[
    "verified",  # every check that could be made was passed, and at least one was made
    "unverified",  # nothing spoke against the answer, and nothing for it
    "attempts",  # a step failed its check on every model it was tried on
    "rounds",  # the answer was rejected, and no further plan is allowed or to be had
    "budget",  # the next call could have passed `budget_usd`
    "pool_budget",  # the next call could have passed the budget of all runs together
    "deadline",  # `deadline_s` is over
    "calls",  # `max_calls` were made
]


class Chosen(TypedDict):
    """The member for one step, and why."""

    member: str
    reason: str
    slot: int | None
    probabilities: dict[str, float] | None
    propensity: NotRequired[float | None]
    """As in `Choice`; whoever edits an allocation by hand may leave these two out."""
    check: NotRequired[Annotated[int, Field(ge=1, le=QUALITY_LEVELS)] | None]
    final: NotRequired[bool]
    """A human's: the allocator is not asked again once references are filled in."""


class AttemptRecord(TypedDict):
    """One try of a step: what came and what its check said (`ok` is `None` if it could not say)."""

    member: str
    output: str | None
    ok: bool | None
    reason: str
    score: float | None
    input_tokens: int
    output_tokens: int
    cost_usd: Money
    mean_logprob: float | None
    seconds: float


class StepRecord(TypedDict):
    """A step as it was run; `output` is `None` if none came before a limit."""

    id: str
    text: str
    prompt: str
    member: str
    output: str | None
    ok: bool | None
    local: bool
    attempts: list[AttemptRecord]
    reference_usd: Money
    """The last attempt's tokens at the price of the strongest member."""
    stopped: LimitName | None
    """The limit that ended the step."""


class MemberUsage(TypedDict):
    """What one model did in a run."""

    input_tokens: int
    output_tokens: int
    calls: int
    cost_usd: Money


class FeedbackRecord(TypedDict):
    plan: dict[str, Any] | None
    reason: str


class Progress(TypedDict):
    """Where a turn stands; belongs to the run whose id it bears."""

    run_id: str
    round: Annotated[int, Field(ge=0)]
    feedback: list[FeedbackRecord]
    stop: StopReason | None


class RunRecord(TypedDict):
    """What was run: the query as it was read, and under which settings it was answered."""

    run_id: str
    query: str
    pool: str
    members: list[str]
    """Of the pool, in its order."""
    quality: float
    router: str | None
    rounds: int
    """Plans that were made."""


@with_config(use_attribute_docstrings=True)  # servers show them beside the fields
class R2Input(TypedDict, total=False):
    """A query, or messages of which the last human one is it."""

    query: str
    """What to answer; without it, the last human message."""
    messages: Annotated[list[AnyMessage], add_messages]
    """A conversation; with `query`, what was said before it."""
    run_id: SkipJsonSchema[str]  # set by the graph


@with_config(use_attribute_docstrings=True)
class R2Output(TypedDict):
    """The result. Amounts are dollars as decimal strings."""

    answer: str
    """Empty if a limit ended the run before there was one."""
    messages: Annotated[list[AnyMessage], add_messages]
    """The conversation, with the answer at its end."""
    plan: dict[str, Any]
    """JSON form: `{"subtasks": [{"id", "text", "depends_on"}], "answer"}`."""
    allocation: dict[str, Chosen]
    """The member for each step, by its id."""
    steps: dict[str, StepRecord]
    """What each step was asked and gave, by its id."""
    usage: dict[str, MemberUsage]
    """What each model did, router and verifier included."""
    cost_usd: Money
    """Everything: steps, failed attempts, router and verifier."""
    router_cost_usd: Money
    """Planning and choosing."""
    verifier_cost_usd: Money
    """Checking steps and answer."""
    counterfactual_usd: Money
    """An estimate: the same steps with the same tokens, all on the strongest member."""
    local_share: float
    """The share of steps whose output came from a local member."""
    stop_reason: StopReason
    """What ended the run: a check of the answer, or a limit."""
    run_id: str
    """The run's name."""
    run: RunRecord
    """What was run, and under which settings."""


class R2State(R2Output):
    """The whole state. What a new turn does not clear belongs to the turn of `progress`."""

    query: str
    progress: Progress
    bill: list[Entry]


class Asked(TypedDict):
    """What a turn is about; every node finds it in the state."""

    query: str
    messages: list[InstanceOf[BaseMessage]]
    run_id: str
    answer: NotRequired[str]


class Kept(TypedDict):
    """What nodes hand to later nodes, and others may have edited on the way."""

    allocation: dict[str, Chosen]
    steps: dict[str, StepRecord]
    progress: Progress
    bill: list[Entry]


_ASKED = TypeAdapter(Asked)
_KEPT = TypeAdapter(Kept)


def check_asked(state: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` if what the turn is about is not of the right form."""
    try:
        _ASKED.validate_python(state)
    except ValidationError as error:
        raise CheckpointError(first_fault(error)) from None


def read_kept(state: Mapping[str, Any]) -> Kept:
    """What a turn has so far; raises `CheckpointError` if it is not of the right form."""
    try:
        return _KEPT.validate_python(state)
    except ValidationError as error:
        raise CheckpointError(first_fault(error)) from None


class RunContext(BaseModel):
    """Settings of one run; what is left out is as the graph was made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    quality: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, json_schema_extra={"langgraph_nodes": ["allocate", "execute_step"]}
    )
    """How sure each step should be, 0 to 1; learned routers trade it for cost."""
    budget_usd: Dollars | None = Field(None, title="Budget (dollars)")
    """Dollars that the run must not pass."""
    limits: Limits | None = None
    """Only the fields that are given replace those of the graph."""
    pool: str | None = None
    """A pool that the graph knows by name."""


def read_context(given: RunContext | Mapping[str, Any] | None) -> RunContext:
    """A run's settings; raises `ConfigError` for what is out of range or unknown."""
    if isinstance(given, RunContext):
        return given
    try:
        return RunContext.model_validate(given or {})
    except ValidationError as error:
        raise ConfigError(first_fault(error)) from None


@dataclass(frozen=True)
class Run:
    """The settings of one invocation, resolved."""

    pool: ModelPool
    quality: float
    budget: Decimal | None
    limits: Limits
    health: Health
    outcomes: OutcomeCache | None = None
    ledger: Ledger | None = None
    pool_budget: Budget | None = None
    started: float = field(default_factory=time.monotonic)
    gate: BoundedSemaphore | None = None
    agate: asyncio.Semaphore | None = None


@dataclass(frozen=True)
class Defaults:
    """What a graph was made with, and the pools that it knows by name."""

    pool: ModelPool
    pools: Mapping[str, ModelPool]
    quality: float
    budget: Decimal | None
    limits: Limits
    outcomes: OutcomeCache | None = None
    ledger: Ledger | None = None
    pool_budget: Budget | None = None
    health: dict[str, Health] = field(default_factory=dict)
    """Of each pool, by name."""

    def run(self, context: RunContext, max_concurrency: int | None) -> Run:
        """One invocation's settings; `max_concurrency` bounds the calls it makes at once."""
        limits = self.limits
        if context.limits is not None:
            given = context.limits.model_fields_set
            limits = limits.model_copy(
                update={name: getattr(context.limits, name) for name in given}
            )
        pool = self.pool if context.pool is None else self._named(context.pool)
        return Run(
            pool=pool,
            health=self._health(pool),
            quality=self.quality if context.quality is None else context.quality,
            budget=self.budget if context.budget_usd is None else context.budget_usd,
            limits=limits,
            outcomes=self.outcomes,
            ledger=self.ledger,
            pool_budget=self.pool_budget,
            gate=BoundedSemaphore(max_concurrency) if max_concurrency else None,
            agate=asyncio.Semaphore(max_concurrency) if max_concurrency else None,
        )

    def _health(self, pool: ModelPool) -> Health:
        if pool.name not in self.health:
            self.health.setdefault(pool.name, Health.of(pool))  # another thread may have been first
        return self.health[pool.name]

    def _named(self, name: str) -> ModelPool:
        if name not in self.pools:
            known = ", ".join(self.pools) or "none"
            raise UnknownModelError(f"the graph knows no pool {name!r}; it knows {known}")
        return self.pools[name]


def read_input(given: object) -> tuple[str, list[BaseMessage]]:
    """The query, and the messages that bring it; raises `QueryError`.

    Takes a text, messages in any form that LangChain knows, a prompt value, or a mapping with
    `query`, `messages`, or both: then the messages are what was said before.
    """
    if isinstance(given, Mapping):
        messages = _messages(given.get("messages") or [])
        if (query := given.get("query")) is not None:
            if not isinstance(query, str):
                raise QueryError(f"the query must be a text, not {type(query).__name__}")
            messages = [*messages, HumanMessage(query)]
    else:
        messages = _messages(given)
    query = next((m.text for m in reversed(messages) if isinstance(m, HumanMessage)), "")
    if not query.strip():
        raise EmptyQueryError
    try:
        query.encode()
    except UnicodeEncodeError:
        raise QueryError("the query holds half of a surrogate pair: it is no text") from None
    return query.strip(), messages


def _messages(given: object) -> list[BaseMessage]:
    if isinstance(given, str):
        return [HumanMessage(given)]
    if isinstance(given, PromptValue):
        return given.to_messages()
    if isinstance(given, BaseMessage):
        return [given]
    if not isinstance(given, Sequence):
        kind = type(given).__name__
        raise QueryError(f"the input must be a text, a mapping or messages, not {kind}")
    try:
        return convert_to_messages(given)
    except (ValueError, TypeError, NotImplementedError):
        raise QueryError("the messages are not of a form that LangChain knows") from None


def history(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """What was said before the query, which is the last human message."""
    at = max((i for i, m in enumerate(messages) if isinstance(m, HumanMessage)), default=0)
    return list(messages[:at])
