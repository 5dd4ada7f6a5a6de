"""The dev server with the project's graphs, as Studio, other programs and other graphs use it."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import Command
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient

from r2graph import Ledger, create_r2_graph
from r2graph.errors import MissingKeyError
from r2graph.limits import Limits
from tests.chat_fakes import openai_server
from tests.fakes import echo, pool_of
from tests.postgres import new_schema, postgres_server
from tests.serving import until

__all__ = ["postgres_server"]  # a fixture

ROOT = Path(__file__).parent.parent
GRAPHS = ["lab", "openai", "review", "vllm"]
CANARY = "sk-canary-3f9a"
QUERY = "walk twice and jump"
ANSWER = "I_WALK I_WALK I_JUMP"


class Server(NamedTuple):
    url: str
    client: SyncLangGraphClient

    def run(self, graph: str, query: str = QUERY, *, thread: Any = None, **options: Any) -> Any:
        """The result of a run, stateless unless on a thread."""
        return self.client.runs.wait(thread, graph, input={"query": query}, **options)

    def assistant(self, graph: str) -> str:
        """The id of the one that the server makes of each graph."""
        [found] = self.client.assistants.search(graph_id=graph, metadata={"created_by": "system"})
        return found["assistant_id"]

    def thread(self) -> str:
        return self.client.threads.create()["thread_id"]

    def remote(self, graph: str) -> RemoteGraph:
        return RemoteGraph(graph, sync_client=self.client)

    def mcp(self, method: str, **params: Any) -> Any:
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        headers = {"accept": "application/json, text/event-stream"}
        reply = httpx.post(f"{self.url}/mcp", json=message, headers=headers, timeout=60)
        return reply.json()["result"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`langgraph dev` on a copy of what it reads, for it writes where it is started.

    It has a key, which must be in nothing that it has written in the end.
    """
    folder = copied(tmp_path_factory.mktemp("studio"))
    with openai_server() as provider, running(folder, provider) as server:
        yield server
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".pckl" for path in written)
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]


def copied(folder: Path) -> Path:
    """What the server reads."""
    for name in ("langgraph.json", "langgraph.postgres.json"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "graphs", folder / "graphs", ignore=shutil.ignore_patterns("__py*"))
    return folder


@contextmanager
def running(
    folder: Path, provider: str, *options: str, end: int = signal.SIGTERM, **variables: str
) -> Iterator[Server]:
    """`langgraph dev`, ended by a signal."""
    with (folder / "log").open("a") as log:
        url, process = started(folder, provider, log, *options, **variables)
        try:
            until(lambda: process.poll() is not None or is_up(url), seconds=60)
            assert process.poll() is None, (folder / "log").read_text()
            with get_sync_client(url=url, api_key=None) as client:
                yield Server(url, client)
        finally:
            process.send_signal(end)
            process.wait(20)


def started(
    folder: Path, provider: str, log: Any, *options: str, **variables: str
) -> tuple[str, subprocess.Popen[bytes]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "LANGGRAPH_NO_VERSION_CHECK": "true",
        "LANGGRAPH_STRICT_MSGPACK": "true",
        "LANGSMITH_TRACING": "false",
        "OPENAI_API_KEY": CANARY,
        "OPENAI_BASE_URL": provider,
        "VLLM_BASE_URL": provider,
        **variables,
    }
    langgraph = Path(sys.executable).with_name("langgraph")
    process = subprocess.Popen(
        [langgraph, "dev", "--no-browser", "--no-reload", "--port", str(port), *options],
        cwd=folder,
        env=environment,
        stdout=log,
        stderr=log,
    )
    return f"http://127.0.0.1:{port}", process


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ok").is_success
    except httpx.TransportError:
        return False


# What Studio shows


def test_each_graph_is_there_with_a_name_and_a_description(server: Server) -> None:
    found = {each["graph_id"]: each for each in server.client.assistants.search()}
    assert sorted(found) == GRAPHS
    assert all(name == each["name"] and each["description"] for name, each in found.items())


def test_the_drawing_has_the_edges_that_exist(server: Server) -> None:
    def edges(graph: str) -> set[tuple[str, str]]:
        drawn = server.client.assistants.get_graph(server.assistant(graph))["edges"]
        return {(str(edge["source"]), str(edge["target"])) for edge in drawn}

    ends = {("__start__", "decompose"), ("decompose", "allocate"), ("execute_step", "verify")}
    ends |= {("verify", "decompose"), ("verify", "__end__")}
    reviewed = {("allocate", "review"), ("review", "decompose"), ("review", "execute_step")}
    assert edges("lab") == ends | {("allocate", "execute_step")}
    assert edges("review") == ends | reviewed


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_forms_say_what_each_field_is_for(server: Server, graph: str) -> None:
    schemas = server.client.assistants.get_schemas(server.assistant(graph))
    forms = [schemas["input_schema"], schemas["output_schema"], schemas["context_schema"]]
    for form in [*forms, forms[2]["$defs"]["Limits"]]:  # type: ignore[index]
        assert form["description"]  # type: ignore[index]
        assert all(field["description"] for field in form["properties"].values())  # type: ignore[index]
    asked, given, _ = (form["properties"] for form in forms)  # type: ignore[index]
    assert asked.keys() == {"query", "messages"}  # with messages there is a chat
    assert asked["messages"]["type"] == "array"
    assert (
        given.keys() | {"progress", "bill", "query"}
        == schemas["state_schema"][  # type: ignore[index]
            "properties"
        ].keys()
    )


def test_the_settings_that_can_be_edited_are_those_of_the_graph() -> None:
    graph = create_r2_graph(
        pool_of(echo()),
        quality=0.7,
        budget_usd="0.01",
        limits=Limits(max_calls=5),
        pools={"other": pool_of(echo())},
    )
    schema = graph.get_context_jsonschema()
    fields, limits = schema["properties"], schema["$defs"]["Limits"]["properties"]
    quality, budget = fields["quality"], fields["budget_usd"]
    assert [quality[key] for key in ("type", "minimum", "maximum")] == ["number", 0, 1]
    assert (quality["default"], budget["default"], budget["type"]) == (0.7, 0.01, "number")
    assert (limits["max_calls"]["default"], fields["pool"]["enum"]) == (5, ["other"])
    assert set(quality["langgraph_nodes"]) <= graph.nodes.keys()


# Runs


def test_a_run_answers_with_its_bill(server: Server) -> None:
    result = server.run("lab")
    assert (result["answer"], result["stop_reason"]) == (ANSWER, "verified")
    assert float(result["cost_usd"]) > 0
    assert set(result["allocation"]) == set(result["steps"]) == {"s1", "s2"}


def test_a_thread_goes_on_and_a_stream_shows_its_steps(server: Server) -> None:
    thread = server.thread()
    server.run("lab", "jump", thread=thread)
    turn: Any = {"messages": [{"role": "user", "content": QUERY}]}
    modes: Any = ["updates", "custom", "messages-tuple"]
    parts = list(server.client.runs.stream(thread, "lab", input=turn, stream_mode=modes))
    updates = [node for part in parts if part.event == "updates" for node in part.data]
    events = [part.data["event"] for part in parts if part.event == "custom"]
    said = [part.data[0] for part in parts if part.event == "messages"]
    assert updates == ["decompose", "allocate", "step", "step", "execute_step", "verify"]
    assert {"plan", "allocation", "attempt", "step", "answer"} <= set(events)
    assert said[-1]["content"] == ANSWER
    state: Any = server.client.threads.get_state(thread)["values"]
    told = [message["content"] for message in state["messages"]]
    assert told == ["jump", "I_JUMP", QUERY, ANSWER]


def test_settings_of_a_run_and_of_an_assistant_are_kept(server: Server) -> None:
    broke = server.run("lab", context={"quality": 0.5, "budget_usd": 0})
    assert (broke["stop_reason"], broke["run"]["quality"]) == ("budget", 0.5)
    mine = server.client.assistants.create("lab", context={"limits": {"max_calls": 1}}, name="mine")
    try:
        assert server.run(mine["assistant_id"])["stop_reason"] == "calls"
    finally:
        server.client.assistants.delete(mine["assistant_id"])


@pytest.mark.parametrize(
    ("query", "context", "why"),
    [("Who wrote Hamlet?", {}, "UnsupportedQueryError"), (QUERY, {"quality": 2}, "ConfigError")],
)
def test_what_cannot_be_run_is_refused_with_the_reason(
    server: Server, query: str, context: Any, why: str
) -> None:
    result = server.run("lab", query, context=context, raise_error=False)
    assert result["__error__"]["error"] == why
    assert ("lab's language" if why.startswith("Un") else "quality") in str(result)


# Review


@pytest.mark.parametrize("decision", ["approve", "edit", "reject"])
def test_a_plan_waits_for_a_humans_decision(server: Server, decision: str) -> None:
    thread = server.thread()
    [paused] = server.run("review", thread=thread)["__interrupt__"]
    assert server.client.threads.get(thread)["status"] == "interrupted"
    [action] = paused["value"]["action_requests"]
    given: dict[str, Any] = {"type": decision}
    if decision == "edit":
        edited = action["args"] | {"members": {"s1": "m3"}}
        edited["plan"]["subtasks"][1]["text"] = "look"
        given["edited_action"] = {"name": action["name"], "args": edited}
    resume: Any = {"resume": {"decisions": [given]}}
    result: Any = server.client.runs.wait(thread, "review", command=resume)
    if decision == "reject":  # the lab's planner knows no other plan
        assert (result["answer"], result["stop_reason"], result["steps"]) == ("", "rounds", {})
    elif decision == "edit":
        assert result["answer"] == "I_WALK I_WALK I_LOOK"
        assert result["steps"]["s1"]["attempts"][0]["member"] == "m3"
    else:
        assert result["answer"] == ANSWER


# Other programs and other graphs


def test_an_mcp_client_finds_the_graphs_as_tools_and_calls_one(server: Server) -> None:
    tools = {tool["name"]: tool for tool in server.mcp("tools/list")["tools"]}
    assert sorted(tools) == GRAPHS
    assert all(tool["description"] for tool in tools.values())
    assert tools["lab"]["inputSchema"]["properties"]["query"]["description"]
    [said] = server.mcp("tools/call", name="lab", arguments={"query": QUERY})["content"]
    assert ast.literal_eval(said["text"])["answer"] == ANSWER


def test_a_remote_graph_is_a_node_that_streams(server: Server) -> None:
    builder = StateGraph(MessagesState)
    builder.add_node("r2", server.remote("lab"))
    builder.add_edge(START, "r2")
    question: Any = {"messages": [HumanMessage(QUERY)]}
    modes: Any = ["values", "custom"]
    parts = list(builder.compile().stream(question, stream_mode=modes, subgraphs=True))
    events = [part["event"] for _, mode, part in parts if mode == "custom"]
    assert {"plan", "allocation", "attempt", "step", "answer"} <= set(events)
    namespace, _, last = parts[-1]
    assert namespace == ()
    assert [message.text for message in last["messages"]] == [QUERY, ANSWER]


def test_a_remote_graph_is_invoked_and_resumed_like_a_local_one(server: Server) -> None:
    remote = server.remote("review")
    config: Any = {"configurable": {"thread_id": server.thread()}}
    context = {"quality": 0.5}
    paused: Any = remote.invoke({"query": QUERY}, config, context=context)
    assert paused["__interrupt__"][0]["value"]["action_requests"]
    approved: Any = Command(resume={"decisions": [{"type": "approve"}]})
    result: Any = remote.invoke(approved, config, context=context)
    assert (result["answer"], result["run"]["quality"]) == (ANSWER, 0.5)


# Keys


@pytest.mark.parametrize("graph", ["openai", "vllm"])
def test_a_key_is_in_nothing_that_the_server_says(server: Server, graph: str) -> None:
    thread = server.thread()
    result = server.run(graph, "How do we meet?", thread=thread)
    assert result["answer"] == "Well met."
    said = [
        result,
        server.client.threads.get_history(thread),
        server.client.runs.list(thread),
        server.client.assistants.search(),
        server.client.assistants.get_schemas(server.assistant(graph)),
    ]
    assert CANARY not in json.dumps(said)


def test_a_graph_is_made_without_its_key_and_asks_for_it_when_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    graph = importlib.import_module("graphs.openai").graph
    with pytest.raises(MissingKeyError, match="set OPENAI_API_KEY in the environment"):
        graph.invoke("How do we meet?")


# PostgreSQL


@pytest.mark.slow
def test_threads_and_calls_outlive_the_server_in_postgresql(
    postgres_server: str, tmp_path: Path
) -> None:
    folder, source = copied(tmp_path), new_schema(postgres_server)
    config = json.loads((folder / "langgraph.postgres.json").read_text())
    config["graphs"] = {"vllm": config["graphs"]["vllm"]}  # the lab's take their time to load
    (folder / "only.json").write_text(json.dumps(config))
    options = "--config", "only.json"
    variables = {"R2GRAPH_LEDGER": source, "R2GRAPH_CHECKPOINTS": source}
    with openai_server() as provider:
        with running(folder, provider, *options, end=signal.SIGKILL, **variables) as server:
            thread = server.thread()
            first = server.run("vllm", "How do we meet?", thread=thread)
        shutil.rmtree(folder / ".langgraph_api")  # the server's own files
        variables["R2GRAPH_POOL_BUDGET"] = first["cost_usd"]  # which is thereby spent
        with running(folder, provider, *options, **variables) as server:
            server.client.threads.create(thread_id=thread, graph_id="vllm")
            state: Any = server.client.threads.get_state(thread)
            assert state["values"]["run_id"] == first["run_id"]
            turn: Any = {"messages": [{"role": "user", "content": "And how do we part?"}]}
            second: Any = server.client.runs.wait(thread, "vllm", input=turn)
    assert (first["answer"], second["stop_reason"]) == ("Well met.", "pool_budget")
    said = [message["content"] for message in second["messages"]]
    assert said == ["How do we meet?", "Well met.", "And how do we part?"]
    with Ledger(source) as ledger:
        assert sum(line.usd for line in ledger.lines()) == Decimal(first["cost_usd"])


def test_the_configurations_differ_in_where_threads_are_kept_alone() -> None:
    plain = json.loads((ROOT / "langgraph.json").read_text())
    postgres = json.loads((ROOT / "langgraph.postgres.json").read_text())
    assert postgres.pop("checkpointer") == {"path": "./graphs/checkpoints.py:postgres"}
    assert postgres == plain
