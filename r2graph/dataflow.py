"""The dataflow: every step of a plan starts as soon as the steps that it depends on are done.

LangGraph's tasks run inside one node, so no step waits for a step that it does not need. A
checkpointer records each finished task and on resume gives its result back by the *order* in which
tasks are created. So all of them are created at once, in plan order, and wait for their
dependencies inside; and what comes back is checked to be what it should be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import wait
from contextvars import ContextVar
from threading import Lock
from typing import Any

from langgraph.func import task
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from r2graph.bill import total
from r2graph.calls import Entry, Flow
from r2graph.door import adrive, drive
from r2graph.errors import CheckpointError
from r2graph.plan import Subtask, fill
from r2graph.state import Chosen, StepRecord
from r2graph.steps import StepRun
from r2graph.turn import Turn


class StepResult(TypedDict):
    """What a step's task returns, and the checkpointer keeps."""

    step: StepRecord
    chosen: Chosen
    """The choice made once references were filled in."""
    bill: list[Entry]


class Board:
    """The steps of one plan while they run; shared by their tasks."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.steps: dict[str, Subtask] = {step.id: step for step in turn.plan.subtasks}
        self._allocation = turn.kept["allocation"]
        if self._allocation.keys() != self.steps.keys():
            raise CheckpointError("plan and allocation have different steps")
        # Futures of a thread pool or of an event loop, as LangGraph makes them.
        self.futures: dict[str, Any] = {}
        self._results: dict[str, StepResult] = {}
        self._lock = Lock()

    def start(self, run_step: Callable[[str], Any]) -> None:
        """Create the tasks, in plan order."""
        token = _BOARD.set(self)
        try:
            for step in self.steps:
                self.futures[step] = run_step(step)
        finally:
            _BOARD.reset(token)

    def solve(self, step: Subtask, bill: list[Entry]) -> Flow[StepResult]:
        """Run a step whose dependencies are done; its calls appear on `bill`."""
        inputs = [self._results[needed]["step"] for needed in step.depends_on]
        run = StepRun(self.turn, step, self._inputs(step), self._allocation[step.id])
        if missing := next((record for record in inputs if record["output"] is None), None):
            record = run.record(missing["stopped"])
        else:
            record = yield from run.solve()
        self.turn.emit({"event": "step"} | record)
        self._results[step.id] = StepResult(step=record, chosen=run.chosen, bill=bill)
        return self._results[step.id]

    def accept(self, step: str, result: object) -> None:
        """Take over the result of a task, which may come from a checkpoint."""
        with self._lock:
            if step not in self._results:
                self._results[step] = found = _read(result)
                self.turn.meter.charge(total(found["bill"]), len(found["bill"]))
        record = self._results[step]["step"]
        if record["id"] != step or record["text"] != self.steps[step].text:
            raise CheckpointError(f"another step's output is where that of {step} should be")

    def collect(self) -> dict[str, StepResult]:
        """All results in plan order; raises the first error there is."""
        errors = [future.exception() for future in self.futures.values()]
        if error := next(filter(None, errors), None):
            raise error
        for step, future in self.futures.items():
            self.accept(step, future.result())
            planned = self.steps[step]
            if self._results[step]["step"]["prompt"] != fill(planned.text, self._inputs(planned)):
                raise CheckpointError(f"step {step} was run with other inputs than there are")
        return {step: self._results[step] for step in self.steps}

    def _inputs(self, step: Subtask) -> dict[str, str]:
        return {needed: self._results[needed]["step"]["output"] or "" for needed in step.depends_on}


_RESULT = TypeAdapter(StepResult)


def _read(result: object) -> StepResult:
    try:
        return _RESULT.validate_python(result)
    except ValidationError:
        raise CheckpointError("a step's result is not of the right form") from None


# The tasks' only argument is the id of their step: arguments show in streams and traces.
_BOARD: ContextVar[Board] = ContextVar("r2graph_board")


def _run_step(step: str) -> StepResult:
    board = _BOARD.get()
    for needed in board.steps[step].depends_on:
        board.accept(needed, board.futures[needed].result())
    door = board.turn.open_door(step)
    return drive(board.solve(board.steps[step], door.bill), door)


async def _arun_step(step: str) -> StepResult:
    board = _BOARD.get()
    for needed in board.steps[step].depends_on:
        board.accept(needed, await board.futures[needed])
    door = board.turn.open_door(step)
    return await adrive(board.solve(board.steps[step], door.bill), door)


_run_step.__name__ = _arun_step.__name__ = "step"  # what streams and traces call them
_TASK = task(_run_step)
_ATASK = task(_arun_step)


def run_steps(turn: Turn) -> dict[str, StepResult]:
    """Run the turn's plan; raises the first error, once all steps have ended."""
    board = Board(turn)
    board.start(_TASK)
    wait(board.futures.values())
    return board.collect()


async def arun_steps(turn: Turn) -> dict[str, StepResult]:
    """As `run_steps`."""
    board = Board(turn)
    board.start(_ATASK)
    await asyncio.wait(board.futures.values())
    return board.collect()
