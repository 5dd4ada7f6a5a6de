"""Prices: exact sums, honest look-ups, and no price rather than a wrong one."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from r2graph.errors import ConfigError
from r2graph.pricing import Price, Usage, lookup_price, to_dollars, to_text

TOKENS = st.integers(min_value=0, max_value=10**9)
MONEY = st.decimals(min_value=0, max_value=10**6, places=9)


def price(inputs: str, outputs: str) -> Price:
    return Price(input_per_mtok=Decimal(inputs), output_per_mtok=Decimal(outputs))


def test_cost_counts_both_directions_per_million_tokens() -> None:
    usage = Usage(input_tokens=1_000, output_tokens=10)
    assert price("2.5", "10").cost(usage) == Decimal("0.0026")


def test_the_smallest_cost_is_not_rounded_away() -> None:
    assert price("0.002", "0").cost(Usage(input_tokens=1)) == Decimal("0.000000002")


@given(TOKENS, TOKENS, TOKENS, TOKENS)
def test_the_cost_of_a_sum_is_the_sum_of_the_costs(a: int, b: int, c: int, d: int) -> None:
    one, other = (
        Usage(input_tokens=a, output_tokens=b),
        Usage(input_tokens=c, output_tokens=d),
    )
    rate = price("0.15", "0.6")
    assert rate.cost(one + other) == rate.cost(one) + rate.cost(other)


@pytest.mark.parametrize("wrong", ["-1", "NaN", "Infinity", "cheap", None])
def test_a_price_is_finite_and_not_negative(wrong: str | None) -> None:
    with pytest.raises(ValidationError):
        Price.model_validate({"input_per_mtok": wrong, "output_per_mtok": 1})


def test_a_price_written_as_a_float_keeps_its_digits() -> None:
    read = Price.model_validate({"input_per_mtok": 0.15, "output_per_mtok": 1})
    assert read.input_per_mtok == Decimal("0.15")


def test_usage_is_whole_tokens_and_never_negative() -> None:
    for wrong in (-1, 0.5, None):
        with pytest.raises(ValidationError):
            Usage.model_validate({"input_tokens": wrong})


def test_list_prices_are_known_without_a_network() -> None:
    assert lookup_price("gpt-4o", provider="openai") == price("2.5", "10")


def test_a_price_that_changes_with_the_hour_counts_at_its_dearest() -> None:
    assert lookup_price("deepseek-chat", provider="deepseek") == price("0.27", "1.1")


@pytest.mark.parametrize(
    ("model", "provider", "base_url"),
    [
        ("no-such-model", "openai", None),
        ("gpt-4o", "no-such-provider", None),
        ("gpt-4o", "openai", "http://127.0.0.1:8000/v1"),  # somebody's own server
        ("gpt-live-1", "openai", None),  # billed by the hour: no price per token
    ],
)
def test_an_unknown_price_is_none_and_never_zero(
    model: str, provider: str, base_url: str | None
) -> None:
    assert lookup_price(model, provider=provider, base_url=base_url) is None


def test_the_server_says_what_a_model_costs() -> None:
    found = lookup_price("gpt-4o", provider="mine", base_url="https://api.openai.com/v1")
    assert found == price("2.5", "10")


@given(MONEY)
def test_money_survives_its_text_form(dollars: Decimal) -> None:
    text = to_text(dollars)
    assert to_dollars(text) == dollars
    assert "E" not in text
    assert text == "0" or not ("." in text and text.endswith("0"))


def test_money_as_text_is_plain() -> None:
    assert [to_text(Decimal(d)) for d in ("1E+1", "2.50", "0E-9", "3E-9", "100")] == [
        "10",
        "2.5",
        "0",
        "0.000000003",
        "100",
    ]


@pytest.mark.parametrize("wrong", ["", "a dollar", "NaN", "Infinity", "-1", "1e"])
def test_what_is_not_money_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError):
        to_dollars(wrong)
