"""Prices and usage: tokens in, `Decimal` dollars out. An unknown price is `None`, never zero."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

import genai_prices
from pydantic import BaseModel, ConfigDict, Field

from r2graph.errors import ConfigError

Dollars = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]
Money = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?$")]
"""Dollars as state and JSON hold them; see `to_text`."""


class Usage(BaseModel):
    """Tokens of one call, or of several added up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_tokens: Annotated[int, Field(ge=0)] = 0
    output_tokens: Annotated[int, Field(ge=0)] = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
        )


class Price(BaseModel):
    """What a model charges, in dollars per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_per_mtok: Dollars
    output_per_mtok: Dollars

    def cost(self, usage: Usage) -> Decimal:
        """Dollars for `usage`, unrounded."""
        micros = self.input_per_mtok * usage.input_tokens
        micros += self.output_per_mtok * usage.output_tokens
        return micros.scaleb(-6)


def lookup_price(
    model: str, *, provider: str | None = None, base_url: str | None = None
) -> Price | None:
    """The list price in the data that `genai-prices` bundles, or `None`; opens no connection.

    `base_url` goes before `provider`: what serves a model says what it costs, so a local server has
    no list price. Prices that change with the hour count at their dearest; those that rise for long
    prompts count as for short ones, so give such a member a `context_length` below that step. A
    price of nothing is `None` too: the data has none for what is not billed by the token.
    """
    today = datetime.now(UTC)
    try:
        by_hour = [_price_at(today.replace(hour=h), model, provider, base_url) for h in range(24)]
    except LookupError:
        return None
    inputs, outputs = (max(prices) for prices in zip(*by_hour, strict=True))
    if not inputs and not outputs:
        return None
    return Price(input_per_mtok=Decimal(to_text(inputs)), output_per_mtok=Decimal(to_text(outputs)))


def _price_at(
    when: datetime, model: str, provider: str | None, base_url: str | None
) -> tuple[Decimal, Decimal]:
    """Dollars per million tokens, in and out; `LookupError` if the data does not have the model."""
    one = genai_prices.Usage(input_tokens=1, output_tokens=1)
    if base_url is not None:
        found = genai_prices.calc_price(
            one, model, provider_api_url=base_url, genai_request_timestamp=when
        )
    else:
        found = genai_prices.calc_price(
            one, model, provider_id=provider, genai_request_timestamp=when
        )
    return found.input_price * 1_000_000, found.output_price * 1_000_000


def to_text(dollars: Decimal) -> str:
    """Money as state and JSON hold it: a decimal string without exponent or trailing zeros."""
    text = f"{dollars:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def to_dollars(text: str | int | Decimal) -> Decimal:
    """Read money, the inverse of `to_text`; `ConfigError` unless it is finite and not negative."""
    try:
        dollars = Decimal(text)
    except ArithmeticError:
        raise ConfigError("an amount of money must be a decimal number, such as '0.05'") from None
    if not dollars.is_finite() or dollars < 0:
        raise ConfigError("an amount of money must be finite and not negative")
    return dollars
