"""A human looks at plan and allocation before any step is run: approve, edit or reject.

The interrupt has the form of LangChain's `HumanInTheLoopMiddleware`, which chat interfaces know:

    graph.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config)
    {"type": "edit", "edited_action": {"name": "run_plan", "args": {"plan": …, "members": …}}}
    {"type": "reject", "message": "look the year up first"}

A rejection is feedback to the planner, which makes another plan while rounds are left. The node
calls no model, so nothing is paid for twice when it is run again on resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from langgraph.types import Command, interrupt
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one

from r2graph.calls import Flow
from r2graph.errors import PlanError, UnknownModelError, first_fault
from r2graph.nodes import Update
from r2graph.plan import Plan, parse_json, render_json
from r2graph.state import Chosen, FeedbackRecord
from r2graph.turn import Turn

ACTION = "run_plan"


class Args(TypedDict):
    """What a human sees and may edit."""

    plan: dict[str, Any]
    """In its JSON form."""
    members: dict[str, str]
    """The member for each step, by its id; steps that are left out keep theirs."""


class _Action(TypedDict):
    name: Literal["run_plan"]
    args: Args


class _Approve(TypedDict):
    type: Literal["approve"]


class _Edit(TypedDict):
    type: Literal["edit"]
    edited_action: _Action


class _Reject(TypedDict, total=False):
    type: Literal["reject"]
    message: str


class _Decisions(TypedDict):
    decisions: list[_Approve | _Edit | _Reject]


_DECISIONS = TypeAdapter(_Decisions)


def review(turn: Turn) -> Flow[Command[Any]]:
    """Wait for a human's decision; one that cannot be followed is asked for again, with why."""
    yield from ()  # a flow that makes no calls
    if turn.progress["stop"]:
        return Command(goto="execute_step", update={})
    fault = ""
    while True:
        try:
            return _followed(turn, _decision(interrupt(_request(turn, fault))))
        except (PlanError, UnknownModelError) as error:
            fault = str(error)


def _request(turn: Turn, fault: str) -> dict[str, Any]:
    members = {step: chosen["member"] for step, chosen in turn.kept["allocation"].items()}
    plan = render_json(turn.plan)
    lines = [f"{s.id} ({members.get(s.id)}): {s.text}" for s in turn.plan.subtasks]
    if fault:
        lines.insert(0, f"That cannot be done: {fault}.")
    action = {
        "name": ACTION,
        "args": Args(plan=plan, members=members),
        "description": "\n".join(lines),
    }
    config = {"action_name": ACTION, "allowed_decisions": ["approve", "edit", "reject"]}
    return {"action_requests": [action], "review_configs": [config]}


def _decision(given: object) -> _Approve | _Edit | _Reject:
    try:
        decisions = _DECISIONS.validate_python(given)["decisions"]
    except ValidationError as error:
        raise PlanError(f"the decision does not read: {first_fault(error)}") from None
    if len(decisions) != 1:
        raise PlanError(f"there is one plan to decide on, and {len(decisions)} decisions came")
    return decisions[0]


def _followed(turn: Turn, decision: _Approve | _Edit | _Reject) -> Command[Any]:
    if decision["type"] == "approve":
        return Command(goto="execute_step", update={})
    if decision["type"] == "edit":
        update = _edited(turn, decision["edited_action"]["args"])
        return Command(goto="execute_step", update=update)
    why = decision.get("message", "").strip() or "a human rejected it"
    rejected = FeedbackRecord(plan=render_json(turn.plan), reason=why)
    feedback = [*turn.progress["feedback"], rejected]
    return Command(goto="decompose", update=turn.progressed(feedback=feedback))


def _edited(turn: Turn, args: Args) -> Update:
    """The plan and the allocation as the human wants them."""
    plan = parse_json(args["plan"])
    if len(plan.subtasks) > (most := turn.run.limits.max_steps):
        raise PlanError(f"the plan has {len(plan.subtasks)} subtasks of {most} allowed")
    allocation = _allocation(turn, plan, args["members"])
    turn.emit({"event": "plan", "round": turn.progress["round"], "plan": render_json(plan)})
    turn.emit({"event": "allocation", "allocation": allocation})
    return {"plan": render_json(plan), "allocation": allocation}


def _allocation(turn: Turn, plan: Plan, members: Mapping[str, str]) -> dict[str, Chosen]:
    ids = [step.id for step in plan.subtasks]
    if stray := next((step for step in members if step not in ids), None):
        raise PlanError(f"a member is named for {stray}, which is no step of the plan")
    kept = turn.kept["allocation"]
    allocation = {}
    for step in ids:
        old = kept.get(step)
        name = members.get(step) or (old["member"] if old else turn.pool.names[0])
        turn.pool.rank(name)
        if old is None or old["member"] != name:
            reason = "a human chose it" if step in members else "cheapest first"
            old = Chosen(
                member=name, reason=reason, slot=None, probabilities=None, final=step in members
            )
        allocation[step] = old
    return allocation
