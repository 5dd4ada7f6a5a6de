"""`r2graph pool check`: does every member of a pool answer?"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from r2graph.cli.options import open_pool

if TYPE_CHECKING:
    from r2graph.calls import ModelCall
    from r2graph.pool import ModelPool

MAX_TOKENS = 256  # enough for models that think before they speak


def check(
    pool: Annotated[str, typer.Argument(help="A named pool, or a YAML file.")] = "lab",
    max_usd: Annotated[
        str, typer.Option(help="Refuse to start if the calls could cost more dollars than this.")
    ] = "0.10",
) -> None:
    """Call each member once with a tiny prompt: answer or error, seconds and dollars."""
    from rich.console import Console

    from r2graph.errors import ConfigError, ModelCallError, R2Error
    from r2graph.pricing import to_dollars, to_text

    calls = tiny_calls(open_pool(pool))
    worst, allowed = worst_cost(calls), to_dollars(max_usd)
    if worst > allowed:
        raise ConfigError(
            f"the check could cost ${to_text(worst)}, and --max-usd allows ${to_text(allowed)}"
        )
    console, failed = Console(highlight=False, markup=False), 0
    for call in calls:
        try:
            console.print(f"{call.spec.name}: {_ask(call)}", soft_wrap=True)
        except R2Error as error:
            failed += 1
            hint = ""
            if isinstance(error, ModelCallError) and error.kind == "server" and call.spec.base_url:
                hint = f"; `r2graph up {pool}` has its server, if it is yours"
            console.print(
                f"{call.spec.name}: {type(error).__name__}: {error}{hint}", soft_wrap=True
            )
    if failed:
        raise typer.Exit(1)


def tiny_calls(pool: ModelPool) -> list[ModelCall]:
    from langchain_core.messages import HumanMessage

    from r2graph.calls import ModelCall

    prompt = HumanMessage("walk" if pool.language == "lab" else "Reply with the word ok.")
    return [ModelCall("executor", spec, [prompt], max_tokens=MAX_TOKENS) for spec in pool.members]


def worst_cost(calls: list[ModelCall]) -> Decimal:
    from r2graph.calls import worst_usage

    costs = [call.spec.price.cost(worst_usage(call, MAX_TOKENS)) for call in calls]
    return sum(costs, Decimal(0))


def _ask(call: ModelCall) -> str:
    """Make a call and say how it went; raises the error it ends in."""
    from r2graph.door import Door
    from r2graph.errors import ModelCallError
    from r2graph.limits import Limits, Meter
    from r2graph.pricing import to_text

    reply = Door(Meter(Limits())).call(call)
    if not reply.text:
        raise ModelCallError(call.spec.name, "empty")
    return f"ok, {reply.seconds:.2f} s, ${to_text(reply.cost)}"
