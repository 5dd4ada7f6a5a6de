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
from typing import Any, TypedDict

from langgraph.func import task

from r2graph.bill import total
from r2graph.calls import Entry, Flow, adrive, drive
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

    def solve(self, step: Subtask) -> Flow[tuple[StepRecord, Chosen]]:
        """Run a step whose dependencies are done."""
        chosen = self._allocation[step.id]
        inputs = [self._results[needed]["step"] for needed in step.depends_on]
        if missing := next((record for record in inputs if record["output"] is None), None):
            return StepRun(self.turn, step, "", chosen).record(missing["stopped"]), chosen
        run = StepRun(self.turn, step, self._prompt(step), chosen)
        record = yield from run.solve()
        self.turn.emit({"event": "step"} | record)
        return record, run.chosen

    def finish(
        self, step: str, record: StepRecord, chosen: Chosen, bill: list[Entry]
    ) -> StepResult:
        result = StepResult(step=record, chosen=chosen, bill=bill)
        self._results[step] = result
        return result

    def accept(self, step: str, result: StepResult) -> None:
        """Take over a task's result; one from the checkpoint goes on the meter, once."""
        record = result["step"]
        if record["id"] != step or record["text"] != self.steps[step].text:
            raise CheckpointError(f"another step's output is where that of {step} should be")
        with self._lock:
            if step not in self._results:
                self.turn.meter.charge(total(result["bill"]), len(result["bill"]))
                self._results[step] = result

    def collect(self) -> dict[str, StepResult]:
        """All results in plan order; raises the first error there is."""
        errors = [future.exception() for future in self.futures.values()]
        if error := next(filter(None, errors), None):
            raise error
        for step, future in self.futures.items():
            self.accept(step, future.result())
            prompt = self._results[step]["step"]["prompt"]
            if prompt and prompt != self._prompt(self.steps[step]):
                raise CheckpointError(f"step {step} was run with other inputs than there are")
        return {step: self._results[step] for step in self.steps}

    def _prompt(self, step: Subtask) -> str:
        results = self._results
        outputs = {needed: results[needed]["step"]["output"] or "" for needed in step.depends_on}
        return fill(step.text, outputs)


# The tasks' only argument is the id of their step: arguments show in streams and traces.
_BOARD: ContextVar[Board] = ContextVar("r2graph_board")


def _run_step(step: str) -> StepResult:
    board = _BOARD.get()
    for needed in board.steps[step].depends_on:
        board.accept(needed, board.futures[needed].result())
    door = board.turn.open_door()
    record, chosen = drive(board.solve(board.steps[step]), door)
    return board.finish(step, record, chosen, door.bill)


async def _arun_step(step: str) -> StepResult:
    board = _BOARD.get()
    for needed in board.steps[step].depends_on:
        board.accept(needed, await board.futures[needed])
    door = board.turn.open_door()
    record, chosen = await adrive(board.solve(board.steps[step]), door)
    return board.finish(step, record, chosen, door.bill)


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
