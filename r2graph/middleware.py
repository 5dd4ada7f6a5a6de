"""Middleware for LangChain's `create_agent`: a pool member for each call of an agent's loop.

How hard a task is shows in the attempt, not in its wording. So a run starts on the cheapest member,
a signal of the trajectory moves it up by one, and several calls in a row without a signal move it
down again, if that saves more than the prompt cache is worth that every switch loses.

The agent's own handler binds tools and schemas; a `Relay` presents it to the `Door` as a chat
model, and so an agent's calls have the reservations, retries, breakers and bill of all others.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from langchain.agents.middleware import (
    AgentMiddleware,
    AgentState,
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
    hook_config,
)
from langchain.agents.middleware.types import ContextT, OmitFromSchema, ResponseT
from langchain.agents.structured_output import (
    AutoStrategy,
    ProviderStrategy,
    StructuredOutputError,
    ToolStrategy,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime
from langgraph.types import Command
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic, for servers' schemas, wants this one

from r2graph.allocate import AllocateContext, Allocator, CheapestFirst
from r2graph.bill import total
from r2graph.breaker import Health
from r2graph.calls import Entry, Flow, ModelCall, Reply, T, flowing
from r2graph.door import Door, adrive, drive
from r2graph.errors import (
    AllocationError,
    CheckpointError,
    ConfigError,
    LimitExceeded,
    ModelCallError,
    R2Error,
    first_fault,
)
from r2graph.limits import Limits, Meter
from r2graph.plan import Subtask
from r2graph.pool import ModelPool, ModelSpec, load_pool
from r2graph.pricing import Money, Price, Usage, to_text
from r2graph.state import MemberUsage, read_context

MAX_PATIENCE = 64
# What an image, a sound or a file may take: no provider says so beforehand.
DATA_TOKENS = 4096
_DATA = frozenset({"image", "image_url", "audio", "input_audio", "video", "file", "document"})
_CALLS = 10**9  # the bound on calls is the agent's own: its recursion limit, `ModelCallLimit…`

Signal = Literal["tool failed", "structured output", "repeated output", "low confidence"]


class Route(TypedDict):
    """Where a run stands, as the state keeps it."""

    member: str
    """Who made the last call."""
    calm: Annotated[int, Field(ge=0)]
    """Calls in a row, on this member, before the last one that showed no signal."""
    patience: Annotated[int, Field(ge=1)]
    """Calls without a signal that a move down takes."""
    fell: bool
    """Whether the last move was down."""
    signal: Signal | None
    """What the last reply showed."""
    said: str
    """A digest of the last reply, to tell a repetition."""
    input_tokens: Annotated[int, Field(ge=0)]
    output_tokens: Annotated[int, Field(ge=0)]


class AgentBill(TypedDict):
    """What a run of an agent cost: the calls of this middleware, failed ones included."""

    usage: dict[str, MemberUsage]
    cost_usd: Money
    counterfactual_usd: Money
    """An estimate: the same replies with the same tokens, all from the strongest member."""
    switches: Annotated[int, Field(ge=0)]
    """How often two calls in a row went to different members."""
    stop_reason: Literal["budget"] | None
    """Why this middleware ended the run, if it did."""


class R2AgentState(AgentState[ResponseT]):
    """What the middleware adds to the agent's state; the bill is part of the result."""

    r2_route: NotRequired[Annotated[Route | None, OmitFromSchema(input=True, output=True)]]
    r2_bill: NotRequired[Annotated[AgentBill, OmitFromSchema(input=True, output=False)]]


_ROUTE = TypeAdapter(Route)
_BILL = TypeAdapter(AgentBill)


@dataclass(frozen=True, slots=True)
class Move:
    """The member for the next call, and why."""

    member: str
    reason: str
    patience: int
    calm: int = 0
    fell: bool = False


def saving(usage: Usage, calls: int, here: Price, there: Price, cached: Decimal) -> Decimal:
    """Dollars that `calls` further calls save `there`, net of the prompt cache lost `here`.

    Each call is taken to be like the last, of `usage`, with its prompt in the cache at the share
    `cached` of the input price; the first call there pays the full price for the prompt.
    """

    def each(price: Price) -> Decimal:
        prompt = price.input_per_mtok * cached * usage.input_tokens
        return prompt + price.output_per_mtok * usage.output_tokens

    lost = there.input_per_mtok * (1 - cached) * usage.input_tokens
    return (calls * (each(here) - each(there)) - lost).scaleb(-6)


def follow(
    route: Route, signal: Signal | None, pool: ModelPool, up: str | None, cached: Decimal
) -> Move:
    """The next move of a run; `up` is whom a signal moves it to, if there is anyone.

    Who fell and was sent back up waits twice as long before the next fall.
    """
    member, patience = route["member"], route["patience"]
    if signal is not None:
        if up is None:
            return Move(member, f"{signal}, and nobody is stronger", patience)
        if route["fell"]:
            patience = min(MAX_PATIENCE, 2 * patience)
        return Move(up, signal, patience)
    calm = route["calm"] + 1
    if calm >= patience and (rank := pool.rank(member)) > 1:
        below = pool[rank - 2]
        usage = Usage(input_tokens=route["input_tokens"], output_tokens=route["output_tokens"])
        # As many calls as went by without a signal may well follow.
        saved = saving(usage, calm, pool[member].price, below.price, cached)
        if saved > 0:
            return Move(below.name, f"{calm} calls without a signal", patience, fell=True)
    return Move(member, "no signal", patience, calm, route["fell"])


def tool_failed(messages: Sequence[BaseMessage]) -> Signal | None:
    """Whether one of the tool results since the model last spoke is an error."""
    for message in reversed(messages):
        if not isinstance(message, ToolMessage):
            break
        if message.status == "error":
            return "tool failed"
    return None


def digest(message: AIMessage) -> str:
    """Tells what a reply says or does: its tool calls where it has any, else its text."""
    calls = [[call["name"], call["args"]] for call in message.tool_calls]
    if not (said := calls or str(message.text).strip()):
        return ""
    return sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Relay(BaseChatModel):
    """A member as the `Door` sees it: to ask it is to ask the agent's handler with that member.

    The handler's response, or the error with which it refused one that had come, is in `outcome`.
    """

    target: ModelSpec
    request: Any
    """LangChain's `ModelRequest`; its classes are generic dataclasses that Pydantic cannot read."""
    handler: Callable[[Any], Any]
    is_capped: bool
    outcome: Any = None
    error: Exception | None = None
    """What the last call raised."""

    @property
    def _llm_type(self) -> str:
        return "r2-relay"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise NotImplementedError  # LangChain would report a second run of a model

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **options: Any,
    ) -> AIMessage:
        """What the member replies."""
        try:
            return self._keep(self.handler(self._asked(options["max_tokens"])))
        except Exception as error:  # noqa: BLE001 - sorted there
            return self._refused(error)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **options: Any,
    ) -> AIMessage:
        """As `invoke`."""
        try:
            return self._keep(await self.handler(self._asked(options["max_tokens"])))
        except Exception as error:  # noqa: BLE001
            return self._refused(error)

    def _asked(self, max_tokens: int) -> ModelRequest[Any]:
        settings = self.request.model_settings
        if self.is_capped:
            settings = {**settings, "max_tokens": max_tokens}
        asked: ModelRequest[Any] = self.request.override(
            model=self.target.chat, model_settings=settings
        )
        return asked

    def _keep(self, response: ModelResponse[Any]) -> AIMessage:
        self.outcome = response
        return spoken(response)

    def _refused(self, error: Exception) -> AIMessage:
        """Raise what failed; what is not the member's failure waits in `outcome`."""
        if isinstance(error, StructuredOutputError):  # it was answered, and is billed
            self.outcome = error
            return error.ai_message
        if isinstance(error, GraphBubbleUp):  # an interrupt of another middleware
            self.outcome = error
            return AIMessage("")
        self.error = error
        raise error


def spoken(response: ModelResponse[Any]) -> AIMessage:
    """The model's message; an empty one if another middleware has taken it out."""
    said = [message for message in response.result if isinstance(message, AIMessage)]
    return said[-1] if said else AIMessage("")


def sent(request: ModelRequest[Any]) -> list[BaseMessage]:
    """All that a request sends, as texts: `worst_usage` counts their bytes."""
    first = [request.system_message] if request.system_message else []
    messages = [*first, *request.messages]
    rest = [part for message in messages for part in _beside_text(message)]
    rest += [
        _text(convert_to_openai_tool(t) if isinstance(t, BaseTool) else t) for t in request.tools
    ]
    rest += [_text([spec.name, spec.description, spec.json_schema]) for spec in _schemas(request)]
    return [*messages, *(HumanMessage(part) for part in rest)]


def _beside_text(message: BaseMessage) -> Iterator[str]:
    """Tool calls, images and other parts of a message that are not its text."""
    if isinstance(message, AIMessage) and message.tool_calls:
        yield _text(message.tool_calls)
    for block in message.content if isinstance(message.content, list) else ():
        if isinstance(block, dict) and block.get("type") != "text":
            yield " " * DATA_TOKENS if block.get("type") in _DATA else _text(block)


def _schemas(request: ModelRequest[Any]) -> list[Any]:
    """How LangChain describes the structured output."""
    form: Any = request.response_format  # another middleware may put a bare schema there
    match form:
        case None:
            return []
        case ToolStrategy() as tools:
            return list(tools.schema_specs)
        case ProviderStrategy() as native:
            return [native.schema_spec]
        case AutoStrategy(schema=schema):
            return list(ToolStrategy(schema).schema_specs)
        case schema:
            return list(ToolStrategy(schema).schema_specs)


def _text(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call: who answered, why they were asked, and what they said."""

    move: Move
    response: ModelResponse[Any]
    reply: Reply


class R2RouterMiddleware(AgentMiddleware[R2AgentState[ResponseT], ContextT, ResponseT]):
    """Gives each model call of an agent to the cheapest member of a pool that gets on with it.

    A run starts on the cheapest member, on `start`, or where `allocator` (a trained router's) puts
    the user's message at `quality`. It moves up by one member after a signal: a tool failed, the
    structured output did not parse, the model repeated itself, or its mean token log-probability,
    where the member reports one, was below `min_logprob`. It moves down by one after `patience`
    calls in a row without a signal, if that saves more than the prompt cache lost; `cached` is what
    cached input costs, as a share of the input price. A member that is down is passed over.

    `budget_usd` is for each run. A call is made only if its worst case fits what is left, else a
    cheaper member is asked; if none fits, the run ends with a message that says so, or raises
    `LimitExceeded` with `exit_behavior="error"`. With a budget each call is bound to
    `max_output_tokens`. A tried call takes at most `call_timeout_s` and is tried again at most
    `max_retries` times where the provider limits the rate or fails.

    The result has `r2_bill`, an `AgentBill`; each message's `response_metadata["r2"]` says which
    member wrote it, why, and for how much. Put it after middleware that changes the prompt, and
    before middleware for one provider, so that this one sees the member that was chosen.
    """

    state_schema = R2AgentState  # type: ignore[assignment] # as LangChain's own do

    def __init__(
        self,
        pool: ModelPool | str | Path,
        *,
        start: str | None = None,
        allocator: Allocator | None = None,
        quality: float = 0.9,
        budget_usd: Decimal | float | str | None = None,
        patience: int = 3,
        cached: Decimal | float | str = "0.1",
        min_logprob: float = -0.7,
        max_output_tokens: int = 4096,
        call_timeout_s: float = 60.0,
        max_retries: int = 2,
        exit_behavior: Literal["end", "error"] = "end",
    ) -> None:
        super().__init__()
        self.pool = pool if isinstance(pool, ModelPool) else load_pool(pool)
        if start is not None:
            self.pool.rank(start)
            if allocator is not None:
                raise ConfigError("a run starts on `start` or where `allocator` says: give one")
        settings = read_context({"quality": quality, "budget_usd": budget_usd})
        self._quality, self._budget = float(quality), settings.budget_usd
        self._start = start
        self._allocator = allocator or CheapestFirst()
        self._patience = _checked("patience", patience, 1 <= patience <= MAX_PATIENCE)
        self._cached = _checked("cached", Decimal(str(cached)), 0 <= Decimal(str(cached)) <= 1)
        self._min_logprob = _checked("min_logprob", min_logprob, min_logprob <= 0)
        self._ends = exit_behavior == _checked(
            "exit_behavior", "end", exit_behavior in ("end", "error")
        )
        try:
            self._limits = Limits(
                max_calls=_CALLS,
                deadline_s=call_timeout_s * (max_retries + len(self.pool)),  # of one call
                call_timeout_s=call_timeout_s,
                max_retries=max_retries,
                max_output_tokens=max_output_tokens,
            )
        except ValidationError as error:
            raise ConfigError(first_fault(error)) from None
        self._health = Health(self.pool.names)

    def before_agent(
        self, state: R2AgentState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any]:
        """A new run, with a bill of its own; a resumed one does not come by here."""
        return {"r2_route": None, "r2_bill": _empty()}

    async def abefore_agent(
        self, state: R2AgentState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any]:
        """As `before_agent`."""
        return self.before_agent(state, runtime)

    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ExtendedModelResponse[ResponseT]:
        """Make the call on the member of choice. Raises `ModelCallError` if none can be reached."""
        door = self._door(request)
        return drive(self._routed(request, handler, door), door)

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ExtendedModelResponse[ResponseT]:
        """As `wrap_model_call`."""
        door = self._door(request)
        return await adrive(self._routed(request, handler, door), door)

    @hook_config(can_jump_to=["end"])
    def after_model(
        self, state: R2AgentState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any] | None:
        """End the run that has used up its budget, even one that waits for a structured output."""
        return {"jump_to": "end"} if _bill(state)["stop_reason"] else None

    @hook_config(can_jump_to=["end"])
    async def aafter_model(
        self, state: R2AgentState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any] | None:
        """As `after_model`."""
        return self.after_model(state, runtime)

    def _door(self, request: ModelRequest[ContextT]) -> Door:
        spent = Decimal(_bill(request.state)["cost_usd"])
        return Door(Meter(self._limits, self._budget, spent=spent), health=self._health)

    def _routed(
        self, request: ModelRequest[ContextT], handler: Callable[[Any], Any], door: Door
    ) -> Flow[ExtendedModelResponse[ResponseT]]:
        """One call of the agent: choose, ask, observe, and keep the books."""
        try:
            route = self._route(request.state)
            if route is None:
                move = yield from self._started(request, door)
            else:
                signal = tool_failed(request.messages) or route["signal"]
                move = follow(route, signal, self.pool, self._above(route["member"]), self._cached)
            answer = yield from self._answered(request, handler, move)
            if answer is None and not self._ends:
                raise LimitExceeded("budget")
        except R2Error as error:
            error.cost_usd = to_text(door.meter.spent)
            raise
        bill = self._billed(request.state, door.bill)
        if answer is None:
            return _ended(bill, door.meter)
        if route is not None and route["member"] != answer.move.member:
            bill["switches"] += 1
        return self._noted(answer, route, bill)

    def _started(self, request: ModelRequest[ContextT], door: Door) -> Flow[Move]:
        """The member that a run starts on; the cheapest where the allocator fails."""
        cheapest = self.pool.names[0]
        if self._start is not None:
            return Move(self._start, "start", self._patience)
        asked = (m.text for m in reversed(request.messages) if isinstance(m, HumanMessage))
        query = str(next(asked, "")).strip() or "…"
        context = AllocateContext(self.pool, query, self._quality, door.meter.left_usd)
        try:
            step = Subtask(id="s1", text=query)
            choices = yield from flowing(self._allocator.allocate([step], context))
        except (AllocationError, ModelCallError, LimitExceeded, ValidationError) as error:
            why = f"the allocator failed ({type(error).__name__}): cheapest first"
            return Move(cheapest, why, self._patience)
        return Move(choices[0].member, choices[0].reason, self._patience)

    def _above(self, member: str) -> str | None:
        return self._allocator.escalate(
            member, AllocateContext(self.pool, "", self._quality, self._budget)
        )

    def _answered(
        self, request: ModelRequest[ContextT], handler: Callable[[Any], Any], move: Move
    ) -> Flow[Answer | None]:
        """The reply of the chosen member or, where it cannot be had, of the next one up, then down.

        A member whose structured output is refused for good is followed by stronger ones alone.
        `None`: the budget has room for none of them.
        """
        texts, least = sent(request), 1
        failure: ModelCallError | StructuredOutputError | None = None
        cause: Exception | None = None
        for spec in [self.pool[move.member], *self.pool.others(move.member)]:
            if self.pool.rank(spec.name) < least:
                continue
            relay = Relay(
                target=spec,
                request=request,
                handler=handler,
                is_capped=self._budget is not None,
            )
            try:
                reply = yield ModelCall(
                    "executor",
                    _as_seen(spec, relay),
                    texts,
                    max_tokens=request.model_settings.get("max_tokens"),
                )
            except ModelCallError as error:
                failure, cause = error, relay.error
                move = replace(move, reason=f"{spec.name} failed: {error.kind}")
                continue
            except LimitExceeded as limit:
                if limit.limit != "budget":
                    raise failure or limit from None
                move = replace(move, reason=f"the budget has no room for {spec.name}")
                continue
            if isinstance(relay.outcome, GraphBubbleUp):
                raise relay.outcome
            if isinstance(relay.outcome, StructuredOutputError):
                failure, least = relay.outcome, self.pool.rank(spec.name)
                move = replace(move, reason="structured output")
                continue
            if spec.name != move.member:
                move = Move(spec.name, move.reason, move.patience)
            return Answer(move, relay.outcome, reply)
        if isinstance(failure, ModelCallError) and failure.kind == "other":
            raise failure from cause  # it may be a fault in the user's own code
        if failure is not None:
            raise failure
        return None

    def _noted(
        self, answer: Answer, route: Route | None, bill: AgentBill
    ) -> ExtendedModelResponse[ResponseT]:
        """The response, with the note on its message and the change of the state."""
        move, response, reply = answer.move, answer.response, answer.reply
        message = spoken(response)
        said = digest(message)
        note = {"member": move.member, "reason": move.reason, "cost_usd": to_text(reply.cost)}
        noted = message.model_copy(
            update={"response_metadata": {**message.response_metadata, "r2": note}}
        )
        now = Route(
            member=move.member,
            calm=move.calm,
            patience=move.patience,
            fell=move.fell,
            signal=self._signal(response, reply, said, route),
            said=said,
            input_tokens=reply.usage.input_tokens,
            output_tokens=reply.usage.output_tokens,
        )
        result = [noted if each is message else each for each in response.result]
        return ExtendedModelResponse(
            ModelResponse(result=result, structured_response=response.structured_response),
            Command(update={"r2_route": now, "r2_bill": bill}),
        )

    def _signal(
        self, response: ModelResponse[Any], reply: Reply, said: str, route: Route | None
    ) -> Signal | None:
        """What a reply shows at once; whether a tool failed shows before the next call."""
        corrected = any(isinstance(message, ToolMessage) for message in response.result)
        if corrected and response.structured_response is None:
            return "structured output"
        if route is not None and said and said == route["said"]:
            return "repeated output"
        if reply.mean_logprob is not None and reply.mean_logprob < self._min_logprob:
            return "low confidence"
        return None

    def _route(self, state: Mapping[str, Any]) -> Route | None:
        """Where the run stands; `None` at its beginning, or if its member has left the pool."""
        if (kept := state.get("r2_route")) is None:
            return None
        try:
            route = _ROUTE.validate_python(kept)
        except ValidationError as error:
            raise CheckpointError(first_fault(error)) from None
        return route if route["member"] in self.pool.names else None

    def _billed(self, state: Mapping[str, Any], entries: Sequence[Entry]) -> AgentBill:
        """The bill with these calls on it."""
        bill = _bill(state)
        strongest, reference = self.pool[-1].price, Decimal(bill["counterfactual_usd"])
        for entry in entries:
            usage = Usage(input_tokens=entry["input_tokens"], output_tokens=entry["output_tokens"])
            if entry["ok"] and entry["role"] == "executor":
                reference += strongest.cost(usage)
            bill["usage"][entry["member"]] = _plus(bill["usage"].get(entry["member"]), entry)
        bill["counterfactual_usd"] = to_text(reference)
        bill["cost_usd"] = to_text(Decimal(bill["cost_usd"]) + total(entries))
        return bill


def _checked(name: str, value: T, is_right: bool) -> T:
    if not is_right:
        raise ConfigError(f"{name} is out of range")
    return value


def _as_seen(spec: ModelSpec, relay: Relay) -> ModelSpec:
    """The member with the relay in the place of its chat model."""
    return ModelSpec(
        name=spec.name,
        model=relay,
        price=spec.price,
        context_length=spec.context_length,
        tags=spec.tags | ({"local"} if spec.is_local else set()),
    )


def _empty() -> AgentBill:
    return AgentBill(usage={}, cost_usd="0", counterfactual_usd="0", switches=0, stop_reason=None)


def _bill(state: Mapping[str, Any]) -> AgentBill:
    """A copy of the bill so far."""
    try:
        bill = _BILL.validate_python(state.get("r2_bill") or _empty())
    except ValidationError as error:
        raise CheckpointError(first_fault(error)) from None
    return {**bill, "usage": dict(bill["usage"])}


def _plus(usage: MemberUsage | None, entry: Entry) -> MemberUsage:
    one = MemberUsage(
        input_tokens=entry["input_tokens"],
        output_tokens=entry["output_tokens"],
        calls=1,
        cost_usd=entry["cost_usd"],
    )
    if usage is None:
        return one
    return MemberUsage(
        input_tokens=usage["input_tokens"] + one["input_tokens"],
        output_tokens=usage["output_tokens"] + one["output_tokens"],
        calls=usage["calls"] + 1,
        cost_usd=to_text(Decimal(usage["cost_usd"]) + Decimal(one["cost_usd"])),
    )


def _ended(bill: AgentBill, meter: Meter) -> ExtendedModelResponse[Any]:
    """The end of a run whose budget has no room for another call."""
    text = (
        f"I stopped here: this run has used ${to_text(meter.spent)} of its budget of "
        f"${to_text(meter.budget or Decimal(0))}, and the next step could have passed it."
    )
    note = {"member": None, "reason": "budget", "cost_usd": "0"}
    message = AIMessage(text, response_metadata={"r2": note})
    return ExtendedModelResponse(
        ModelResponse(result=[message]),
        Command(update={"r2_bill": {**bill, "stop_reason": "budget"}}),
    )
