"""The detail of an outcome, gathered while an evaluation runs if a report is asked for.

It says what happened; whose fault a wrong answer is, `causes` says when all outcomes are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from hashlib import sha256
from typing import Literal

from r2graph.bill import total
from r2graph.calls import ROUTER_ROLES, Entry
from r2graph.evaluation.methods import Answer
from r2graph.evaluation.outcomes import Detail, Paid, Purpose, Tried, Went
from r2graph.pricing import to_text
from r2graph.state import AttemptRecord, StepRecord
from r2graph.trace import trace

DIGEST = 12  # hexadecimal digits: a few tasks in a million would share one

Kind = Literal["right", "escalated", "wrong"]
"""Of an example; `right` is without a failed attempt."""


def detail(answer: Answer, query: str, *, right: bool, known: Mapping[str, str]) -> Detail:
    """`known` has the right output of each step's prompt, or nothing if they are not known."""
    if not answer.bill:
        purpose: Purpose = "failed attempt" if answer.failed else "router"
        paid = [Paid(purpose, "", answer.calls, to_text(answer.net_usd))] if answer.net_usd else []
        return Detail(tuple(paid), stop="unreachable" if answer.failed else "plan")
    if answer.result is None:
        asked = [entry["member"] for entry in answer.bill if entry["role"] == "executor"]
        went: Went = "right" if right else "wrong"
        tried = [Tried("", digest(query), member, went, None) for member in asked[-1:]]
        stop = "unreachable" if answer.failed else None
        return Detail(tuple(_paid(answer.bill, None)), tuple(tried), stop)
    steps = answer.result["steps"].values()
    tried = [
        Tried(
            step["id"],
            digest(step["prompt"]),
            attempt["member"],
            _went(step["prompt"], attempt["output"], answer.text, query, right, known),
            attempt["ok"],
        )
        for step in steps
        for attempt in step["attempts"]
        if attempt["output"] is not None
    ]
    used = [attempt for step in steps if (attempt := _used(step)) is not None]
    return Detail(tuple(_paid(answer.bill, used)), tuple(tried), stop=answer.result["stop_reason"])


def digest(task: str) -> str:
    return sha256(task.encode()).hexdigest()[:DIGEST]


def kind(answer: Answer, *, right: bool) -> Kind | None:
    """What an answer would be an example of; `None`: it has no plan to show."""
    if answer.result is None:
        return None
    if not right:
        return "wrong"
    climbed = any(len(step["attempts"]) > 1 for step in answer.result["steps"].values())
    return "escalated" if climbed else "right"


def example(answer: Answer, kind: Kind, expected: object) -> dict[str, object]:
    """Kind, trace and right answer, as JSON."""
    assert answer.result is not None
    shown = expected if isinstance(expected, str) else json.dumps(expected, ensure_ascii=False)
    traced = trace(answer.result, right=kind != "wrong").model_dump(mode="json")
    return {"kind": kind, "trace": traced, "expected": shown}


def _used(step: StepRecord) -> AttemptRecord | None:
    """The attempt whose output is the step's."""
    return next((a for a in reversed(step["attempts"]) if a["output"] is not None), None)


def _went(
    prompt: str,
    output: str,
    answer: str | None,
    query: str,
    right: bool,
    known: Mapping[str, str],
) -> Went:
    if prompt == query.strip() and output == answer:
        return "right" if right else "wrong"
    if not known:
        return "unknown"
    if prompt not in known:
        return "unplanned"
    return "right" if output.split() == known[prompt].split() else "wrong"


def _paid(bill: Sequence[Entry], used: Sequence[AttemptRecord] | None) -> Iterator[Paid]:
    """By purpose and model; of a run with steps only the `used` attempts were not for nothing."""
    calls: dict[tuple[str, str], list[Entry]] = {}
    for entry in bill:
        role: str = "router" if entry["role"] in ROUTER_ROLES else entry["role"]
        calls.setdefault((role, entry["member"]), []).append(entry)
    for (role, member), entries in calls.items():
        n, usd = len(entries), total(entries)
        if role != "executor":
            yield Paid("router" if role == "router" else "verifier", member, n, to_text(usd))
            continue
        kept, worth = n, usd
        if used is not None:
            prices = [
                Decimal(attempt["cost_usd"]) for attempt in used if attempt["member"] == member
            ]
            kept, worth = len(prices), sum(prices, Decimal(0))
        if kept:
            yield Paid("step", member, kept, to_text(worth))
        if n > kept:
            yield Paid("failed attempt", member, n - kept, to_text(usd - worth))
