"""The bill: what a run cost, by model and by role, and what the strongest model would have cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TypedDict

from r2graph.calls import ROUTER_ROLES, Entry
from r2graph.pricing import to_text
from r2graph.state import MemberUsage, StepRecord


class Bill(TypedDict):
    """The result keys that are about money and use."""

    usage: dict[str, MemberUsage]
    cost_usd: str
    router_cost_usd: str
    verifier_cost_usd: str
    counterfactual_usd: str
    local_share: float


def total(entries: Iterable[Entry]) -> Decimal:
    """Dollars of some calls."""
    return sum((Decimal(entry["cost_usd"]) for entry in entries), Decimal(0))


def summarize(entries: Sequence[Entry], steps: Mapping[str, StepRecord]) -> Bill:
    """The bill of a run from its calls and its steps."""
    by_member: dict[str, list[Entry]] = {}
    for entry in entries:
        by_member.setdefault(entry["member"], []).append(entry)
    done = [step for step in steps.values() if step["output"] is not None]
    return Bill(
        usage={name: _usage(calls) for name, calls in by_member.items()},
        cost_usd=to_text(total(entries)),
        router_cost_usd=to_text(total(e for e in entries if e["role"] in ROUTER_ROLES)),
        verifier_cost_usd=to_text(total(e for e in entries if e["role"] == "verifier")),
        counterfactual_usd=to_text(
            sum((Decimal(step["reference_usd"]) for step in done), Decimal(0))
        ),
        local_share=sum(step["local"] for step in done) / len(done) if done else 0.0,
    )


def _usage(calls: Sequence[Entry]) -> MemberUsage:
    return MemberUsage(
        input_tokens=sum(call["input_tokens"] for call in calls),
        output_tokens=sum(call["output_tokens"] for call in calls),
        calls=len(calls),
        cost_usd=to_text(total(calls)),
    )
