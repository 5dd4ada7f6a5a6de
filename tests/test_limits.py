"""Limits: a call is made only if its worst case fits, whatever else is going on."""

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from r2graph.errors import LimitExceeded
from r2graph.limits import Limits, Meter

CENT = Decimal("0.01")


def test_a_reservation_holds_money_until_it_is_settled() -> None:
    meter = Meter(Limits(), Decimal("0.03"))
    ticket = meter.reserve(2 * CENT)
    assert meter.left_usd == CENT
    with pytest.raises(LimitExceeded, match="budget"):
        meter.reserve(2 * CENT)
    meter.settle(ticket, CENT)
    assert meter.left_usd == 2 * CENT
    assert meter.spent == CENT
    meter.reserve(2 * CENT)


def test_a_released_reservation_costs_nothing_but_counts_as_a_call() -> None:
    meter = Meter(Limits(), CENT)
    meter.release(meter.reserve(CENT))
    assert meter.left_usd == CENT
    assert meter.spent == 0
    assert meter.calls == 1


def test_a_ticket_is_good_for_one_settlement() -> None:
    meter = Meter(Limits())
    ticket = meter.reserve(CENT)
    meter.settle(ticket, CENT)
    with pytest.raises(KeyError):
        meter.settle(ticket, CENT)


def test_without_a_budget_no_price_is_too_high() -> None:
    meter = Meter(Limits())
    meter.reserve(Decimal(10**6))
    assert meter.left_usd is None


def test_nothing_can_be_spent_of_nothing_but_what_is_free_is_free() -> None:
    meter = Meter(Limits(), Decimal(0))
    meter.settle(meter.reserve(Decimal(0)), Decimal(0))
    with pytest.raises(LimitExceeded) as caught:
        meter.reserve(Decimal("0.000001"))
    assert caught.value.limit == "budget"


def test_calls_are_counted_before_they_are_made() -> None:
    meter = Meter(Limits(max_calls=2), calls=1)
    meter.reserve(CENT)
    with pytest.raises(LimitExceeded) as caught:
        meter.reserve(CENT)
    assert caught.value.limit == "calls"


def test_after_the_deadline_there_is_no_call() -> None:
    meter = Meter(Limits(deadline_s=5), started=-1000.0)
    assert meter.left_s < 0
    with pytest.raises(LimitExceeded) as caught:
        meter.reserve(Decimal(0))
    assert caught.value.limit == "deadline"


def test_what_was_used_before_a_resume_counts() -> None:
    meter = Meter(Limits(max_calls=3), CENT, calls=1, spent=CENT / 2)
    meter.charge(CENT / 4, calls=1)
    assert meter.left_usd == CENT / 4
    meter.reserve(CENT / 4)
    with pytest.raises(LimitExceeded):
        meter.reserve(Decimal(0))


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(0, 500))
def test_no_order_of_calls_passes_the_budget(worst_cases: list[int], budget: int) -> None:
    meter = Meter(Limits(max_calls=100), Decimal(budget))
    open_tickets: list[tuple[int, int]] = []
    for number, worst in enumerate(worst_cases):
        try:
            open_tickets.append((meter.reserve(Decimal(worst)), worst))
        except LimitExceeded:
            assert worst > budget - meter.spent - sum(w for _, w in open_tickets)
        if number % 3 == 2 and open_tickets:
            ticket, most = open_tickets.pop(0)
            meter.settle(ticket, Decimal(most))
    assert meter.spent + sum(worst for _, worst in open_tickets) <= budget


def test_threads_together_do_not_pass_the_budget() -> None:
    meter = Meter(Limits(max_calls=10_000), CENT * 100)

    def spend(_: int) -> int:
        try:
            meter.settle(meter.reserve(CENT), CENT)
        except LimitExceeded:
            return 0
        return 1

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(spend, range(400))) == 100
    assert meter.spent == CENT * 100


@pytest.mark.parametrize(
    "wrong", [{"max_calls": 0}, {"deadline_s": -1}, {"max_steps": 13}, {"max_cals": 3}]
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Limits.model_validate(wrong)
