"""Middleware for LangChain's `create_agent`: a pool member for each call of an agent's loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
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
from langchain.agents.structured_output import StructuredOutputError
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime
from langgraph.types import Command
from pydantic import TypeAdapter, ValidationError

from r2graph.agent_bill import AgentBill, Tasks, billed, empty_bill, read_bill
from r2graph.allocate import AllocateContext, Allocator, CheapestFirst
from r2graph.bill import total
from r2graph.breaker import Health
from r2graph.calls import Flow, ModelCall, Reply, T, flowing
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
from r2graph.pool import ModelPool, load_pool
from r2graph.pricing import to_text
from r2graph.relay import Relay, as_seen, sent, spoken, tools_of
from r2graph.state import read_context
from r2graph.trajectory import (
    MAX_PATIENCE,
    Move,
    Route,
    digest,
    follow,
    shown,
    tool_failed,
)

_CALLS = 10**9  # the bound on calls is the agent's own: its recursion limit, `ModelCallLimit…`


class R2AgentState(AgentState[ResponseT]):
    """What the middleware adds to the agent's state; the bill is part of the result."""

    r2_route: NotRequired[Annotated[Route | None, OmitFromSchema(input=True, output=True)]]
    r2_bill: NotRequired[Annotated[AgentBill, OmitFromSchema(input=True, output=False)]]


_ROUTE = TypeAdapter(Route)


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
        self._patience = _checked(
            f"patience must be 1 to {MAX_PATIENCE}", patience, 1 <= patience <= MAX_PATIENCE
        )
        self._cached = _share(cached)
        self._min_logprob = _checked("min_logprob must be at most 0", min_logprob, min_logprob <= 0)
        self._ends = exit_behavior == _checked(
            "exit_behavior must be end or error", "end", exit_behavior in ("end", "error")
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
        self._tasks = Tasks()

    def before_agent(
        self, state: R2AgentState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any]:
        """A new run, with a bill of its own; a resumed one does not come by here."""
        return {"r2_route": None, "r2_bill": empty_bill()}

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
        with self._opened(request) as door:
            return drive(self._routed(request, handler, door), door)

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ExtendedModelResponse[ResponseT]:
        """As `wrap_model_call`."""
        with self._opened(request) as door:
            return await adrive(self._routed(request, handler, door), door)

    @hook_config(can_jump_to=["end"])
    def after_model(
        self, state: R2AgentState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any] | None:
        """End the run that has used up its budget, even one that waits for a structured output."""
        return {"jump_to": "end"} if read_bill(state)["stop_reason"] else None

    @hook_config(can_jump_to=["end"])
    async def aafter_model(
        self, state: R2AgentState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any] | None:
        """As `after_model`."""
        return self.after_model(state, runtime)

    @contextmanager
    def _opened(self, request: ModelRequest[ContextT]) -> Iterator[Door]:
        """The door for a call; if its task has made it before, that is on the bill and paid for."""
        info = request.runtime.execution_info
        task = info.task_id if info else ""
        before = self._tasks.take(task)
        spent = Decimal(read_bill(request.state)["cost_usd"]) + total(before)
        door = Door(Meter(self._limits, self._budget, spent=spent), health=self._health)
        door.bill += before
        try:
            yield door
        except R2Error as error:
            error.cost_usd = to_text(door.meter.spent)
            raise
        except GraphBubbleUp:
            door.bill.pop()  # the relay made up a reply
            raise
        finally:
            if task:
                self._tasks.keep(task, door.bill)

    def _routed(
        self, request: ModelRequest[ContextT], handler: Callable[[Any], Any], door: Door
    ) -> Flow[ExtendedModelResponse[ResponseT]]:
        """One call of the agent: choose, ask, observe, and keep the books."""
        left = door.meter.left_usd
        route = self._route(request.state)
        if route is None:
            move = yield from self._started(request, left)
        else:
            signal = tool_failed(request.messages) or route["signal"]
            up = self._above(route["member"], left)
            move = follow(route, signal, self.pool, up, self._cached)
        answer = yield from self._answered(request, handler, move)
        if answer is None and not self._ends:
            raise LimitExceeded("budget")
        bill = billed(read_bill(request.state), door.bill, self.pool[-1].price)
        if answer is None:
            return _ended(bill, door.meter)
        if route is not None and route["member"] != answer.move.member:
            bill["switches"] += 1
        return self._noted(answer, route, bill)

    def _started(self, request: ModelRequest[ContextT], left: Decimal | None) -> Flow[Move]:
        """The member that a run starts on; the cheapest where the allocator fails."""
        cheapest = self.pool.names[0]
        if self._start is not None:
            return Move(self._start, "start", self._patience)
        asked = (m.text for m in reversed(request.messages) if isinstance(m, HumanMessage))
        query = str(next(asked, "")).strip() or "…"
        context = AllocateContext(self.pool, query, self._quality, left)
        try:
            step = Subtask(id="s1", text=query)
            choices = yield from flowing(self._allocator.allocate([step], context))
        except (AllocationError, ModelCallError, LimitExceeded, ValidationError) as error:
            why = f"the allocator failed ({type(error).__name__}): cheapest first"
            return Move(cheapest, why, self._patience)
        return Move(choices[0].member, choices[0].reason, self._patience)

    def _above(self, member: str, left: Decimal | None) -> str | None:
        return self._allocator.escalate(member, AllocateContext(self.pool, "", self._quality, left))

    def _answered(
        self, request: ModelRequest[ContextT], handler: Callable[[Any], Any], move: Move
    ) -> Flow[Answer | None]:
        """The reply of the chosen member or, where it cannot be had, of the next one up, then down.

        A member whose structured output is refused for good, or whose tool calls do not parse, is
        followed by stronger ones alone; if these fail, too, the calls are left to the agent.
        `None`: the budget has room for none of them.
        """
        texts, tools, least = sent(request), tools_of(request), 1
        failure: ModelCallError | StructuredOutputError | None = None
        cause: Exception | None = None
        garbled: Answer | None = None
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
                    as_seen(spec, relay),
                    texts,
                    tools=tools,
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
            answer = Answer(move, relay.outcome, reply)
            if reply.tool_calls or not reply.invalid_tool_calls:
                return answer
            # An agent ends where no call can be read, with an empty answer.
            garbled, least = answer, self.pool.rank(spec.name)
            move = replace(move, reason="tool call does not parse")
        if garbled is not None:
            return garbled
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
            signal=shown(response, reply, said, route, self._min_logprob),
            said=said,
            input_tokens=reply.usage.input_tokens,
            output_tokens=reply.usage.output_tokens,
        )
        result = [noted if each is message else each for each in response.result]
        return ExtendedModelResponse(
            ModelResponse(result=result, structured_response=response.structured_response),
            Command(update={"r2_route": now, "r2_bill": bill}),
        )

    def _route(self, state: Mapping[str, Any]) -> Route | None:
        """Where the run stands; `None` at its beginning, or if its member has left the pool."""
        if (kept := state.get("r2_route")) is None:
            return None
        try:
            route = _ROUTE.validate_python(kept)
        except ValidationError as error:
            raise CheckpointError(first_fault(error)) from None
        return route if route["member"] in self.pool.names else None


def _checked(rule: str, value: T, is_right: bool) -> T:
    if not is_right:
        raise ConfigError(rule)
    return value


def _share(given: object) -> Decimal:
    rule = "cached must be a number from 0 to 1: the price of a cached token over that of another"
    try:
        share = Decimal(str(given))
    except ArithmeticError:
        raise ConfigError(rule) from None
    return _checked(rule, share, share.is_finite() and 0 <= share <= 1)


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
