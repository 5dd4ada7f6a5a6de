"""The evaluation: what is measured, how methods are billed, and what the bars say."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pytest

from r2graph.errors import ConfigError
from r2graph.evaluation.bars import Bar, bars
from r2graph.evaluation.compare import compare
from r2graph.evaluation.lineup import Lineup, all_methods, chosen_methods
from r2graph.evaluation.methods import Answer
from r2graph.evaluation.outcomes import Outcome, rows, wilson
from r2graph.evaluation.replies import charge_cpu, record, record_pool, record_router
from r2graph.evaluation.running import run_methods
from r2graph.lab.language import task
from r2graph.plan import render_text
from tests.fakes import (
    BusyChat,
    FakeChat,
    ProviderError,
    answering,
    member,
    pool_of,
    router_of,
    scripted,
)

CHEAP = Decimal("0.000001")  # a token of a one-dollar model


def outcome(query: str, *, right: bool = True, method: str = "router", **fields: object) -> Outcome:
    known: dict[str, object] = {"benchmark": "arith", "pool_usd": CHEAP, "net_usd": 2 * CHEAP}
    return Outcome(
        **{"query": query, "right": right, "method": method, "calls": 1, "cpu_s": 0.0}
        | known
        | fields
    )


# Rows


def test_a_row_holds_the_means_of_its_outcomes() -> None:
    done = [
        outcome("a", pool_usd=Decimal("0.1"), net_usd=Decimal("0.3"), calls=2, cpu_s=1.0),
        outcome("b", pool_usd=Decimal("0.2"), net_usd=Decimal("0.5"), calls=5, right=False),
    ]
    (row,) = rows(done)
    assert (row.benchmark, row.method, row.n, row.accuracy) == ("arith", "router", 2, 0.5)
    assert (row.pool_cost_usd, row.net_cost_usd, row.calls, row.cpu_s) == (0.15, 0.4, 3.5, 0.5)
    assert (row.ci_low, row.ci_high) == wilson(1, 2)


def test_rows_keep_the_order_of_benchmarks_and_methods() -> None:
    done = [
        outcome("a", benchmark=benchmark, method=method)
        for benchmark in ("geo", "arith")
        for method in ("router", "plan-1")
    ]
    assert [(row.benchmark, row.method) for row in rows(done)] == [
        ("geo", "router"),
        ("geo", "plan-1"),
        ("arith", "router"),
        ("arith", "plan-1"),
    ]


def test_intervals_are_those_of_wilson_and_stay_sound_at_the_ends() -> None:
    assert wilson(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    low, high = wilson(20, 20)
    assert low < 0.9
    assert high == 1.0


# Comparisons


def test_a_method_gains_nothing_on_itself() -> None:
    done = [outcome(str(i), right=i % 3 > 0, net_usd=CHEAP * i) for i in range(1, 50)]
    gain = compare(done, [replace(o, method="other") for o in done])
    for interval in (gain.accuracy, gain.pool_saving, gain.net_saving):
        assert interval.value == interval.low == interval.high == 0.0


def test_savings_are_shares_of_all_that_the_other_spent() -> None:
    dear = [outcome(str(i), pool_usd=CHEAP * i, net_usd=CHEAP * 10) for i in range(1, 5)]
    half = [replace(o, pool_usd=o.pool_usd / 2, net_usd=o.net_usd / 4) for o in dear]
    gain = compare(half, dear)
    assert gain.pool_saving.value == pytest.approx(0.5)
    assert gain.net_saving.value == pytest.approx(0.75)


def test_an_interval_holds_its_value_and_narrows_with_more_queries() -> None:
    def gained(n: int) -> tuple[float, float, float]:
        first = [outcome(str(i), right=i % 10 > 0) for i in range(n)]
        second = [outcome(str(i), right=i % 5 > 0) for i in range(n)]
        accuracy = compare(first, second).accuracy
        return accuracy.low, accuracy.value, accuracy.high

    few, many = gained(50), gained(2_000)
    for low, value, high in (few, many):
        assert low < value < high
        assert value == pytest.approx(0.1)
    assert many[2] - many[0] < few[2] - few[0]


def test_methods_that_did_other_queries_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same queries"):
        compare([outcome("a")], [outcome("b")])
    with pytest.raises(ValueError, match="same queries"):
        compare([outcome("a")], [outcome("a"), outcome("a")])


# Bars


def many(method: str, n_right: int, cost: int, benchmark: str = "arith") -> list[Outcome]:
    """A hundred outcomes at `cost` millionths in the pool, and one more in all."""
    return [
        outcome(
            str(i),
            right=i < n_right,
            method=method,
            benchmark=benchmark,
            pool_usd=CHEAP * cost,
            net_usd=CHEAP * (cost + 1),
        )
        for i in range(100)
    ]


def by_name(found: Sequence[Bar]) -> dict[tuple[str, str], Bar]:
    return {(bar.bar, bar.benchmark): bar for bar in found}


def test_the_router_is_held_to_the_strongest_plan_and_to_the_cheapest_equal_one() -> None:
    done = [
        *many("plan-1", 50, 1),
        *many("plan-2", 90, 29),
        *many("plan-3", 91, 99),
        *many("router", 90, 9),
    ]
    found = by_name(bars(done))
    saved = found["pool cost saved, router vs plan-3", "all"]
    assert saved.value == pytest.approx(1 - 9 / 99)
    assert saved.passed
    assert found["net cost saved, router vs plan-3", "all"].value == pytest.approx(0.9)
    ratio = found["net cost ratio, router to plan-2", "all"]
    assert (ratio.value, ratio.at_least, ratio.passed) == (pytest.approx(1 / 3), False, True)
    assert ratio.ci_low <= ratio.value <= ratio.ci_high


def test_half_a_point_of_accuracy_is_all_that_a_rival_may_be_ahead() -> None:
    done = [*many("single-1", 30, 1), *many("single-2", 91, 9), *many("router", 90, 5)]
    bar = by_name(bars(done))["accuracy, router less single-2", "arith"]
    assert bar.value == pytest.approx(-0.01)
    assert not bar.passed


def test_each_benchmark_has_its_own_share_of_right_answers() -> None:
    done = [
        *many("plan-9", 90, 9),
        *many("router", 96, 1),
        *many("plan-9", 90, 9, "scan-length"),
        *many("router", 96, 1, "scan-length"),
    ]
    found = by_name(bars(done))
    assert not found["accuracy, router", "scan-length"].passed
    assert ("accuracy, router", "arith") not in found
    assert found["accuracy, plan-9", "arith"].passed


def test_deep_expressions_and_missing_methods_have_no_bar() -> None:
    assert bars(many("router", 10, 1, "arith-deep")) == []
    assert bars(many("random", 10, 1)) == []


# Replies


async def test_a_prompt_is_asked_once_and_charged_each_time() -> None:
    chat = BusyChat(answer=lambda _: "yes", cpu_s=0.25)
    recorded = record(member("m1", chat)).chat
    with charge_cpu() as cpu:
        replies = await asyncio.gather(*(recorded.ainvoke("hi", max_tokens=5) for _ in range(3)))
        replies.append(await recorded.ainvoke("hi", max_tokens=5))
    assert [reply.text for reply in replies] == ["yes"] * 4
    assert len({id(reply) for reply in replies}) == 4
    assert chat.prompts == ["hi"]
    assert cpu.seconds == 1.0


async def test_other_options_are_another_question() -> None:
    chat = FakeChat(answer=lambda _: "yes")
    recorded = record(member("m1", chat)).chat
    for options in ({"max_tokens": 5}, {"max_tokens": 6}, {"max_tokens": 5, "logprobs": True}):
        await recorded.ainvoke("hi", **options)
    assert len(chat.calls) == 3


async def test_sampled_replies_are_not_kept() -> None:
    chat = scripted("one", "two")
    recorded = record(member("m1", chat)).chat
    said = [(await recorded.ainvoke("hi", temperature=0.7)).text for _ in range(2)]
    assert said == ["one", "two"]


async def test_failures_are_not_kept() -> None:
    recorded = record(member("m1", scripted(ProviderError(500), "yes"))).chat
    with pytest.raises(ProviderError):
        await recorded.ainvoke("hi")
    assert (await recorded.ainvoke("hi")).text == "yes"


def test_a_recorded_member_keeps_price_and_place() -> None:
    pool = pool_of(FakeChat(answer=str), FakeChat(answer=str), language="lab")
    recorded = record_pool(pool)
    assert (recorded.names, recorded.language) == (pool.names, "lab")
    assert [spec.price for spec in recorded.members] == [spec.price for spec in pool.members]


# Methods: two members, of which the first knows sums only

TASK = task("( 3 + 4 ) * 5")
SUM, PRODUCT = "3 + 4", "7 * 5"
KNOWN = {SUM: "7", PRODUCT: "35", TASK.query: "35"}


def lineup(strong: dict[str, str] = KNOWN, slot_of_product: int = 9) -> Lineup:
    pool = pool_of(answering({SUM: "7"}), answering(strong), language="lab")
    router = router_of(
        {TASK.query: render_text(TASK.plan)},
        lambda text: f"m{slot_of_product}" if "*" in text else "m1",
    )
    right = {prompt: output for _, prompt, output in TASK.steps()}
    return Lineup(record_pool(pool), record_router(router), 0.9, right)


def dollars(small: int, large: int) -> Decimal:
    """The cost of tokens of the one-dollar member and of the ten-dollar member."""
    return CHEAP * small + 10 * CHEAP * large


PLANNING = CHEAP * 16  # tokens of `plan: …` and of the plan


async def answer(name: str, lineup: Lineup) -> Answer:
    return await lineup.method(name).answer(TASK.query)


async def test_a_single_call_is_billed_for_itself_alone() -> None:
    said = await answer("single-2", lineup())
    assert said == Answer("35", dollars(0, 8), dollars(0, 8), 1)


async def test_a_chain_of_thought_answers_with_its_last_answer_line() -> None:
    thought = "s1: 3 + 4 -> 7\nanswer: 7\nanswer: 35"
    said = await answer("cot-strongest", lineup({f"think: {TASK.query}": thought}))
    assert said.text == "35"
    silent = await answer("cot-strongest", lineup({f"think: {TASK.query}": "s1: 3 + 4"}))
    assert silent.text is None
    assert silent.pool_usd > 0


async def test_a_plan_on_one_member_pays_for_planning_but_for_no_choice() -> None:
    said = await answer("plan-2", lineup())
    assert said == Answer("35", dollars(0, 8), dollars(0, 8) + PLANNING, 3)
    assert (await answer("plan-1", lineup())).text == "?"


async def test_a_plan_on_one_member_is_not_checked() -> None:
    silent = answering({SUM: "", " * 5": ""})
    pool = record_pool(pool_of(silent, silent, language="lab"))
    said = await answer("plan-1", replace(lineup(), pool=pool))
    assert (said.text, said.calls) == ("", 3)


async def test_the_router_pays_for_planning_and_choosing() -> None:
    said = await answer("router", lineup())
    assert (said.text, said.pool_usd) == ("35", dollars(4, 4))
    assert said.net_usd > said.pool_usd + PLANNING
    assert said.calls == 5  # plan, choice, sum, choice for the filled product, product


async def test_the_oracle_pays_the_cheapest_member_that_is_right() -> None:
    said = await answer("oracle", lineup())
    assert said == Answer("35", dollars(4, 4), dollars(4, 4) + PLANNING, 3)


async def test_the_oracle_pays_the_cheapest_member_where_none_is_right() -> None:
    said = await answer("oracle", lineup(strong={SUM: "7"}))
    assert said == Answer("?", dollars(8, 0), dollars(8, 0) + PLANNING, 3)


async def test_searching_is_not_charged_to_the_oracle() -> None:
    chats = [BusyChat(answer=lambda text, w=w: w.get(text, "?"), cpu_s=1.0) for w in ({}, KNOWN)]
    fresh = lineup()
    with charge_cpu() as cpu:
        await answer("oracle", replace(fresh, pool=record_pool(pool_of(*chats, language="lab"))))
    assert cpu.seconds == 2.0  # the two steps on the second member


async def test_cheapest_first_may_climb_the_whole_pool() -> None:
    silent = [answering({SUM: "", PRODUCT: ""}) for _ in range(6)]
    pool = pool_of(*silent, answering(KNOWN), language="lab")
    said = await answer("cheapest-first", replace(lineup(), pool=record_pool(pool)))
    assert (said.text, said.calls) == ("35", 1 + 2 * 7)


async def test_random_choices_are_the_same_in_every_run() -> None:
    assert await answer("random", lineup()) == await answer("random", lineup())


async def test_methods_share_replies_and_each_pays_for_them() -> None:
    chats = [answering({SUM: "7"}), answering(KNOWN)]
    shared = replace(lineup(), pool=record_pool(pool_of(*chats, language="lab")))
    first, second = [await answer("plan-2", shared) for _ in range(2)]
    assert first == second
    assert chats[1].prompts == [SUM, PRODUCT]


async def test_a_failing_model_is_a_wrong_answer_and_not_an_error() -> None:
    down = FakeChat(answer=lambda _: ProviderError(500))
    broken = replace(lineup(), pool=record_pool(pool_of(down, down, language="lab")))
    for name in ("single-1", "plan-1"):
        assert (await answer(name, broken)).text is None


async def test_a_plan_that_does_not_parse_is_a_wrong_answer_and_is_paid() -> None:
    router = router_of({TASK.query: "no plan"}, lambda _: "m1")
    said = await answer("router", replace(lineup(), router=record_router(router)))
    assert said.text is None
    assert said.net_usd > 0


@pytest.mark.parametrize(
    "name", ["", "single", "single-0", "single-3", "plan-x", "router@much", "cot-weakest", "best"]
)
def test_a_name_that_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no method is called"):
        lineup().method(name)


def test_a_quality_beyond_the_scale_is_refused() -> None:
    with pytest.raises(ConfigError):
        lineup().method("router@7")


def test_all_is_every_method_once() -> None:
    pool = pool_of(*(FakeChat(answer=str) for _ in range(9)))
    assert len(all_methods(pool)) == 23
    chosen = chosen_methods("router@0.5, all,plan-9", pool)
    assert chosen == ["router@0.5", *all_methods(pool)]
    for name in all_methods(lineup().pool):
        assert lineup().method(name)


# Runs


async def test_outcomes_come_method_by_method_and_progress_is_told() -> None:
    told: list[tuple[str, str]] = []
    fresh = lineup()
    methods = {name: fresh.method(name) for name in ("plan-2", "single-1")}
    tasks = [TASK, task("3 + 4")]

    def tell(benchmark: str, method: str) -> None:
        told.append((benchmark, method))

    done = await run_methods("arith", tasks, methods, tell)
    assert [(o.method, o.query, o.right) for o in done] == [
        ("plan-2", TASK.query, True),
        ("plan-2", SUM, False),  # the planner does not know it
        ("single-1", TASK.query, False),
        ("single-1", SUM, True),
    ]
    assert told == [("arith", "plan-2")] * 2 + [("arith", "single-1")] * 2
