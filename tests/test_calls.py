"""Calls: one door for sync and async, with prices, time, limits and errors of our own."""

from __future__ import annotations

import json
import traceback
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage

from r2graph.calls import Flow, ModelCall, Reply, ask, flowing, worst_usage
from r2graph.door import Door, adrive, drive
from r2graph.errors import ConfigError, LimitExceeded, MissingKeyError, ModelCallError
from r2graph.limits import Limits, Meter
from r2graph.pool import ModelSpec
from r2graph.pricing import Usage
from tests.fakes import FakeChat, ProviderError, echo, member, replay, reply, scripted

Drive = Callable[[Flow[Any], Door], Awaitable[Any]]


async def in_sync(flow: Flow[Any], door: Door) -> Any:
    return drive(flow, door)


@pytest.fixture(params=[in_sync, adrive], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Drive:
    chosen: Drive = request.param
    return chosen


def call(chat: BaseChatModel, text: str = "hello there", **fields: Any) -> ModelCall:
    spec = member("m1", chat, "1000000", **fields.pop("spec", {}))  # a dollar a token
    return ModelCall("executor", spec, [HumanMessage(text)], **fields)


def once(request: ModelCall) -> Flow[Reply]:
    return (yield request)


def door(budget: int | None = None, **limits: Any) -> Door:
    return Door(Meter(Limits(**limits), None if budget is None else Decimal(budget)))


async def test_a_reply_comes_with_its_tokens_and_its_price(run: Drive) -> None:
    through = door()
    got = await run(once(call(echo(), step="s1")), through)
    assert (got.text, got.member, got.cost) == ("[hello there]", "m1", Decimal(4))
    assert got.usage == Usage(input_tokens=2, output_tokens=2)
    assert through.meter.spent == 4
    assert through.bill == [
        {
            "role": "executor",
            "member": "m1",
            "step": "s1",
            "input_tokens": 2,
            "output_tokens": 2,
            "cost_usd": "4",
            "local": False,
            "ok": True,
        }
    ]


async def test_a_flow_gets_each_reply_where_it_asked(run: Drive) -> None:
    chat = echo()

    def chain() -> Flow[str]:
        first = yield call(chat, "a")
        second = yield call(chat, first.text)
        return second.text

    assert await run(chain(), door()) == "[[a]]"


async def test_a_flow_may_answer_without_a_call(run: Drive) -> None:
    assert await run(flowing(7), door()) == 7


async def test_a_failed_call_is_raised_inside_the_flow(run: Drive) -> None:
    def careful() -> Flow[str]:
        try:
            yield call(scripted(ProviderError(500)))
        except ModelCallError as error:
            return error.kind
        return "no error"

    assert await run(careful(), door()) == "server"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ProviderError(401), "auth"),
        (ProviderError(403), "auth"),
        (ProviderError(404), "bad_request"),
        (ProviderError(408), "timeout"),
        (ProviderError(429), "rate_limit"),
        (ProviderError(503), "server"),
        (ProviderError(504), "timeout"),
        (TimeoutError("SECRET"), "timeout"),
        (ConnectionResetError("SECRET"), "server"),
        (RuntimeError("SECRET"), "other"),
    ],
)
async def test_a_providers_error_is_told_in_our_words(
    run: Drive, error: Exception, kind: str
) -> None:
    with pytest.raises(ModelCallError) as caught:
        await run(once(call(scripted(error))), door())
    assert (caught.value.kind, caught.value.member) == (kind, "m1")
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


async def test_an_error_of_the_users_setup_is_left_as_it_is(run: Drive) -> None:
    through = door(10_000)
    with pytest.raises(MissingKeyError):
        await run(once(call(scripted(MissingKeyError("m1", "KEY")))), through)
    assert through.meter.left_usd == 10_000
    with pytest.raises(ConfigError):
        await run(once(ModelCall("executor", unbuildable(), [HumanMessage("a")])), through)


def unbuildable() -> ModelSpec:
    price = {"input_per_mtok": 1, "output_per_mtok": 1}
    return ModelSpec.model_validate({"name": "m1", "model": "nosuch:model", "price": price})


async def test_a_failed_call_gives_its_reservation_back(run: Drive) -> None:
    through = door(2_000, max_retries=0)
    with pytest.raises(ModelCallError):
        await run(once(call(scripted(ProviderError(500)))), through)
    assert through.meter.left_usd == 2_000
    assert [(entry["ok"], entry["cost_usd"]) for entry in through.bill] == [(False, "0")]


async def test_a_call_that_may_have_been_billed_counts_in_full(run: Drive) -> None:
    through = door(call_timeout_s=0.05)
    with pytest.raises(ModelCallError, match="no answer in time"):
        await run(once(call(echo(delay_s=0.5))), through)
    assert through.meter.spent > 1024
    assert through.bill[0]["estimated"]
    assert not through.bill[0]["ok"]


async def test_a_call_that_hangs_ends_with_the_run(run: Drive) -> None:
    with pytest.raises(LimitExceeded) as caught:
        await run(once(call(echo(delay_s=0.5))), door(deadline_s=0.05))
    assert caught.value.limit == "deadline"


async def test_unknown_usage_is_never_counted_as_nothing(run: Drive) -> None:
    through = door()
    got = await run(once(call(echo(counts_tokens=False))), through)
    assert got.usage.output_tokens == 1024
    assert got.cost == through.meter.spent > 1024
    assert through.bill[0]["estimated"]


async def test_a_call_that_the_budget_may_not_cover_is_not_made(run: Drive) -> None:
    chat = echo()
    with pytest.raises(LimitExceeded) as caught:
        await run(once(call(chat)), door(1_000))
    assert caught.value.limit == "budget"
    assert chat.calls == []


async def test_only_what_was_asked_for_is_sent(run: Drive) -> None:
    chat = echo()
    await run(once(call(chat)), door(max_output_tokens=50))
    await run(once(call(chat, max_tokens=3, temperature=0.0, top_logprobs=9)), door())
    assert [options for _, options in chat.calls] == [
        {"max_tokens": 50},
        {"max_tokens": 3, "temperature": 0.0, "logprobs": True, "top_logprobs": 9},
    ]


async def test_log_probabilities_are_read_in_openais_form(run: Drive) -> None:
    tops = [{"m1": -0.1, "m2": -2.5}, {"m2": 0.0}]
    chat = scripted("m1 m2", logprob=-0.25, top_logprobs=tops)
    got = await run(once(call(chat, top_logprobs=2)), door())
    assert got.mean_logprob == -0.25
    assert got.top_logprobs == tops
    got = await run(once(call(chat, logprobs=True)), door())
    assert (got.mean_logprob, got.top_logprobs) == (-0.25, ())
    got = await run(once(call(chat)), door())
    assert got.mean_logprob is None


async def test_a_model_that_refuses_log_probabilities_is_asked_again_without(run: Drive) -> None:
    chat = echo(refuses=frozenset({"logprobs"}))
    got = await run(ask(call(chat, logprobs=True)), door())
    assert got.text == "[hello there]"
    assert got.mean_logprob is None


async def test_a_schema_is_used_where_there_is_one_and_left_out_where_not(run: Drive) -> None:
    schema = {"title": "Thing", "type": "object"}
    able, unable = echo(speaks_json=True), echo()
    through = door()
    for chat in (able, unable):
        got = await run(ask(call(chat, schema=schema)), through)
        assert got.text == "[hello there]"
    assert [sorted(options) for _, options in able.calls + unable.calls] == [
        ["max_tokens", "response_format"],
        ["max_tokens"],
    ]
    assert len(through.bill) == 2


async def test_structured_output_by_tool_call_is_read_as_json(run: Drive) -> None:
    class Tooled(FakeChat):
        def _result(self, messages: Any, options: Any) -> Any:
            result = super()._result(messages, options)
            tool_call = {"name": "Thing", "args": {"a": 1}, "id": "1"}
            result.generations[0].message = AIMessage("", tool_calls=[tool_call])
            return result

    chat = Tooled(answer=lambda _: "", speaks_json=True)
    got = await run(once(call(chat, schema={"title": "Thing", "type": "object"})), door())
    assert json.loads(got.text) == {"a": 1}


async def test_a_reply_says_if_it_was_cut_off(run: Drive) -> None:
    assert not (await run(once(call(echo())), door())).truncated
    assert (await run(once(call(echo(finish_reason="length"))), door())).truncated


async def test_an_empty_reply_is_a_reply(run: Drive) -> None:
    assert (await run(once(call(scripted("  \n"))), door())).text == ""


def test_the_worst_case_covers_any_byte_level_tokenizer() -> None:
    usage = worst_usage(call(echo(), "äöü" * 100), 1024)
    assert usage.input_tokens >= 600
    assert usage.output_tokens == 1024


@pytest.mark.parametrize(("length", "asked"), [(10, 246 - 16), (1000, 128)])
def test_no_more_tokens_are_asked_for_than_the_context_has_room(length: int, asked: int) -> None:
    usage = worst_usage(call(echo(), "a" * length, spec={"context_length": 256}), 1024)
    assert usage.output_tokens == asked
    assert usage.input_tokens <= 256


def test_a_flow_can_be_tested_without_a_model() -> None:
    request = call(echo(), logprobs=True)
    got, calls = replay(ask(request), ModelCallError("m1", "bad_request"), reply("b"))
    assert got.text == "b"
    assert [each.logprobs for each in calls] == [True, False]
    with pytest.raises(ModelCallError):
        replay(ask(request), ModelCallError("m1", "auth"))
