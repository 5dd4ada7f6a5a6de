"""Traces: a run as data is the run, through files, resumes and checkpoints."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from typer.testing import CliRunner, Result

from r2graph.allocate import CheapestFirst
from r2graph.cli import app
from r2graph.errors import ConfigError, TraceFileError
from r2graph.explore import ExploringAllocator
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.trace import MAX_LINE_BYTES, Trace, read_traces, to_line, trace, write_traces
from r2graph.verify import Attempt, CallableVerifier, ConfidenceVerifier
from tests.fakes import FakeChat, Planned, ProviderError, echo, pool_of, router_of, scripted

PLAN = "s1: a\ns2: b {s1}\ns3 (after s1): c\nanswer: {s2} and {s3}"


def graph_of(**options: Any) -> R2Graph:
    defaults: dict[str, Any] = {
        "decomposer": Planned(PLAN),
        "allocator": ExploringAllocator(CheapestFirst(), epsilon=0.5, seed=1),
    }
    return create_r2_graph(pool_of(echo(), echo(), echo()), **defaults | options)


def on(thread: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread}}


# What a trace says


def test_a_trace_says_what_was_run_and_what_came_of_it() -> None:
    unsure = FakeChat(answer=lambda _: "hm hm", logprob=-0.5)
    sure = FakeChat(answer=lambda text: text, logprob=-0.01)
    graph = create_r2_graph(
        pool_of(unsure, sure), decomposer=Planned(PLAN), verifier=ConfidenceVerifier()
    )
    result = graph.invoke("the query", context={"quality": 0.7})
    found = trace(result, right=True)
    assert (found.query, found.pool, found.members) == ("the query", "fakes", ("m1", "m2"))
    assert (found.quality, found.router, found.rounds, found.right) == (0.7, None, 1, True)
    assert found.plan is not None
    assert found.plan.model_dump(mode="json") == result["plan"]
    assert [step.depends_on for step in found.steps] == [(), ("s1",), ("s1",)]
    assert [step.prompt for step in found.steps] == ["a", "b a", "c"]
    assert found.steps[1].model_dump(exclude={"attempts": {"__all__": {"seconds"}}}) == {
        "id": "s2",
        "text": "b {s1}",
        "prompt": "b a",
        "depends_on": ("s1",),
        "choice": {
            "member": "m1",
            "reason": "cheapest first",
            "slot": None,
            "probabilities": None,
            "propensity": None,
            "check": None,
        },
        "attempts": (
            {
                "member": "m1",
                "output": "hm hm",
                "ok": False,
                "reason": "the model is not confident",
                "score": -0.5,
                "input_tokens": 2,
                "output_tokens": 2,
                "cost_usd": "0.000004",
                "mean_logprob": -0.5,
            },
            {
                "member": "m2",
                "output": "b a",
                "ok": True,
                "reason": "the model is confident",
                "score": -0.01,
                "input_tokens": 2,
                "output_tokens": 2,
                "cost_usd": "0.00004",
                "mean_logprob": -0.01,
            },
        ),
        "output": "b a",
    }
    for key in ("run_id", "answer", "stop_reason", "cost_usd", "counterfactual_usd"):
        assert getattr(found, key) == result[key], key


def test_a_trace_names_the_router_and_what_it_cost() -> None:
    router = router_of({"walk": "s1: walk"}, lambda _: "m1")
    graph = create_r2_graph(pool_of(echo(), echo(), language="lab"), router=router)
    found = trace(graph.invoke("walk"))
    assert (found.router, found.steps[0].choice.slot) == ("fake", 1)
    assert found.router_cost_usd != "0"


def test_a_failed_call_is_an_attempt_without_output() -> None:
    graph = create_r2_graph(
        pool_of(scripted(ProviderError(500)), echo()), decomposer=Planned("s1: a")
    )
    [step] = trace(graph.invoke("q")).steps
    assert [attempt.output for attempt in step.attempts] == [None, "[a]"]
    assert step.attempts[0].reason == "the call failed: server"
    assert (step.choice.member, step.output) == ("m1", "[a]")


def test_a_run_that_ended_before_its_plan_is_a_trace_too(tmp_path: Path) -> None:
    graph = create_r2_graph(pool_of(echo(), language="any"), budget_usd=0)
    found = trace(graph.invoke("a long query " * 20))
    assert (found.plan, found.steps, found.stop_reason) == (None, (), "budget")
    write_traces(tmp_path / "t.jsonl", [found])
    assert list(read_traces(tmp_path / "t.jsonl")) == [found]


def test_of_two_rounds_the_last_plan_is_told() -> None:
    graph = graph_of(
        decomposer=Planned("s1: a", "s1: b"),
        answer_verifier=CallableVerifier(lambda attempt: "b" in attempt.output),
    )
    found = trace(graph.invoke("q"))
    assert (found.rounds, [step.text for step in found.steps]) == (2, ["b"])


def test_a_trace_is_frozen_and_only_finished_runs_have_one() -> None:
    graph = graph_of(checkpointer=InMemorySaver())
    graph.invoke("q", on("1"), interrupt_before=["execute_step"])
    unfinished = graph.get_state(on("1")).values
    for wrong in (unfinished, {}, {"answer": "secret"}):
        with pytest.raises(ConfigError, match="not the result of a finished run") as caught:
            trace(wrong)
        assert "secret" not in str(caught.value)
    found = trace(graph.invoke(None, on("1")))
    with pytest.raises(ValueError, match="frozen"):
        found.right = True  # type: ignore[misc]


def test_an_allocation_edited_by_hand_has_no_propensity() -> None:
    graph = graph_of(checkpointer=InMemorySaver())
    graph.invoke("q", on("1"), interrupt_before=["execute_step"])
    mine = {"member": "m2", "reason": "mine", "slot": None, "probabilities": None}
    graph.update_state(on("1"), {"allocation": dict.fromkeys(("s1", "s2", "s3"), mine)})
    found = trace(graph.invoke(None, on("1")))
    assert [(s.choice.member, s.choice.propensity) for s in found.steps] == [("m2", None)] * 3


def test_the_level_of_a_steps_checks_is_kept(tmp_path: Path) -> None:
    graph = graph_of(checkpointer=InMemorySaver())
    graph.invoke("q", on("1"), interrupt_before=["execute_step"])
    allocation = graph.get_state(on("1")).values["allocation"]
    allocation["s1"]["check"] = 3
    graph.update_state(on("1"), {"allocation": allocation})
    found = trace(graph.invoke(None, on("1")))
    write_traces(tmp_path / "t.jsonl", [found])
    [read] = read_traces(tmp_path / "t.jsonl")
    assert [step.choice.check for step in read.steps] == [3, None, None]


# Resumes


def timeless(found: Trace) -> dict[str, Any]:
    """What does not hang on the clock or on the run's name."""
    steps = {"__all__": {"attempts": {"__all__": {"seconds"}}}}
    return found.model_dump(exclude={"run_id": True, "steps": steps})


@pytest.mark.parametrize("at", ["[a]", "[b [a]]", "[c]"])
def test_a_resumed_run_has_the_trace_of_an_uninterrupted_one(at: str) -> None:
    crashes = [at]

    def check(attempt: Attempt) -> bool:
        if attempt.step and attempt.output in crashes:
            crashes.clear()
            raise ZeroDivisionError
        return True

    def graph(saver: InMemorySaver | None) -> R2Graph:
        return graph_of(verifier=CallableVerifier(check), checkpointer=saver)

    saver = InMemorySaver()
    with pytest.raises(ZeroDivisionError):
        graph(saver).invoke("q", on("1"))
    resumed = trace(graph(saver).invoke(None, on("1")))
    assert timeless(resumed) == timeless(trace(graph(None).invoke("q")))
    assert resumed.steps[0].choice.propensity is not None


# Files


def test_traces_round_trip_through_a_file(tmp_path: Path) -> None:
    graph = graph_of()
    queries = ["one", "zwölf \u2028 \x00 \n\r Zeilen", '{"three": "{s1}"}']
    traces = [
        trace(graph.invoke(query), right=right)
        for query, right in zip(queries, (True, False, None), strict=True)
    ]
    file = tmp_path / "traces.jsonl"
    assert write_traces(file, traces) == 3
    assert list(read_traces(file)) == traces
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [line["schema_version"] for line in lines] == [1, 1, 1]
    assert lines[0]["plan"]["subtasks"][1]["depends_on"] == ["s1"]


def test_a_line_from_before_checks_had_levels_is_read(tmp_path: Path) -> None:
    found = trace(graph_of().invoke("q"))
    line = json.loads(to_line(found))
    for step in line["steps"]:
        del step["choice"]["check"]
    (tmp_path / "t.jsonl").write_text(json.dumps(line))
    assert list(read_traces(tmp_path / "t.jsonl")) == [found]


def spoiled(line: dict[str, Any], *path: str | int, value: Any) -> bytes:
    """A line with one value in another's place."""
    *way, last = path
    at: Any = line
    for part in way:
        at = at[part]
    at[last] = value
    return json.dumps(line).encode() + b"\n"


BAD: dict[str, tuple[Any, ...]] = {
    "another version": ("schema_version", 2),
    "an unknown key": ("SECRET", 1),
    "an unknown key inside": ("steps", 0, "SECRET", 1),
    "money as a number": ("cost_usd", 0.1),
    "tokens as a text": ("steps", 0, "attempts", 0, "input_tokens", "SECRET"),
    "a probability of a SECRET": ("steps", 0, "choice", "probabilities", {"SECRET": 2}),
    "not a number": ("steps", 0, "choice", "propensity", float("nan")),
    "a level that is none": ("steps", 0, "choice", "check", 11),
    "a plan that is none": ("plan", {"subtasks": [{"id": "s1", "text": "{s1} SECRET"}]}),
    "an unknown stop": ("stop_reason", "SECRET"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_line_is_a_typed_error_with_its_place_and_without_its_content(
    bad: str, tmp_path: Path
) -> None:
    good = to_line(trace(graph_of().invoke("q")))
    *path, value = BAD[bad]
    refused(tmp_path / "t.jsonl", good + spoiled(json.loads(good), *path, value=value) + good)


@pytest.mark.parametrize(
    "line",
    [b"\n", b"SECRET\n", b'"SECRET"\n', b"\xffSECRET\n", b"[" * 100_000 + b"\n", b"{}\n"],
    ids=lambda line: repr(line[:9]),
)
def test_a_line_that_is_no_object_is_a_typed_error(line: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "t.jsonl", to_line(trace(graph_of().invoke("q"))) + line)


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    good = to_line(trace(graph_of().invoke("q")))
    assert "bytes" in refused(tmp_path / "t.jsonl", good + b" " * (MAX_LINE_BYTES + 2))


def test_a_torn_line_is_a_typed_error(tmp_path: Path) -> None:
    good = to_line(trace(graph_of().invoke("q")))
    refused(tmp_path / "t.jsonl", good + good[:-20])


def test_a_file_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match="nowhere"):
        next(read_traces(tmp_path / "nowhere.jsonl"))


def refused(file: Path, content: bytes) -> str:
    """Reading gives the first line and then an error that names the second; returns it."""
    file.write_bytes(content)
    reading = read_traces(file)
    next(reading)
    with pytest.raises(TraceFileError, match=f"line 2 of {file}") as caught:
        next(reading)
    assert isinstance(caught.value, ConfigError)
    assert "SECRET" not in str(caught.value)
    return str(caught.value)


# Export


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints.sqlite"


@pytest.fixture
def saver(checkpoints: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver.from_conn_string(str(checkpoints)) as saver:
        yield saver


def export(checkpoints: Path, *options: str) -> tuple[list[Trace], str]:
    """The traces, and what was said about them."""
    out = checkpoints.with_name("out.jsonl")
    done = run("--checkpoints", str(checkpoints), "--out", str(out), *options)
    assert done.exit_code == 0, done.output
    assert not done.stdout
    return list(read_traces(out)), done.stderr


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["trace", "export", *arguments])


def test_the_export_of_a_checkpointer_is_the_trace_of_each_result(
    checkpoints: Path, saver: SqliteSaver
) -> None:
    graph = graph_of(checkpointer=saver)
    results = [
        graph.invoke(query, on(thread)) for query, thread in (("1", "z"), ("2", "a"), ("3", "z"))
    ]
    first, second, third = map(trace, results)
    found, said = export(checkpoints)
    assert found == [first, third, second]  # thread by thread
    assert said == "finished runs: 3; threads unfinished: 0, without runs of this graph: 0\n"
    assert export(checkpoints, "--thread", "a")[0] == [second]
    assert export(checkpoints, "--thread", "a", "--thread", "z")[0] == [second, first, third]


def test_unfinished_runs_are_counted_and_what_ended_before_them_is_kept(
    checkpoints: Path, saver: SqliteSaver
) -> None:
    graph = graph_of(checkpointer=saver)
    graph.invoke("interrupted", on("1"), interrupt_before=["execute_step"])
    result = graph.invoke("done", on("2"))
    graph.invoke("interrupted", on("2"), interrupt_before=["decompose"])
    found, said = export(checkpoints)
    assert found == [trace(result)]
    assert said == "finished runs: 1; threads unfinished: 2, without runs of this graph: 0\n"


@dataclass
class Trap:
    """Says so when code from a checkpoint is run."""

    sprung = False
    value: int

    def __post_init__(self) -> None:
        Trap.sprung = True


def foreign(saver: SqliteSaver, state: Mapping[str, Any], thread: str) -> None:
    builder = StateGraph(dict)
    builder.add_node("node", lambda _: state)
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    builder.compile(checkpointer=saver).invoke({}, on(thread))


def test_threads_of_other_graphs_are_skipped_and_none_of_their_code_is_run(
    checkpoints: Path, saver: SqliteSaver
) -> None:
    foreign(saver, {"query": "q", "run_id": "1", "stop_reason": "verified", "x": Trap(1)}, "1")
    foreign(saver, {"trap": Trap(2)}, "2")
    result = graph_of(checkpointer=saver).invoke("q", on("3"))
    foreign(saver, {"query": 1}, "4")
    saver.conn.execute("UPDATE checkpoints SET checkpoint = 'rubbish' WHERE thread_id = '4'")
    saver.conn.commit()
    Trap.sprung = False
    found, said = export(checkpoints)
    assert found == [trace(result)]
    assert not Trap.sprung
    assert said.endswith("finished runs: 1; threads unfinished: 0, without runs of this graph: 3\n")


def test_a_checkpointer_is_only_read(checkpoints: Path) -> None:
    with SqliteSaver.from_conn_string(str(checkpoints)) as saver:
        graph_of(checkpointer=saver).invoke("q", on("1"))
        saver.conn.execute("PRAGMA journal_mode=DELETE")
    before = checkpoints.read_bytes()
    checkpoints.chmod(0o444)
    assert len(export(checkpoints)[0]) == 1
    assert checkpoints.read_bytes() == before


def test_what_holds_no_checkpoints_is_a_message(
    checkpoints: Path, saver: SqliteSaver, tmp_path: Path
) -> None:
    graph_of(checkpointer=saver).invoke("q", on("1"))
    (tmp_path / "text").write_text("SECRET " * 1_000)
    sqlite3.connect(tmp_path / "empty").close()
    out = str(tmp_path / "out.jsonl")
    for arguments, message in {
        ("nowhere", out): "nowhere is no file of LangGraph checkpoints",
        (str(tmp_path / "text"), out): "text is no file of LangGraph checkpoints",
        (str(tmp_path / "empty"), out): "empty is no file of LangGraph checkpoints",
        (str(checkpoints), f"{tmp_path}/text/out.jsonl"): "text is no directory",
        (str(checkpoints), out, "--thread", "9"): "there is no thread '9'",
    }.items():
        file, to, *options = arguments
        done = run("--checkpoints", file, "--out", to, *options)
        assert (done.exit_code, done.stdout) == (2, ""), done.output
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not Path(out).exists()
    assert not Path("nowhere").exists()


def test_without_the_checkpointer_the_error_names_the_extra(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["langgraph.checkpoint.sqlite"] = None  # as if it were not installed
from r2graph.cli import app
app(["trace", "export", "--checkpoints", "c", "--out", {str(tmp_path / "out")!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("pip install 'r2graph[sqlite]'")


def test_a_failing_write_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "traces.jsonl"
    write_traces(file, [])
    file.write_bytes(b"old\n")

    def failing() -> Iterator[Trace]:
        raise ConfigError("no more")
        yield

    with pytest.raises(ConfigError):
        write_traces(file, failing())
    assert file.read_bytes() == b"old\n"
    assert list(tmp_path.iterdir()) == [file]


def test_an_export_onto_the_checkpoints_themselves_is_refused(tmp_path: Path) -> None:
    checkpoints = tmp_path / "kept.sqlite"
    checkpoints.write_bytes(b"precious")
    arguments = ["--checkpoints", str(checkpoints), "--out", str(checkpoints)]
    result = CliRunner().invoke(app, ["trace", "export", *arguments])
    assert result.exit_code == 2
    assert checkpoints.read_bytes() == b"precious"
