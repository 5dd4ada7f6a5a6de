"""Threads and checkpoints: a crash loses no finished step, and turns do not run into each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from r2graph.decompose import CheckpointDecomposer
from r2graph.errors import CheckpointError, ModelCallError, PlanError, UnknownModelError
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.limits import Limits
from r2graph.verify import Attempt, CallableVerifier
from tests.fakes import (
    FakeChat,
    ListeningChat,
    Planned,
    ProviderError,
    echo,
    member,
    pool_of,
    scripted,
)

THREAD: RunnableConfig = {"configurable": {"thread_id": "1"}}
FAN = "s1: a\ns2: b\ns3: c\ns4: {s1} {s2} {s3}"


class CrashError(Exception):
    """Not one of ours: what a bug, a full disk or a lost connection would raise."""


@pytest.fixture(params=["memory sync", "memory async", "sqlite sync", "sqlite async"])
async def saver(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """Checkpointers that store nothing but plain data."""
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    path = str(tmp_path / "checkpoints.sqlite")
    if request.param.startswith("memory"):
        yield InMemorySaver(serde=strict)
    elif request.param.endswith("async"):
        async with AsyncSqliteSaver.from_conn_string(path) as saver:
            saver.serde = strict
            yield saver
    else:
        with SqliteSaver.from_conn_string(path) as blocking:
            blocking.serde = strict
            yield blocking


@pytest.fixture
def run(request: pytest.FixtureRequest, saver: BaseCheckpointSaver[Any]) -> Any:
    """Invoke in the world that the checkpointer belongs to."""
    name = request.node.callspec.params["saver"]

    async def invoke(graph: R2Graph, given: Any, config: RunnableConfig = THREAD) -> Any:
        if name.endswith("async"):
            return await graph.ainvoke(given, config)
        return graph.invoke(given, config)

    return invoke


class Crashing:
    """A check that crashes on some outputs until it is repaired."""

    def __init__(self, *outputs: str) -> None:
        self.outputs = outputs

    def __call__(self, attempt: Attempt) -> bool:
        if attempt.step and attempt.output in self.outputs:
            raise CrashError
        return True


async def test_a_resumed_run_gives_each_step_its_own_output(
    run: Any, saver: BaseCheckpointSaver[Any]
) -> None:
    # Steps end in another order than the plan's: the first is the slowest.
    delays = {"a": 0.05, "b": 0.02, "c": 0.0}

    class Uneven(FakeChat):
        def _generate(self, messages: list[BaseMessage], *args: Any, **options: Any) -> Any:
            self.delay_s = delays.get(str(messages[-1].text), 0.0)
            return super()._generate(messages, *args, **options)

        async def _agenerate(self, messages: list[BaseMessage], *args: Any, **options: Any) -> Any:
            self.delay_s = delays.get(str(messages[-1].text), 0.0)
            return await super()._agenerate(messages, *args, **options)

    for crashed in ("[a]", "[b]", "[c]", "[[a] [b] [c]]"):
        chat, check = Uneven(answer=lambda text: f"[{text}]"), Crashing(crashed)
        graph = create_r2_graph(
            pool_of(chat),
            decomposer=Planned(FAN),
            verifier=CallableVerifier(check),
            checkpointer=saver,
        )
        thread: RunnableConfig = {"configurable": {"thread_id": crashed}}
        with pytest.raises(CrashError):
            await run(graph, "q", thread)
        finished = set(chat.prompts) - {crashed[1:-1]}
        chat.calls.clear()
        check.outputs = ()
        result = await run(graph, None, thread)
        assert result["answer"] == "[[a] [b] [c]]"
        outputs = {name: step["output"] for name, step in result["steps"].items()}
        assert outputs == {"s1": "[a]", "s2": "[b]", "s3": "[c]", "s4": "[[a] [b] [c]]"}
        assert not finished & set(chat.prompts), "a finished step was run again"
        assert result["usage"]["m1"]["calls"] == 4


async def test_a_failed_pool_can_be_resumed_when_it_is_back(
    run: Any, saver: BaseCheckpointSaver[Any]
) -> None:
    replies: dict[str, str | Exception] = {"a": "A", "b": ProviderError(500)}
    chat = FakeChat(answer=lambda text: replies.get(text, text))
    planner = Planned("s1: a\ns2: b\ns3: {s1} {s2}")
    graph = create_r2_graph(pool_of(chat), decomposer=planner, checkpointer=saver)
    with pytest.raises(ModelCallError):
        await run(graph, "q")
    replies["b"] = "B"
    result = await run(graph, None)
    assert result["answer"] == "A B"
    assert chat.prompts.count("a") == 1
    assert len(planner.contexts) == 1


async def test_what_was_used_before_a_crash_counts_after_it(
    run: Any, saver: BaseCheckpointSaver[Any]
) -> None:
    check = Crashing("[c]")
    graph = create_r2_graph(
        pool_of(echo()),
        decomposer=CheckpointDecomposer(member("planner", scripted(FAN))),
        verifier=CallableVerifier(check),
        checkpointer=saver,
        limits=Limits(max_calls=4),
    )
    with pytest.raises(CrashError):
        await run(graph, "q")
    check.outputs = ()
    result = await run(graph, None)
    # The plan, s1 and s2 were paid before, s3 is the fourth call.
    assert (result["stop_reason"], result["steps"]["s3"]["output"]) == ("calls", "[c]")
    assert sum(usage["calls"] for usage in result["usage"].values()) == 4


KILLED = """
import os
from langgraph.checkpoint.sqlite import SqliteSaver
from r2graph.graph import create_r2_graph
from tests.fakes import FakeChat, ListeningChat, Planned, pool_of

def answer(text):
    if text.startswith("c "):
        os._exit(9)
    return f"[{text}]"

with SqliteSaver.from_conn_string(os.environ["CHECKPOINTS"]) as saver:
    graph = create_r2_graph(
        pool_of(FakeChat(answer=answer)),
        decomposer=Planned(os.environ["PLAN"]),
        checkpointer=saver,
    )
    graph.invoke("q", {"configurable": {"thread_id": "1"}})
"""


def test_a_killed_process_can_be_taken_over_by_another(tmp_path: Path) -> None:
    path, plan = str(tmp_path / "checkpoints.sqlite"), "s1: a\ns2: b\ns3: c {s1} {s2}"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "CHECKPOINTS": path, "PLAN": plan},
        check=False,
    )
    assert killed.returncode == 9
    with SqliteSaver.from_conn_string(path) as saver:
        graph = create_r2_graph(pool_of(echo()), decomposer=Planned(plan), checkpointer=saver)
        result = graph.invoke(None, THREAD)
    outputs = {name: step["output"] for name, step in result["steps"].items()}
    assert outputs == {"s1": "[a]", "s2": "[b]", "s3": "[c [a] [b]]"}


async def test_two_turns_on_a_thread_keep_their_own_books(
    run: Any, saver: BaseCheckpointSaver[Any]
) -> None:
    graph = create_r2_graph(pool_of(echo(), language="any"), checkpointer=saver)
    first = await run(graph, "one")
    second = await run(graph, "two")
    assert [message.text for message in second["messages"]] == ["one", "[one]", "two", "[two]"]
    assert second["answer"] == "[two]"
    assert set(second["steps"]) == {"s1"}
    assert first["run_id"] != second["run_id"]
    assert second["usage"]["m1"]["calls"] == 1


async def test_a_second_turn_can_refer_to_the_first(
    run: Any, saver: BaseCheckpointSaver[Any]
) -> None:
    chat = ListeningChat(answer=lambda _: "so")
    graph = create_r2_graph(pool_of(chat, language="any"), checkpointer=saver)
    await run(graph, {"messages": [("system", "Be brief."), ("user", "one")]})
    await run(graph, "two")
    assert chat.heard[-1] == ["Be brief.", "one", "so", "two"]


async def test_a_new_turn_after_a_crash_starts_afresh(
    run: Any, saver: BaseCheckpointSaver[Any]
) -> None:
    check = Crashing("[c]")
    planner = Planned(FAN)
    graph = create_r2_graph(
        pool_of(echo()),
        decomposer=planner,
        verifier=CallableVerifier(check),
        checkpointer=saver,
    )
    with pytest.raises(CrashError):
        await run(graph, "one")
    check.outputs = ()
    result = await run(graph, "two")
    assert planner.contexts[-1].round == 1
    assert result["usage"]["m1"]["calls"] == 4
    assert result["answer"] == "[[a] [b] [c]]"


async def test_a_turn_after_a_rejected_one_has_all_its_rounds(
    run: Any, saver: BaseCheckpointSaver[Any]
) -> None:
    planner = Planned("s1: a", "s1: b")
    graph = create_r2_graph(
        pool_of(echo()),
        decomposer=planner,
        answer_verifier=CallableVerifier(lambda _: False),
        checkpointer=saver,
    )
    for _ in range(2):
        assert (await run(graph, "q"))["stop_reason"] == "rounds"
    assert [context.round for context in planner.contexts] == [1, 2, 1, 2]
    assert planner.contexts[2].feedback == []


async def test_the_state_is_plain_json(run: Any, saver: BaseCheckpointSaver[Any]) -> None:
    graph = create_r2_graph(pool_of(echo()), decomposer=Planned(FAN), checkpointer=saver)
    await run(graph, "q")
    async for found in _history(graph, saver):
        values = {key: value for key, value in found.values.items() if key != "messages"}
        assert json.loads(json.dumps(values)) == values
        assert "r2_run" not in repr(found.config) + repr(found.metadata)


async def _history(graph: R2Graph, saver: BaseCheckpointSaver[Any]) -> AsyncIterator[Any]:
    if isinstance(saver, AsyncSqliteSaver):
        async for found in graph.aget_state_history(THREAD):
            yield found
    else:
        for found in graph.get_state_history(THREAD):
            yield found


def tamper(saver: InMemorySaver, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the recorded result of each finished step."""
    for writes in saver.writes.values():
        for key, (task, channel, value, path) in writes.items():
            if channel == "__return__":
                result = saver.serde.loads_typed(value)
                edit(result["step"])
                writes[key] = (task, channel, saver.serde.dumps_typed(result), path)


@pytest.mark.parametrize(
    "change",
    [
        {"s1": {"id": "s2"}, "s2": {"id": "s1"}},
        {"s1": {"text": "another"}},
        {"s1": {"output": "another"}},
        {"s2": {"prompt": "b another"}},
        {"s1": {"attempts": "none"}},
    ],
    ids=str,
)
def test_a_result_that_is_not_the_steps_own_is_never_used(change: dict[str, Any]) -> None:
    saver, check = InMemorySaver(), Crashing("[c]")
    graph = create_r2_graph(
        pool_of(echo()),
        decomposer=Planned("s1: a\ns2: b {s1}\ns3: c"),
        verifier=CallableVerifier(check),
        checkpointer=saver,
    )
    with pytest.raises(CrashError):
        graph.invoke("q", THREAD)
    check.outputs = ()
    tamper(saver, lambda step: step.update(change.get(step["id"], {})))
    with pytest.raises(CheckpointError):
        graph.invoke(None, THREAD)


# A human, or a program, may edit the state between nodes.


CHOSEN = {"member": "m1", "reason": "mine", "slot": None, "probabilities": None}


def stopped_before_the_steps() -> R2Graph:
    graph = create_r2_graph(
        pool_of(echo(), scripted("B")),
        decomposer=Planned("s1: a\ns2: b"),
        checkpointer=InMemorySaver(),
    )
    graph.invoke("q", THREAD, interrupt_before=["execute_step"])
    return graph


def test_an_edited_plan_is_run_as_edited() -> None:
    graph = stopped_before_the_steps()
    plan = {"subtasks": [{"id": "s1", "text": "x"}, {"id": "s2", "text": "y {s1}"}]}
    allocation = graph.get_state(THREAD).values["allocation"]
    allocation["s2"]["member"] = "m2"
    graph.update_state(THREAD, {"plan": plan, "allocation": allocation})
    result = graph.invoke(None, THREAD)
    assert [step["prompt"] for step in result["steps"].values()] == ["x", "y [x]"]
    assert result["answer"] == "B"


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        ({"plan": {"subtasks": [{"id": "s1", "text": "{s1}"}]}}, PlanError),
        ({"plan": "rm -rf"}, PlanError),
        ({"allocation": {"s1": CHOSEN, "s2": CHOSEN | {"member": "m9"}}}, UnknownModelError),
        ({"allocation": {"s1": CHOSEN}}, CheckpointError),
        ({"allocation": "m1 m2"}, CheckpointError),
        ({"allocation": {"s1": "m1", "s2": 7}}, CheckpointError),
        ({"allocation": {"s1": CHOSEN, "s2": CHOSEN | {"check": 0}}}, CheckpointError),
        ({"allocation": {"s1": CHOSEN, "s2": CHOSEN | {"check": 11}}}, CheckpointError),
        ({"progress": {"run_id": 7}}, CheckpointError),
        ({"bill": [{"cost_usd": "-1"}]}, CheckpointError),
        ({"bill": 7}, CheckpointError),
    ],
    ids=str,
)
def test_an_edit_that_makes_no_sense_is_a_typed_error(
    edit: dict[str, Any], error: type[Exception]
) -> None:
    graph = stopped_before_the_steps()
    graph.update_state(THREAD, edit)
    with pytest.raises(error):
        graph.invoke(None, THREAD)
