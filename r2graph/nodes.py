"""The four nodes: plan the query, choose members, run the steps, judge the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.types import Command

from r2graph.bill import summarize
from r2graph.calls import Flow, flowing
from r2graph.dataflow import StepResult, arun_steps, run_steps
from r2graph.decompose import DecomposeContext, Feedback
from r2graph.door import adrive, drive
from r2graph.errors import LimitExceeded, ModelCallError, PlanError
from r2graph.plan import Plan, fill, parse_json, references, render_json, single
from r2graph.state import FeedbackRecord, R2State, Run, StepRecord, StopReason
from r2graph.turn import Deciders, Turn
from r2graph.verify import Attempt, Verdict

RUN_KEY = "__r2_run"  # in `configurable`, where what begins with __ is never stored

Update = dict[str, Any]


class Node(Runnable[R2State, Any]):
    """A node for both worlds; a bare `Runnable`, since LangGraph traces nodes itself."""

    def __init__(
        self,
        deciders: Deciders,
        work: Callable[[Turn], Any],
        awork: Callable[[Turn], Awaitable[Any]],
    ) -> None:
        self._deciders = deciders
        self._work = work
        self._awork = awork

    def invoke(self, input: R2State, config: RunnableConfig | None = None, **_: Any) -> Any:  # noqa: A002 - LangChain's name
        turn = self._turn(input, config)
        with turn.accounted():
            return turn.billed(self._work(turn))

    async def ainvoke(self, input: R2State, config: RunnableConfig | None = None, **_: Any) -> Any:  # noqa: A002
        turn = self._turn(input, config)
        with turn.accounted():
            return turn.billed(await self._awork(turn))

    def _turn(self, state: R2State, config: RunnableConfig | None) -> Turn:
        run = cast(Run, cast(RunnableConfig, config)["configurable"][RUN_KEY])
        return Turn(self._deciders, state, run)


def flow_node(deciders: Deciders, flow: Callable[[Turn], Flow[Any]]) -> Node:
    """A node whose work is a flow."""
    return Node(
        deciders,
        lambda turn: drive(flow(turn), turn.door),
        lambda turn: adrive(flow(turn), turn.door),
    )


def execute_node(deciders: Deciders) -> Node:
    """The node that runs the steps."""

    def execute(turn: Turn) -> Update:
        return {} if turn.progress["stop"] else executed(turn, run_steps(turn))

    async def aexecute(turn: Turn) -> Update:
        return {} if turn.progress["stop"] else executed(turn, await arun_steps(turn))

    return Node(deciders, execute, aexecute)


def decompose(turn: Turn) -> Flow[Update]:
    """A plan. As the first node of a turn it clears what the last turn left."""
    query = turn.deciders.read(turn.state["query"])
    update: Update = {"query": query} | (_cleared() if turn.is_new else {})
    feedback = list(turn.progress["feedback"])
    error = None
    for number in range(turn.progress["round"] + 1, turn.run.limits.max_rounds + 1):
        try:
            plan = yield from _plan(turn, query, feedback, number)
        except LimitExceeded as limit:
            return update | turn.progressed(stop=limit.limit)
        except PlanError as failure:
            error = failure
            feedback.append(FeedbackRecord(plan=None, reason=str(failure)))
            continue
        shown = render_json(plan)
        if any(shown == given_up["plan"] for given_up in feedback):
            break  # it would only fail again
        turn.emit({"event": "plan", "round": number, "plan": shown})
        update |= {"plan": shown, "allocation": {}, "steps": {}}
        return update | turn.progressed(round=number, feedback=feedback)
    if error is not None and turn.progress["round"] == 0:
        raise error
    return update | turn.progressed(stop="rounds")


def _cleared() -> Update:
    return {
        "plan": {"subtasks": [], "answer": None},
        "allocation": {},
        "steps": {},
        "answer": "",
        "stop_reason": None,
    }


def _plan(turn: Turn, query: str, feedback: Sequence[FeedbackRecord], number: int) -> Flow[Plan]:
    context = DecomposeContext(
        pool=turn.pool,
        history=turn.history,
        feedback=[
            Feedback(None if item["plan"] is None else parse_json(item["plan"]), item["reason"])
            for item in feedback
        ],
        round=number,
        max_steps=turn.run.limits.max_steps,
    )
    try:
        plan = yield from flowing(turn.deciders.decomposer.decompose(query, context))
    except ModelCallError:
        return single(query)  # the planner is down, the others may not be
    if len(plan.subtasks) > context.max_steps:
        raise PlanError(
            f"the plan has {len(plan.subtasks)} subtasks of {context.max_steps} allowed"
        )
    return plan


def allocate(turn: Turn) -> Flow[Update]:
    """A member for each step."""
    if turn.progress["stop"]:
        return {}
    steps = turn.plan.subtasks
    try:
        chosen = yield from turn.choose(steps)
    except LimitExceeded as limit:
        return turn.progressed(stop=limit.limit)
    allocation = {step.id: choice for step, choice in zip(steps, chosen, strict=True)}
    turn.emit({"event": "allocation", "allocation": allocation})
    return {"allocation": allocation}


def executed(turn: Turn, results: dict[str, StepResult]) -> Update:
    """What the steps' results change in the state."""
    steps = {name: result["step"] for name, result in results.items()}
    for result in results.values():
        turn.door.bill += result["bill"]
    update: Update = {
        "steps": steps,
        "allocation": {name: result["chosen"] for name, result in results.items()},
    }
    if limit := next((step["stopped"] for step in steps.values() if step["stopped"]), None):
        update |= turn.progressed(stop=limit)
    return update


def verify(turn: Turn) -> Flow[Update | Command[Any]]:
    """Judge the answer: the end, or a new plan if it is rejected and rounds are left."""
    steps, stop = turn.steps, turn.progress["stop"]
    # What a limit leaves of a new plan is worth less than the rejected answer of an old one.
    answer = _answer(turn.plan, steps) if steps else None
    if answer is None:
        return _ended(turn, turn.state["answer"], stop or "unverified")
    if stop is not None:
        return _ended(turn, answer, stop)
    try:
        verdict = yield from _judged(turn, answer)
    except LimitExceeded as limit:
        return _ended(turn, answer, limit.limit)
    objection = _objection(steps, verdict)
    if objection is None or turn.progress["round"] >= turn.run.limits.max_rounds:
        return _ended(turn, answer, _reason(steps, verdict))
    given_up = FeedbackRecord(plan=turn.state["plan"], reason=objection)
    feedback = [*turn.progress["feedback"], given_up]
    return Command(goto="decompose", update={"answer": answer} | turn.progressed(feedback=feedback))


def _answer(plan: Plan, steps: Mapping[str, StepRecord]) -> str | None:
    """The answer that the outputs make; `None` while one that it needs is missing."""
    last = plan.subtasks[-1].id
    template = plan.answer or f"{{{last}}}"
    outputs = {name: step["output"] for name, step in steps.items() if step["output"] is not None}
    return fill(template, outputs) if set(references(template)) <= outputs.keys() else None


def _judged(turn: Turn, answer: str) -> Flow[Verdict]:
    last = turn.plan.subtasks[-1].id
    member = turn.kept["steps"][last]["member"] if turn.plan.answer is None else None
    attempt = Attempt(turn.state["query"], answer, member)
    return (yield from turn.check(attempt, turn.deciders.answer_verifier))


def _objection(steps: Mapping[str, StepRecord], verdict: Verdict) -> str | None:
    """What speaks against the answer."""
    failed = [
        f"step {name} failed its check ({'; '.join(a['reason'] for a in step['attempts'][-1:])})"
        for name, step in steps.items()
        if step["ok"] is False
    ]
    if verdict.ok is False:
        failed.append(f"the answer was rejected ({verdict.reason})")
    return "; ".join(failed) or None


def _reason(steps: Mapping[str, StepRecord], verdict: Verdict) -> StopReason:
    marks = [step["ok"] for step in steps.values()]
    if False in marks:
        return "attempts"
    if verdict.ok is False:
        return "rounds"
    return "verified" if verdict.ok or all(marks) else "unverified"


def _ended(turn: Turn, answer: str, stop: StopReason) -> Update:
    update: Update = {"answer": answer, "stop_reason": stop, "run": turn.record}
    update |= turn.progressed(stop=stop)
    if answer:
        update["messages"] = [AIMessage(answer)]
    update |= summarize(turn.bill + turn.door.bill, turn.kept["steps"])
    turn.emit({"event": "answer", "answer": answer, "stop_reason": stop})
    return update
