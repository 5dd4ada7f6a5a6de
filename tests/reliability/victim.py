"""A process that runs a graph and is killed: `python -m tests.reliability.victim`.

It reads a job a line, does each in a child of its own, and prints how the child ended. What is
imported is there before the fork, nothing else is, so a child is a new process that starts in
milliseconds. The job says after how many seconds of its run the child gets SIGKILL, if at all.

The models are slow, and their provider meters each call in a file before it answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TypedDict

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Durability

from r2graph.decompose import CheckpointDecomposer
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.ledger import Ledger
from tests.fakes import FakeChat, member, pool_of, scripted

HUNG_S = 60.0
CALLS = 8  # of a run that nobody kills: the plan, and seven steps
ANSWER_S = 0.06


class Job(TypedDict):
    run: str
    """A UUID; the thread's id, too."""
    shape: str
    """`chain`: each step needs the one before; `fan`: the last needs all others."""
    world: str
    """`sync` or `async`."""
    durability: Durability
    """LangGraph's: when it writes checkpoints."""
    checkpoints: str
    """A file, or the URL of a PostgreSQL database."""
    ledger: str | None
    meter: str
    result: str
    """The file for the run's result."""
    kill_after_s: float | None
    die_in_call: int | None
    """The call of this process that kills it, after it was metered and before it is answered."""
    dies_for_checkpoint: bool
    """It dies where its first checkpoint is due, once a reply is in the ledger."""


class Metered(TypedDict):
    """A line of the provider's meter."""

    run: str
    step: str
    prompt_sha256: str
    input_tokens: int
    output_tokens: int


def plan(shape: str, run: str) -> str:
    """Seven steps; each bears its own name and its run's, so that no output can be taken for
    another's."""
    needs = {at: [at - 1] if shape == "chain" and at > 1 else [] for at in range(1, CALLS)}
    if shape == "fan":
        needs[CALLS - 1] = list(range(1, CALLS - 1))
    return "\n".join(
        " ".join([f"s{at}: s{at} of {run}", *(f"{{s{each}}}" for each in needs[at])])
        for at in needs
    )


class MeteredChat(FakeChat):
    """Its provider enters each call into a file, which is on disk before the answer is out."""

    run: str
    meter: str
    die_in_call: int | None = None

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> Any:
        time.sleep(ANSWER_S / 2)
        result = self._metered(messages, options)
        time.sleep(ANSWER_S / 2)
        return result

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> Any:
        await asyncio.sleep(ANSWER_S / 2)
        result = self._metered(messages, options)
        await asyncio.sleep(ANSWER_S / 2)
        return result

    def _metered(self, messages: list[BaseMessage], options: dict[str, Any]) -> Any:
        result = self._result(messages, options)
        said: Any = result.generations[0].message
        prompt = str(messages[-1].text)
        line = Metered(
            run=self.run,
            step=prompt.split()[0].rstrip(":"),
            prompt_sha256=sha256(prompt.encode()).hexdigest(),
            input_tokens=said.usage_metadata["input_tokens"],
            output_tokens=said.usage_metadata["output_tokens"],
        )
        file = os.open(self.meter, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        os.write(file, json.dumps(line).encode() + b"\n")
        os.fsync(file)
        os.close(file)
        if self.die_in_call and len(self.calls) >= self.die_in_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class DyingSaver(SqliteSaver):
    """Is so slow with its first checkpoint that a reply gets into the ledger; then it dies."""

    ledger: str

    def put(self, *args: Any, **options: Any) -> Any:
        with Ledger(self.ledger) as ledger:
            while not any(line.reply for line in ledger.lines()):
                time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGKILL)


def graph_of(job: Job, saver: BaseCheckpointSaver[Any], ledger: Ledger | None) -> R2Graph:
    planner = MeteredChat(
        answer=scripted(plan(job["shape"], job["run"])).answer, run=job["run"], meter=job["meter"]
    )
    chat = MeteredChat(
        answer=lambda text: f"[{text}]",
        run=job["run"],
        meter=job["meter"],
        die_in_call=job["die_in_call"],
    )
    return create_r2_graph(
        pool_of(chat),
        decomposer=CheckpointDecomposer(member("planner", planner)),
        checkpointer=saver,
        ledger=ledger,
    )


@contextmanager
def blocking_saver(job: Job) -> Iterator[BaseCheckpointSaver[Any]]:
    if job["checkpoints"].startswith("postgresql:"):
        from langgraph.checkpoint.postgres import PostgresSaver

        with PostgresSaver.from_conn_string(job["checkpoints"]) as saver:
            yield saver
    else:
        with SqliteSaver.from_conn_string(job["checkpoints"]) as file:
            if job["dies_for_checkpoint"]:
                file = DyingSaver(file.conn)
                file.ledger = str(job["ledger"])
            yield file


@asynccontextmanager
async def async_saver(job: Job) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    if job["checkpoints"].startswith("postgresql:"):
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

        async with AsyncPostgresSaver.from_conn_string(job["checkpoints"]) as saver:
            yield saver
    else:
        async with AsyncSqliteSaver.from_conn_string(job["checkpoints"]) as file:
            yield file


def run(job: Job, ledger: Ledger | None, begin: Any) -> Any:
    """The result; a run that has no checkpoint yet is begun anew under its name."""
    config = RunnableConfig(configurable={"thread_id": job["run"]}, run_id=job["run"])  # type: ignore[typeddict-item]
    with blocking_saver(job) as saver:
        graph = graph_of(job, saver, ledger)
        begin()
        found = graph.get_state(config)
        # Killed on its way out. `next` says less: it leaves out what has ended and is not applied.
        if found.values and not found.tasks:
            return found.values
        given = None if found.values else "q"
        return graph.invoke(given, config, durability=job["durability"])


async def arun(job: Job, ledger: Ledger | None, begin: Any) -> Any:
    """As `run`."""
    config = RunnableConfig(configurable={"thread_id": job["run"]}, run_id=job["run"])  # type: ignore[typeddict-item]
    async with async_saver(job) as saver:
        graph = graph_of(job, saver, ledger)
        begin()
        found = await graph.aget_state(config)
        if found.values and not found.tasks:
            return found.values
        given = None if found.values else "q"
        return await graph.ainvoke(given, config, durability=job["durability"])


def child(job: Job, begun: int) -> None:
    def begin() -> None:
        os.write(begun, b".")

    ledger = None if job["ledger"] is None else Ledger(job["ledger"])
    if job["world"] == "async":
        result = asyncio.run(arun(job, ledger, begin))
    else:
        result = run(job, ledger, begin)
    if ledger is not None:
        ledger.close()
    told = {key: result[key] for key in ("answer", "cost_usd", "run_id", "stop_reason", "steps")}
    whole = Path(f"{job['result']}-{os.getpid()}")
    whole.write_text(json.dumps(told))
    whole.replace(job["result"])


def outcome(job: Job) -> str:
    """Do a job in a child: `ended`, `killed`, `failed` or `hung`."""
    begun, begin = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            child(job, begin)
            status = 0
        except BaseException:  # noqa: BLE001 - a child must not go on as its parent
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(begin)
    os.read(begun, 1)
    os.close(begun)
    after_s = HUNG_S if job["kill_after_s"] is None else job["kill_after_s"]
    until = time.monotonic() + after_s
    ended, status = os.waitpid(pid, os.WNOHANG)
    while not ended and time.monotonic() < until:
        time.sleep(0.001)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if after_s == HUNG_S:
            return "hung"
    if os.WIFSIGNALED(status):
        return "killed"
    return "failed" if status else "ended"


if __name__ == "__main__":
    for line in sys.stdin:
        print(outcome(json.loads(line)), flush=True)
