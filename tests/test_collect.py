"""Collecting traces: each pair of query and sample once, however often it is stopped."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from r2graph.errors import TraceFileError
from r2graph.graph import R2Graph
from r2graph.lab import benchmarks
from r2graph.lab.language import task
from r2graph.lab.task import is_test
from r2graph.plan import render_text
from r2graph.trace import Trace, read_traces
from tests.fakes import FakeChat, ProviderError, pool_of, router_of
from training.collect import (
    Exploration,
    Job,
    collect,
    explorer,
    jobs,
    levels,
    main,
    planner,
    queries,
)

TASKS = [
    task(f"{first} and {then}")
    for first in ("walk", "run", "look")
    for then in ("jump", "walk twice")
]
STEPS = {prompt: output for each in TASKS for _, prompt, output in each.steps()}
SAMPLES = 3
ALL = 18
QUALITIES = [level / 10 for level in range(1, 11)]

Answer = Callable[[str], str | Exception]


def right(prompt: str) -> str:
    return STEPS[prompt]


def graphs(answer: Answer = right, seed: int = 0) -> list[R2Graph]:
    """Three members that answer alike, and a router that gives everything to the first."""
    pool = pool_of(*[FakeChat(answer=answer) for _ in range(3)], language="lab")
    router = router_of({each.query: render_text(each.plan) for each in TASKS}, lambda _: "m1")
    exploration = Exploration(epsilon=0.6, seed=seed)
    return [explorer(pool, router, exploration, sample) for sample in range(SAMPLES)]


def wanted(seed: int = 0) -> list[Job]:
    return list(jobs(TASKS, SAMPLES, QUALITIES, seed))


def collected(out: Path, made: Sequence[R2Graph], seed: int = 0, **options: Any) -> Counter[str]:
    return asyncio.run(collect(wanted(seed), made, out, **options))


def pairs(traces: Iterable[Trace]) -> Counter[str]:
    """How often each run is there."""
    return Counter(found.run_id for found in traces)


ONCE = Counter(str(job.run_id) for job in wanted())


def test_each_pair_is_run_once_and_graded(tmp_path: Path) -> None:
    out, ticks = tmp_path / "t.jsonl", []
    wrong = TASKS[0].query
    made = graphs(lambda prompt: "I_LOOK" if prompt == "jump" else STEPS[prompt])
    assert not collected(out, made, on_done=lambda: ticks.append(1))
    found = list(read_traces(out))
    assert pairs(found) == ONCE
    assert (len(found), len(ticks)) == (ALL, ALL)
    assert Counter(trace.query for trace in found) == {each.query: SAMPLES for each in TASKS}
    assert {trace.right for trace in found if trace.query == wrong} == {False}
    assert {trace.right for trace in found if "jump" not in trace.query} == {True}
    # Exploration is on, and says so.
    chosen = [step.choice for trace in found for step in trace.steps]
    assert {choice.member for choice in chosen} == {"m1", "m2", "m3"}
    assert all(choice.propensity for choice in chosen)


def draws(out: Path) -> dict[str, Any]:
    return {
        trace.run_id: (trace.quality, [step.choice for step in trace.steps])
        for trace in read_traces(out)
    }


def test_the_same_seed_gives_the_same_runs_at_any_concurrency(tmp_path: Path) -> None:
    collected(tmp_path / "1", graphs(), concurrency=1)
    collected(tmp_path / "32", graphs(), concurrency=32)
    collected(tmp_path / "other", graphs(seed=1), seed=1)
    assert draws(tmp_path / "1") == draws(tmp_path / "32")
    assert not draws(tmp_path / "other").keys() & draws(tmp_path / "1").keys()
    assert len({quality for quality, _ in draws(tmp_path / "1").values()}) > 4


KILLED = """
import os, sys
from pathlib import Path
from tests.test_collect import STEPS, collected, graphs

left = 10

def answer(prompt):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    return STEPS[prompt]

collected(Path(sys.argv[1]), graphs(answer), concurrency=2)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a process had written when it was killed."""
    out = tmp_path_factory.mktemp("killed") / "t.jsonl"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], cwd=root, check=False)
    assert done.returncode == 9
    assert 0 < len(out.read_bytes().splitlines()) < ALL
    return out.read_bytes()


@pytest.mark.parametrize("torn", [b"", b'{"schema_version":1,"run_', b"{}"])
def test_a_killed_collect_goes_on_and_loses_and_repeats_nothing(
    killed: bytes, torn: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "t.jsonl"
    out.write_bytes(killed + torn)
    collected(out, graphs())
    assert out.read_bytes().startswith(killed)
    assert pairs(read_traces(out)) == ONCE
    asked: list[str] = []
    collected(out, graphs(lambda prompt: asked.append(prompt) or "?"))
    assert not asked, "nothing was left to do"


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "notes"
    out.write_bytes(b"my notes\n")
    with pytest.raises(TraceFileError, match="line 1"):
        collected(out, graphs())
    assert out.read_bytes() == b"my notes\n"


def test_a_pool_that_is_down_leaves_no_trace_and_is_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    down = graphs(lambda prompt: ProviderError(500) if prompt == "jump" else STEPS[prompt])
    jumps = sum("jump" in each.query for each in TASKS) * SAMPLES
    assert collected(out, down) == {"ModelCallError": jumps}
    assert all(trace.right for trace in read_traces(out))
    assert sum(pairs(read_traces(out)).values()) == ALL - jumps
    assert not collected(out, graphs())
    assert pairs(read_traces(out)) == ONCE


def test_a_wrong_answer_after_a_failed_call_is_not_graded(tmp_path: Path) -> None:
    first, others = (
        FakeChat(answer=lambda _: ProviderError(500)),
        FakeChat(answer=lambda _: "I_RUN"),
    )
    pool = pool_of(first, others, language="lab")
    router = router_of({"walk": "s1: walk", "run": "s1: run"}, lambda _: "m1")
    tasks = [task("walk"), task("run")]
    out = tmp_path / "t.jsonl"
    asyncio.run(collect(jobs(tasks, 1, [0.9], 0), [explorer(pool, router, Exploration(), 0)], out))
    assert {trace.query: trace.right for trace in read_traces(out)} == {"walk": None, "run": True}


def test_plans_are_sampled_with_a_seed() -> None:
    pool = pool_of(FakeChat(answer=right), language="lab")
    router = router_of({"walk": "s1: walk"}, lambda _: "m1")
    graph = explorer(pool, router, Exploration(plan_temperature=0.7), 0)
    assert graph.invoke("walk")["answer"] == "I_WALK"
    chat: Any = router.decomposer.model.chat  # type: ignore[attr-defined]
    assert [options["temperature"] for _, options in chat.calls] == [0.7]
    seeded: Any = planner(router, 0.7, 5)
    assert seeded.model.model_kwargs == {"seed": 5}


@pytest.mark.parametrize("name", ["arith", "geo"])
def test_training_queries_are_no_test_queries(name: str) -> None:
    found = queries(name, "train", 50, seed=3)
    assert len({each.query for each in found}) == 50
    assert queries(name, "train", 20, seed=3) == found[:20]
    assert queries(name, "test", 20, seed=3) == benchmarks.tasks(name, 20)
    assert not any(is_test(each.query) for each in found)


def test_scan_commands_to_train_on_are_not_those_of_the_test_file() -> None:
    found = {each.query for each in queries("scan-length", "train", 500, seed=3)}
    tested = {each.query for each in queries("scan-length", "test", 5_000, seed=3)}
    assert (len(found), len(tested)) == (500, 3_920)
    assert not found & tested


def test_levels_are_qualities() -> None:
    assert levels("1..3") == [0.1, 0.2, 0.3]
    for wrong in ("0..3", "4..3", "1..11", "5", "a..b"):
        with pytest.raises(ArgumentTypeError, match="LOW"):
            levels(wrong)


def test_the_command_collects_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "t.jsonl"
    command = ["collect", "--benchmark", "scan-simple", "--out", str(out), "--qualities", "1..10"]
    command += ["--temperature", "2", "--plan-temperature", "0.5", "--epsilon", "0.1"]
    command += ["--samples", "2", "--outcomes", str(tmp_path / "outcomes.sqlite")]
    for limit in ("1", "2"):
        monkeypatch.setattr(sys, "argv", [*command, "--limit", limit])
        main()
        found = list(read_traces(out))
        assert len(pairs(found)) == len(found) == 2 * int(limit)
    said = capsys.readouterr()
    assert not said.out
    assert "of the calls were known" in said.err
    assert {trace.router for trace in found} == {"lab"}
