"""The middleware for `create_agent`: a member for each call, from what the trajectory shows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelRequest,
    ModelRetryMiddleware,
    SummarizationMiddleware,
)
from langchain.agents.structured_output import (
    AutoStrategy,
    ProviderStrategy,
    StructuredOutputValidationError,
    ToolStrategy,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    ToolMessage,
    UsageMetadata,
)
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import ToolException, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Command, interrupt
from pydantic import BaseModel, Field

from r2graph import ConfigError, LimitExceeded, ModelCallError, R2RouterMiddleware
from r2graph.agent_bill import MAX_TASKS, Tasks
from r2graph.allocate import AllocateContext, CheapestFirst, CheckpointAllocator, Choice
from r2graph.calls import Entry, ModelCall, worst_usage
from r2graph.pool import ModelPool
from r2graph.pricing import Price, Usage
from r2graph.relay import sent, tools_of
from r2graph.trajectory import MAX_PATIENCE, Route, follow, saving
from tests.conftest import Figure
from tests.fakes import ProviderError, member, pool_of, scripted

Said = AIMessage | str | Exception


class AgentChat(BaseChatModel):
    """Says what a function of the messages gives it; one token is one word of text.

    `requests` holds the messages of each request, and `options` what it came with.
    """

    reply: Callable[[Sequence[BaseMessage]], Said]
    logprob: float | None = None
    delay_s: float = 0.0
    requests: list[list[BaseMessage]] = Field(default_factory=list)
    options: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "agent-fake"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self.bind(tools=[each.name for each in tools], **kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        time.sleep(self.delay_s)
        self.requests.append(messages)
        self.options.append(options)
        said = self.reply(messages)
        if isinstance(said, Exception):
            raise said
        message = AIMessage(said) if isinstance(said, str) else said.model_copy()
        sent = sum(len(str(m.text).split()) for m in messages)
        made = len(str(message.text).split()) + 5 * len(message.tool_calls)
        message.usage_metadata = UsageMetadata(
            input_tokens=sent, output_tokens=made, total_tokens=sent + made
        )
        if self.logprob is not None:
            message.response_metadata = {"logprobs": {"content": [{"logprob": self.logprob}]}}
        return ChatResult(generations=[ChatGeneration(message=message)])


def calling(name: str, text: str = "", **args: Any) -> AIMessage:
    """A message that calls a tool; ids differ as the arguments do."""
    call = {"name": name, "args": args, "id": json.dumps([name, args]), "type": "tool_call"}
    return AIMessage(text, tool_calls=[call])


def saying(*script: Said, **fields: Any) -> AgentChat:
    """A model that says these one after the other, and the last one from then on."""
    left = list(script)
    return AgentChat(reply=lambda _: left.pop(0) if len(left) > 1 else left[0], **fields)


def results(messages: Sequence[BaseMessage]) -> list[ToolMessage]:
    return [message for message in messages if isinstance(message, ToolMessage)]


@tool
def look(at: int) -> str:
    """Looks at something."""
    return f"seen {at}"


@tool
def fail(at: int) -> str:
    """Fails."""
    raise ToolException(f"no {at}")


fail.handle_tool_error = True
ENTRY = Entry(
    role="executor",
    member="m1",
    step=None,
    input_tokens=1,
    output_tokens=1,
    cost_usd="0.1",
    local=False,
    ok=False,
)
ASK = {"messages": [{"role": "user", "content": "do it"}]}


def walker(steps: int) -> AgentChat:
    """A model that looks at 0, 1, 2 … and is then done."""

    def reply(messages: Sequence[BaseMessage]) -> Said:
        done = len(results(messages))
        return calling("look", at=done) if done < steps else "done"

    return AgentChat(reply=reply)


def agent(middleware: R2RouterMiddleware[Any, Any], *others: Any, **options: Any) -> Any:
    """An agent on a model that would fail: the middleware has to choose another."""
    return create_agent(
        saying(AssertionError("the agent's own model was asked")),
        [look, fail],
        middleware=[*others, middleware],
        **options,
    )


def route(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Who wrote each message, and why."""
    notes = [m.response_metadata["r2"] for m in result["messages"] if isinstance(m, AIMessage)]
    return [(note["member"], note["reason"]) for note in notes]


def members(result: dict[str, Any]) -> list[str]:
    return [name for name, _ in route(result)]


# Which member.


def test_a_run_without_signals_stays_on_the_cheapest_member() -> None:
    result = agent(R2RouterMiddleware(pool_of(walker(3), walker(3)))).invoke(ASK)
    assert result["messages"][-1].text == "done"
    assert route(result) == [("m1", "cheapest first"), *[("m1", "no signal")] * 3]


async def test_an_async_run_goes_the_same_way() -> None:
    pool = pool_of(saying(calling("fail", at=1), "?"), walker(1))
    result = await agent(R2RouterMiddleware(pool)).ainvoke(ASK)
    assert route(result) == [("m1", "cheapest first"), ("m2", "tool failed")]


def test_a_failed_tool_moves_the_run_up() -> None:
    pool = pool_of(saying(calling("fail", at=1), "?"), saying("done"))
    assert members(agent(R2RouterMiddleware(pool)).invoke(ASK)) == ["m1", "m2"]


def test_the_same_tool_call_again_moves_the_run_up() -> None:
    pool = pool_of(saying(calling("look", at=1)), saying("done"))
    result = agent(R2RouterMiddleware(pool)).invoke(ASK)
    assert route(result)[2] == ("m2", "repeated output")


def test_the_same_tool_with_other_arguments_is_no_repetition() -> None:
    again = "let me look"
    cheap = saying(calling("look", again, at=1), calling("look", again, at=2), "done")
    assert members(agent(R2RouterMiddleware(pool_of(cheap, saying("?")))).invoke(ASK)) == ["m1"] * 3


def test_low_confidence_moves_the_run_up() -> None:
    pool = pool_of(saying(calling("look", at=1), logprob=-0.8), saying("done", logprob=-0.8))
    assert route(agent(R2RouterMiddleware(pool)).invoke(ASK))[1] == ("m2", "low confidence")
    sure = pool_of(saying(calling("look", at=1), "done", logprob=-0.6), saying("?"))
    assert members(agent(R2RouterMiddleware(sure)).invoke(ASK)) == ["m1", "m1"]


class Verdict(BaseModel):
    """A verdict."""

    right: bool


def test_a_structured_output_that_does_not_parse_moves_the_run_up() -> None:
    pool = pool_of(
        saying(calling("Verdict", right="maybe")), saying(calling("Verdict", right=True))
    )
    result = agent(R2RouterMiddleware(pool), response_format=ToolStrategy(Verdict)).invoke(ASK)
    assert route(result) == [("m1", "cheapest first"), ("m2", "structured output")]
    assert result["structured_response"] == Verdict(right=True)


def test_a_structured_output_that_is_refused_for_good_is_asked_of_a_stronger_member() -> None:
    pool = pool_of(saying("?"), saying("??"), saying('{"right": true}'))
    asked = agent(R2RouterMiddleware(pool, start="m2"), response_format=ProviderStrategy(Verdict))
    result = asked.invoke(ASK)
    assert route(result) == [("m3", "structured output")]
    assert result["structured_response"] == Verdict(right=True)
    assert {name: use["calls"] for name, use in result["r2_bill"]["usage"].items()} == {
        "m2": 1,
        "m3": 1,
    }


def test_where_nobody_writes_the_structured_output_the_error_is_langchains_own() -> None:
    pool = pool_of(saying("?"), saying("?"))
    asked = agent(R2RouterMiddleware(pool), response_format=ProviderStrategy(Verdict))
    with pytest.raises(StructuredOutputValidationError):
        asked.invoke(ASK)


def garbled(name: str) -> AIMessage:
    """A call whose arguments are no JSON."""
    call = InvalidToolCall(name=name, args="{", id="1", error=None, type="invalid_tool_call")
    return AIMessage("", invalid_tool_calls=[call])


def test_a_call_that_does_not_parse_is_asked_of_a_stronger_member() -> None:
    pool = pool_of(saying(garbled("look")), saying(calling("look", at=1), "done"))
    result = agent(R2RouterMiddleware(pool)).invoke(ASK)
    assert route(result)[0] == ("m2", "tool call does not parse")
    assert result["messages"][-1].text == "done"
    assert result["r2_bill"]["usage"]["m1"]["calls"] == 1


def test_where_nobodys_calls_parse_they_are_left_to_the_agent() -> None:
    pool = pool_of(saying(garbled("look")), saying(garbled("look")))
    last = agent(R2RouterMiddleware(pool)).invoke(ASK)["messages"][-1]
    assert [call["name"] for call in last.invalid_tool_calls] == ["look"]


def test_at_the_strongest_member_a_signal_is_noted_and_nothing_else() -> None:
    pool = pool_of(saying(calling("fail", at=1), calling("fail", at=2), "done"))
    reason = "tool failed, and nobody is stronger"
    assert route(agent(R2RouterMiddleware(pool)).invoke(ASK))[1:] == [("m1", reason)] * 2


def test_a_run_starts_where_it_is_told_to() -> None:
    pool = pool_of(saying("?"), saying("done"), saying("?"))
    assert route(agent(R2RouterMiddleware(pool, start="m2")).invoke(ASK)) == [("m2", "start")]


def test_a_trained_allocator_chooses_the_start_and_is_on_the_bill() -> None:
    chooser = member("chooser", scripted("m9"))
    pool = pool_of(saying("?"), saying("done"))
    router = R2RouterMiddleware(pool, allocator=CheckpointAllocator(chooser), quality=0.8)
    result = agent(router).invoke(ASK)
    assert route(result) == [("m2", "router, quality level 8")]
    assert set(result["r2_bill"]["usage"]) == {"chooser", "m2"}


def test_an_allocator_that_fails_leaves_the_start_to_the_cheapest() -> None:
    chooser = member("chooser", scripted("I would take the first"))
    router = R2RouterMiddleware(
        pool_of(saying("done"), saying("?")), allocator=CheckpointAllocator(chooser)
    )
    why = "the allocator failed (AllocationError): cheapest first"
    assert route(agent(router).invoke(ASK)) == [("m1", why)]


# Down again.


def at(name: str, **fields: Any) -> Route:
    """A run that has just had a call of 1,000 tokens in and 100 out."""
    defaults: dict[str, Any] = {"calm": 0, "patience": 3, "fell": False, "signal": None, "said": ""}
    return Route(member=name, input_tokens=1000, output_tokens=100, **defaults | fields)


POOL = pool_of(saying("?"), saying("?"), saying("?"))
CACHED = Decimal("0.1")


def test_a_run_moves_down_after_several_calls_without_a_signal_and_not_before() -> None:
    assert follow(at("m2", calm=1), None, POOL, "m3", CACHED).member == "m2"
    move = follow(at("m2", calm=2), None, POOL, "m3", CACHED)
    assert (move.member, move.reason, move.fell) == ("m1", "3 calls without a signal", True)
    assert follow(at("m1", calm=9), None, POOL, "m2", CACHED).member == "m1"


def test_a_run_does_not_move_down_to_save_less_than_the_lost_cache() -> None:
    near = ModelPool(
        name="near", members=(member("m1", saying("?")), member("m2", saying("?"), "1.2"))
    )
    assert follow(at("m2", calm=2), None, near, None, CACHED).member == "m2"
    # Without caches there is nothing to lose, and after many calm calls more of them are likely.
    assert follow(at("m2", calm=2), None, near, None, Decimal(1)).member == "m1"
    assert follow(at("m2", calm=49), None, near, None, CACHED).member == "m1"


def test_who_fell_and_came_back_waits_twice_as_long() -> None:
    first = follow(at("m1", fell=True), "tool failed", POOL, "m2", CACHED)
    assert (first.member, first.patience, first.fell) == ("m2", 6, False)
    assert follow(at("m1"), "tool failed", POOL, "m2", CACHED).patience == 3
    last = follow(at("m1", fell=True, patience=MAX_PATIENCE), "tool failed", POOL, "m2", CACHED)
    assert last.patience == MAX_PATIENCE


def price(dollars_in: str, dollars_out: str) -> Price:
    return Price(input_per_mtok=Decimal(dollars_in), output_per_mtok=Decimal(dollars_out))


def test_a_switch_saves_the_difference_of_each_call_less_the_prompt_read_anew() -> None:
    usage = Usage(input_tokens=20_000, output_tokens=200)
    # Each call here .1 * 10 * 20,000 + 40 * 200 = 28,000 millionths, there 2,800; 18,000 are lost.
    assert saving(usage, 1, price("10", "40"), price("1", "4"), CACHED) == Decimal("0.0072")
    assert saving(usage, 3, price("10", "40"), price("1", "4"), CACHED) == Decimal("0.0576")
    assert saving(usage, 1, price("2", "8"), price("1", "4"), CACHED) == Decimal("-0.0152")


def test_a_switch_to_a_dearer_member_saves_nothing() -> None:
    usage = Usage(input_tokens=1000, output_tokens=10)
    assert saving(usage, 100, price("1", "1"), price("2", "2"), CACHED) < 0


def switches(patience: int, cached: Decimal, seed: int) -> int:
    """How often a run of 200 calls changes members; one call in five is too hard for m1."""
    draw, state, changed = Random(seed), at("m1", patience=patience), 0
    for _ in range(200):
        hard = draw.random() < 0.2
        signal = "tool failed" if hard and state["member"] == "m1" else None
        up = None if state["member"] == "m2" else "m2"
        move = follow(state, signal, POOL, up, cached)
        changed += move.member != state["member"]
        if cached == 1:  # without hysteresis it waits no longer after a fall
            move = type(move)(move.member, move.reason, patience, move.calm, move.fell)
        state = at(move.member, calm=move.calm, patience=move.patience, fell=move.fell)
    return changed


def test_hysteresis_keeps_a_run_from_bouncing(figure: Figure) -> None:
    with_it = sum(switches(3, CACHED, seed) for seed in range(20)) / 20
    without = sum(switches(1, Decimal(1), seed) for seed in range(20)) / 20
    figure("agent, 200 calls: switches with and without hysteresis", f"{with_it} and {without}")
    assert with_it * 4 < without


# Money.


def test_the_bill_of_a_run_is_in_its_result() -> None:
    pool = pool_of(saying(calling("fail", at=1)), saying("done at last"))
    result = agent(R2RouterMiddleware(pool)).invoke(ASK)
    assert result["r2_bill"] == {
        "usage": {
            "m1": {"input_tokens": 2, "output_tokens": 5, "calls": 1, "cost_usd": "0.000007"},
            "m2": {"input_tokens": 4, "output_tokens": 3, "calls": 1, "cost_usd": "0.00007"},
        },
        "cost_usd": "0.000077",
        "counterfactual_usd": "0.00014",
        "switches": 1,
        "stop_reason": None,
    }
    assert result["messages"][-1].response_metadata["r2"] == {
        "member": "m2",
        "reason": "tool failed",
        "cost_usd": "0.00007",
    }


@pytest.mark.parametrize("millionths", [0, 100, 400, 1_000, 3_000, 10_000])
def test_no_run_passes_its_budget(millionths: int) -> None:
    budget = Decimal(millionths).scaleb(-6)
    pool = pool_of(walker(20), walker(20), walker(20))
    router = R2RouterMiddleware(pool, budget_usd=budget, max_output_tokens=50, start="m3")
    result = agent(router).invoke(ASK)
    assert Decimal(result["r2_bill"]["cost_usd"]) <= budget


def test_a_member_that_the_budget_has_no_room_for_gives_way_to_a_cheaper_one() -> None:
    pool = pool_of(saying("done"), saying("?"), saying("?"))
    router = R2RouterMiddleware(pool, budget_usd="0.002", max_output_tokens=50, start="m3")
    assert route(agent(router).invoke(ASK)) == [("m1", "the budget has no room for m2")]


def test_a_run_without_money_ends_with_a_message_that_says_so() -> None:
    pool = pool_of(walker(100))
    router = R2RouterMiddleware(pool, budget_usd="0.001", max_output_tokens=50)
    result = agent(router).invoke(ASK)
    assert "budget of $0.001" in result["messages"][-1].text
    assert result["messages"][-1].response_metadata["r2"]["reason"] == "budget"
    assert result["r2_bill"]["stop_reason"] == "budget"


def test_a_run_that_waits_for_a_structured_output_ends_with_its_budget_too() -> None:
    router = R2RouterMiddleware(pool_of(saying("?")), budget_usd=0)
    waiting = create_agent(
        saying("?"),
        middleware=[ModelCallLimitMiddleware(run_limit=9), router],
        response_format=ToolStrategy(Verdict),
    )
    result = waiting.invoke(ASK)
    assert len(result["messages"]) == 2
    assert result["structured_response"] is None


def test_a_run_without_money_can_end_with_an_error() -> None:
    router = R2RouterMiddleware(pool_of(walker(9)), budget_usd=0, exit_behavior="error")
    with pytest.raises(LimitExceeded) as caught:
        agent(router).invoke(ASK)
    assert (caught.value.limit, caught.value.cost_usd) == ("budget", "0")


def test_with_a_budget_each_call_is_bound_and_without_one_it_is_as_the_agent_made_it() -> None:
    free, bound = saying("done"), saying("done")
    agent(R2RouterMiddleware(pool_of(free))).invoke(ASK)
    agent(R2RouterMiddleware(pool_of(bound), budget_usd=1, max_output_tokens=7)).invoke(ASK)
    assert "max_tokens" not in free.options[0]
    assert bound.options[0]["max_tokens"] == 7


def test_tools_and_their_calls_count_towards_the_worst_case() -> None:
    @tool
    def long(text: str) -> str:
        """Takes a long text."""
        return "ok"

    def reply(messages: Sequence[BaseMessage]) -> Said:
        return "done" if results(messages) else calling("long", text="x" * 5000)

    # The first call's worst case is some 700 tokens; the second sends a call of 5,000 bytes more.
    router = R2RouterMiddleware(
        pool_of(AgentChat(reply=reply)), budget_usd="0.003", max_output_tokens=50
    )
    result = create_agent(saying("?"), [long], middleware=[router]).invoke(ASK)
    assert result["r2_bill"]["stop_reason"] == "budget"
    assert len(results(result["messages"])) == 1


async def invoked(agent: Any, mode: str, *args: Any) -> dict[str, Any]:
    return dict(await agent.ainvoke(*args) if mode == "async" else agent.invoke(*args))


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_what_a_failed_call_cost_is_told_and_counts_when_the_run_is_resumed(
    mode: str,
) -> None:
    chat = saying(calling("look", at=1), TimeoutError(), calling("look", at=2), "done")
    router = R2RouterMiddleware(pool_of(chat), budget_usd=1, max_output_tokens=50)
    asked = agent(router, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    with pytest.raises(ModelCallError) as caught:
        await invoked(asked, mode, ASK, config)
    kept = asked.get_state(config).values["r2_bill"]["cost_usd"]
    assert Decimal(caught.value.cost_usd or 0) > Decimal(kept) > 0
    result = await invoked(asked, mode, None, config)
    assert result["r2_bill"]["usage"]["m1"]["calls"] == 4
    answers = [m.response_metadata["r2"]["cost_usd"] for m in result["messages"][1::2]]
    rest = sum(map(Decimal, answers[1:]), Decimal(caught.value.cost_usd or 0))
    assert Decimal(result["r2_bill"]["cost_usd"]) == rest


def test_a_resumed_run_does_not_spend_again_what_a_failed_call_has_spent() -> None:
    router = R2RouterMiddleware(
        pool_of(saying(TimeoutError(), "done")), budget_usd="0.0006", max_output_tokens=50
    )
    asked = agent(router, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    with pytest.raises(ModelCallError) as caught:
        asked.invoke(ASK, config)
    bill = asked.invoke(None, config)["r2_bill"]
    assert (bill["stop_reason"], bill["cost_usd"]) == ("budget", caught.value.cost_usd)


def test_a_call_that_other_middleware_makes_again_is_on_the_bill_each_time() -> None:
    class Twice(AgentMiddleware):
        def wrap_model_call(self, request: ModelRequest, handler: Any) -> Any:
            handler(request)
            return handler(request)

    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0)
    shaky = saying(TimeoutError(), "done")
    for other, chat in ((retry, shaky), (Twice(), saying("done"))):
        result = agent(R2RouterMiddleware(pool_of(chat)), other).invoke(ASK)
        assert result["r2_bill"]["usage"]["m1"]["calls"] == len(chat.requests) == 2


def test_only_the_latest_tasks_are_remembered() -> None:
    tasks = Tasks()
    for number in range(MAX_TASKS + 1):
        tasks.keep(str(number), [ENTRY])
    assert (tasks.take("0"), tasks.take("1"), tasks.take("1")) == ([], [ENTRY], [])


def worst(*messages: BaseMessage, **fields: Any) -> int:
    """The tokens that a request may send, at worst."""
    request: ModelRequest = ModelRequest(model=saying("?"), messages=list(messages), **fields)
    to = member("m1", saying("?"))
    return worst_usage(
        ModelCall("executor", to, sent(request), tools=tools_of(request)), 1
    ).input_tokens


def test_all_that_a_request_sends_is_in_its_worst_case_once() -> None:
    described = len(json.dumps(convert_to_openai_tool(look)))
    assert described <= worst(tools=[look]) - worst() < 2 * described
    schema = len(json.dumps(Verdict.model_json_schema()))
    for form in (ToolStrategy(Verdict), ProviderStrategy(Verdict), AutoStrategy(Verdict), Verdict):
        assert schema <= worst(response_format=form) - worst() < 3 * schema
    call = {"name": "look", "args": {"at": "x" * 1000}, "id": "1", "type": "tool_call"}
    assert 1000 <= worst(AIMessage("", tool_calls=[call])) - worst(AIMessage("")) < 1200
    image = {"type": "image", "url": "https://example.com/x.png"}
    assert 4096 <= worst(HumanMessage([image])) - worst(HumanMessage("")) < 4200


# Members that are down.


def test_a_member_that_is_down_is_passed_over_and_not_asked_again_at_once() -> None:
    down = saying(ProviderError(401))
    router = R2RouterMiddleware(pool_of(down, walker(2), saying("?")))
    assert route(agent(router).invoke(ASK)) == [
        ("m2", "m1 failed: auth"),
        ("m2", "no signal"),
        ("m2", "no signal"),
    ]
    assert len(down.requests) == 1


def test_a_member_that_fails_for_a_moment_is_tried_again() -> None:
    shaky = saying(ProviderError(503), "done")
    assert members(agent(R2RouterMiddleware(pool_of(shaky, saying("?")))).invoke(ASK)) == ["m1"]


def test_a_prompt_too_long_for_a_cheap_member_goes_to_the_next_one() -> None:
    pool = pool_of(saying(ProviderError(400)), saying("done"))
    result = agent(R2RouterMiddleware(pool)).invoke(ASK)
    assert route(result) == [("m2", "m1 failed: bad_request")]


def test_a_member_that_hangs_is_left_for_the_next_one() -> None:
    pool = pool_of(saying("?", delay_s=5), saying("done"))
    result = agent(R2RouterMiddleware(pool, call_timeout_s=1)).invoke(ASK)
    assert route(result) == [("m2", "m1 failed: timeout")]


def test_where_all_members_are_down_the_run_fails_without_the_providers_text() -> None:
    pool = pool_of(saying(ProviderError(401)), saying(ProviderError(401)))
    with pytest.raises(ModelCallError) as caught:
        agent(R2RouterMiddleware(pool)).invoke(ASK)
    assert caught.value.kind == "auth"
    assert caught.value.__cause__ is None
    assert "SECRET" not in str(caught.value)


def test_a_fault_in_other_middleware_is_shown_as_the_cause() -> None:
    class Faulty(AgentMiddleware):
        def wrap_model_call(self, request: ModelRequest, handler: Any) -> Any:
            raise KeyError("a slip")

    router = R2RouterMiddleware(pool_of(saying("?")))
    with pytest.raises(ModelCallError) as caught:
        create_agent(saying("?"), middleware=[router, Faulty()]).invoke(ASK)
    assert isinstance(caught.value.__cause__, KeyError)


# The agent around it.


def test_tools_reach_the_member_as_the_agent_bound_them() -> None:
    chat = saying("done")
    agent(R2RouterMiddleware(pool_of(chat))).invoke(ASK)
    assert chat.options[0]["tools"] == ["look", "fail"]


def test_a_model_runs_once_for_each_call_in_the_stream() -> None:
    stream = agent(R2RouterMiddleware(pool_of(walker(1)))).stream(ASK, stream_mode="messages")
    said = [part for part, _ in stream if isinstance(part, AIMessage)]
    assert [bool(part.tool_calls) for part in said] == [True, False]


async def test_an_async_stream_shows_the_state_of_each_call() -> None:
    stream = agent(R2RouterMiddleware(pool_of(walker(1)))).astream(ASK, stream_mode="updates")
    updates = [part["model"] async for part in stream if "model" in part]
    assert [update["r2_route"]["member"] for update in updates] == ["m1", "m1"]


@tool
def ask_user(question: str) -> str:
    """Asks the user."""
    return str(interrupt(question))


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_resumed_run_goes_on_where_it_was(mode: str) -> None:
    cheap = saying(calling("fail", at=1), calling("look", at=1), "?")
    strong = saying(calling("ask_user", question="sure?"), "done")
    options = {
        "checkpointer": InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None))
    }
    config = {"configurable": {"thread_id": "1"}}

    def made() -> Any:  # in another process
        router = R2RouterMiddleware(pool_of(cheap, strong), budget_usd=1)
        return create_agent(saying("?"), [look, fail, ask_user], middleware=[router], **options)

    async def invoked(given: Any) -> dict[str, Any]:
        if mode == "async":
            return dict(await made().ainvoke(given, config))
        return dict(made().invoke(given, config))

    paused = await invoked(ASK)
    assert paused["__interrupt__"][0].value == "sure?"
    result = await invoked(Command(resume="yes"))
    assert members(result) == ["m1", "m2", "m2"]
    assert result["r2_bill"]["usage"]["m2"]["calls"] == 2
    assert "r2_route" not in result


def test_a_new_turn_of_a_thread_is_a_run_with_a_bill_of_its_own() -> None:
    pool = pool_of(saying(calling("fail", at=1), "again"), saying("done"))
    asked = agent(R2RouterMiddleware(pool), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    assert members(asked.invoke(ASK, config)) == ["m1", "m2"]
    second = asked.invoke(ASK, config)
    assert members(second)[2:] == ["m1"]
    assert set(second["r2_bill"]["usage"]) == {"m1"}


def test_what_stands_in_the_state_is_plain_json() -> None:
    asked = agent(R2RouterMiddleware(pool_of(walker(1))), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    asked.invoke(ASK, config)
    values = asked.get_state(config).values
    kept = {key: values[key] for key in ("r2_route", "r2_bill")}
    assert json.loads(json.dumps(kept)) == kept


def test_a_caller_cannot_set_the_bill() -> None:
    forged = {**ASK, "r2_bill": {"cost_usd": "-5"}}
    result = agent(R2RouterMiddleware(pool_of(saying("done")))).invoke(forged)
    assert result["r2_bill"]["cost_usd"] == "0.000003"


def test_a_member_that_has_left_the_pool_makes_a_resumed_run_start_again() -> None:
    saver, config = InMemorySaver(), {"configurable": {"thread_id": "1"}}
    first = pool_of(saying(calling("ask_user", question="sure?")))
    tools = [ask_user]
    create_agent(
        saying("?"), tools, middleware=[R2RouterMiddleware(first)], checkpointer=saver
    ).invoke(ASK, config)
    other = ModelPool(name="other", members=(member("new", saying("done")),))
    result = create_agent(
        saying("?"), tools, middleware=[R2RouterMiddleware(other)], checkpointer=saver
    ).invoke(Command(resume="yes"), config)
    assert members(result) == ["m1", "new"]


def test_threads_that_run_at_once_do_not_mix() -> None:
    def cheap(messages: Sequence[BaseMessage]) -> Said:
        time.sleep(0.005)
        hard = "hard" in messages[0].text
        return calling("fail" if hard else "look", at=1) if not results(messages) else "done"

    pool = pool_of(AgentChat(reply=cheap), saying("done"))
    asked = agent(R2RouterMiddleware(pool), checkpointer=InMemorySaver())

    def run(number: int) -> list[str]:
        text = f"{'hard' if number % 2 else 'easy'} {number}"
        config = {"configurable": {"thread_id": str(number)}}
        return members(asked.invoke({"messages": [{"role": "user", "content": text}]}, config))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(run, range(24)))
    assert found == [["m1", "m2"] if number % 2 else ["m1", "m1"] for number in range(24)]


def test_it_works_beside_other_middleware() -> None:
    summarizer = saying("what was before")
    others = [
        ModelCallLimitMiddleware(run_limit=6),
        SummarizationMiddleware(summarizer, trigger=("messages", 6), keep=("messages", 3)),
    ]
    cheap = saying(*(calling("look", at=number) for number in range(99)))
    result = agent(R2RouterMiddleware(pool_of(cheap, saying("?"))), *others).invoke(ASK)
    assert "limits exceeded" in result["messages"][-1].text
    assert result["r2_bill"]["usage"]["m1"]["calls"] == 6
    assert result["r2_bill"]["switches"] == 0
    assert summarizer.requests


def test_an_interrupt_of_other_middleware_is_no_failure_of_the_member() -> None:
    class Asks(AgentMiddleware):
        def wrap_model_call(self, request: ModelRequest, handler: Any) -> Any:
            interrupt("may I?")
            return handler(request)

    router = R2RouterMiddleware(pool_of(saying("done"), saying("?")))
    asked = create_agent(saying("?"), middleware=[router, Asks()], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    assert asked.invoke(ASK, config)["__interrupt__"][0].value == "may I?"
    result = asked.invoke(Command(resume=True), config)
    assert members(result) == ["m1"]
    assert result["r2_bill"]["usage"]["m1"]["calls"] == 1


def test_a_human_who_rejects_a_tool_call_moves_the_run_up() -> None:
    cheap, strong = saying(calling("look", at=1)), saying("done")
    human = HumanInTheLoopMiddleware(interrupt_on={"look": True})
    asked = agent(R2RouterMiddleware(pool_of(cheap, strong)), human, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    asked.invoke(ASK, config)
    rejected = Command(resume={"decisions": [{"type": "reject", "message": "no"}]})
    assert members(asked.invoke(rejected, config)) == ["m1", "m2"]


def test_settings_out_of_range_are_refused() -> None:
    pool = pool_of(saying("?"))
    for wrong in (
        {"start": "m9"},
        {"patience": 0},
        {"cached": 2},
        {"min_logprob": 0.5},
        {"budget_usd": -1},
        {"quality": 2},
        {"max_output_tokens": 0},
        {"exit_behavior": "stop"},
        {"start": "m1", "allocator": CheckpointAllocator(pool[0])},
    ):
        with pytest.raises(ConfigError):
            R2RouterMiddleware(pool, **wrong)


def test_an_allocator_of_ones_own_can_be_wrong_about_nothing_but_the_member() -> None:
    class Middle(CheckpointAllocator):
        def allocate(self, steps: Any, context: Any) -> list[Choice]:
            assert context.budget_left == 1
            return [Choice("m2", steps[0].text)]

    pool = pool_of(saying("?"), saying("done"))
    router = R2RouterMiddleware(pool, allocator=Middle(pool[0]), budget_usd=1)
    assert route(agent(router).invoke(ASK)) == [("m2", "do it")]


def test_an_allocator_of_ones_own_hears_what_is_left_and_says_who_is_next() -> None:
    class Thrifty(CheapestFirst):
        def escalate(self, member: str, context: AllocateContext) -> str | None:
            assert context.budget_left is not None
            left.append(context.budget_left)
            return context.pool.names[-1]

    left: list[Decimal] = []
    pool = pool_of(saying(calling("fail", at=1)), saying("?"), saying("done"))
    router = R2RouterMiddleware(pool, allocator=Thrifty(), budget_usd=1)
    result = agent(router).invoke(ASK)
    assert members(result) == ["m1", "m3"]
    assert left == [1 - Decimal(result["messages"][1].response_metadata["r2"]["cost_usd"])]


# What it saves.

SKILL = {"m1": 1, "m2": 2, "m3": 3}


@tool
def work(step: int, skill: int) -> str:
    """Does a step of the task, if whoever asks is good enough for it."""
    if skill < DIFFICULTY[step]:
        raise ToolException(f"step {step} is wrong " + "and here is why " * 20)
    return f"step {step} is done " + "and this is what came of it " * 20


work.handle_tool_error = True
_DRAW = Random(7)
DIFFICULTY = _DRAW.choices([1, 2, 3], weights=[85, 12, 3], k=60)


def worker(skill: int) -> AgentChat:
    def reply(messages: Sequence[BaseMessage]) -> Said:
        done = sum(result.status == "success" for result in results(messages))
        return calling("work", step=done, skill=skill) if done < len(DIFFICULTY) else "all done"

    return AgentChat(reply=reply)


def with_caches(result: dict[str, Any], pool: ModelPool) -> Decimal:
    """What a run costs where each member has what it has read before in its cache."""
    read: dict[str, int] = {}
    micros = Decimal(0)
    for message in result["messages"]:
        if isinstance(message, AIMessage) and message.usage_metadata:
            name = message.response_metadata["r2"]["member"]
            sent = message.usage_metadata["input_tokens"]
            known = read.get(name, 0)
            micros += pool[name].price.input_per_mtok * (known * CACHED + sent - known)
            micros += pool[name].price.output_per_mtok * message.usage_metadata["output_tokens"]
            read[name] = sent
    return micros.scaleb(-6)


def test_a_task_costs_less_than_on_the_strongest_member_alone(figure: Figure) -> None:
    pool = pool_of(worker(1), worker(2), worker(3))

    def run(router: R2RouterMiddleware[Any, Any]) -> dict[str, Any]:
        made = create_agent(saying("?"), [work], middleware=[router])
        return dict(made.invoke(ASK, {"recursion_limit": 1000}))

    routed = run(R2RouterMiddleware(pool))
    alone = run(R2RouterMiddleware(pool.without("m1", "m2")))
    assert routed["messages"][-1].text == alone["messages"][-1].text == "all done"
    for what, bar, dollars in (
        ("without caches", 0.5, lambda result: Decimal(result["r2_bill"]["cost_usd"])),
        ("with caches", 0.7, lambda result: with_caches(result, pool)),
    ):
        share = dollars(routed) / dollars(alone)
        figure(f"agent, 60 steps: cost against the strongest alone, {what}", f"{share:.1%}")
        assert share < bar
    figure("agent, 60 steps: switches", routed["r2_bill"]["switches"])
