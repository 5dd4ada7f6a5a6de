"""The outcome cache: what a model said before is not asked again, and costs what it did."""

from __future__ import annotations

import json
import pickle
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from typer.testing import CliRunner

from r2graph import OutcomeCache, create_r2_graph
from r2graph.calls import ModelCall, Reply
from r2graph.cli import app
from r2graph.door import Door
from r2graph.errors import ConfigError, LimitExceeded, ModelCallError
from r2graph.evaluation.methods import OneCall
from r2graph.evaluation.replies import ChargedOutcomes, charge_cpu, record
from r2graph.limits import Limits, Meter
from r2graph.local import ChatLocal
from r2graph.pool import ModelSpec
from r2graph.verify import ConfidenceVerifier
from tests.fakes import (
    BusyChat,
    FakeChat,
    Planned,
    ProviderError,
    echo,
    member,
    pool_of,
    scripted,
)
from tests.tiny_models import write_parrot

ROOT = Path(__file__).parent.parent
Call = Callable[[Door, ModelCall], Awaitable[Reply]]


async def in_sync(door: Door, call: ModelCall) -> Reply:
    return door.call(call)


@pytest.fixture(params=[in_sync, Door.acall], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Call:
    chosen: Call = request.param
    return chosen


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[OutcomeCache]:
    with OutcomeCache(tmp_path / "outcomes") as opened:
        yield opened


def asked(chat: BaseChatModel, text: str = "hello there", **fields: Any) -> ModelCall:
    return ModelCall("executor", member("m1", chat, "1000000"), [HumanMessage(text)], **fields)


def door(cache: OutcomeCache | None, budget: int | None = None, **limits: Any) -> Door:
    meter = Meter(Limits(**limits), None if budget is None else Decimal(budget))
    return Door(meter, outcomes=cache)


# The file


def test_a_value_is_found_by_its_key_however_it_is_ordered(cache: OutcomeCache) -> None:
    cache.put({"a": 1, "b": [2.5, "ä"]}, {"text": "x"})
    assert cache.get({"b": [2.5, "ä"], "a": 1}) == {"text": "x"}
    assert cache.get({"b": ["ä", 2.5], "a": 1}) is None
    assert (cache.hits, cache.misses, cache.hit_rate) == (1, 1, 0.5)


def test_a_cache_that_was_never_asked_has_a_hit_rate(cache: OutcomeCache) -> None:
    assert cache.hit_rate == 0.0


def test_the_first_value_of_a_key_stays(cache: OutcomeCache) -> None:
    for text in ("first", "second"):
        cache.put("key", {"text": text})
        assert cache.get("key") == {"text": "first"}


def test_what_is_done_to_a_value_does_not_reach_the_cache(cache: OutcomeCache) -> None:
    cache.put("key", {"words": []})
    for _ in range(2):
        found = cache.get("key")
        assert found == {"words": []}
        found["words"].append("mine")


def test_values_outlive_the_process_that_kept_them(tmp_path: Path) -> None:
    with OutcomeCache(tmp_path / "outcomes") as first:
        first.put("key", {"text": "x"})
    with OutcomeCache(tmp_path / "outcomes") as second:
        assert second.get("key") == {"text": "x"}
        with pickle.loads(pickle.dumps(second)) as third:
            assert third.get("key") == {"text": "x"}
            assert (third.hits, second.hits) == (1, 1)


def test_threads_share_a_cache(cache: OutcomeCache) -> None:
    def work(name: int) -> None:
        for key in range(100):
            cache.put(["shared", key], {"of": "all"})
            cache.put([name, key], {"of": name})
            assert cache.get([name, key]) == {"of": name}

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert all(cache.get(["shared", key]) == {"of": "all"} for key in range(100))
    assert (cache.hits, cache.misses) == (900, 0)


PROCESS = """
import sys
from r2graph import OutcomeCache

with OutcomeCache(sys.argv[1]) as cache:
    for key in range(200):
        cache.put(["shared", key], {"of": "all"})
        cache.put([sys.argv[2], key], {"of": sys.argv[2]})
        assert cache.get(["shared", key]) == {"of": "all"}
"""


def test_processes_share_a_file_from_its_making_on(tmp_path: Path) -> None:
    path = tmp_path / "outcomes"
    command = [sys.executable, "-c", PROCESS, str(path)]
    works = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("one", "two")]
    assert [work.wait() for work in works] == [0, 0]
    with OutcomeCache(path) as cache:
        for name in ("one", "two"):
            assert all(cache.get([name, key]) == {"of": name} for key in range(200))


def write_text(path: Path) -> None:
    path.write_text("this is no database, and somebody needs it\n" * 100)


def write_database(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE outcomes (mine TEXT)")
    database.execute("PRAGMA user_version = 1")
    database.close()


def write_later_version(path: Path) -> None:
    OutcomeCache(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 2")
    database.execute("PRAGMA journal_mode = DELETE")
    database.close()


def write_damaged(path: Path) -> None:
    OutcomeCache(path).close()
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * (len(content) - 100))


@pytest.mark.parametrize("write", [write_text, write_database, write_later_version, write_damaged])
def test_a_file_that_is_no_outcome_cache_is_refused_and_left_as_it_is(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "outcomes"
    write(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="name another file"):
        OutcomeCache(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="outcomes"):
        OutcomeCache(tmp_path / "nowhere" / "outcomes")


def test_a_closed_cache_says_so(cache: OutcomeCache) -> None:
    cache.close()
    with pytest.raises(ConfigError, match="closed"):
        cache.get("key")


# Calls


async def test_a_hit_is_the_original_reply_and_calls_no_model(
    run: Call, cache: OutcomeCache
) -> None:
    tops = [{"m1": -0.1, "m2": -2.5}, {"m2": 0.0, "m3": float("-inf")}]
    chat = scripted("m1 m2", "other", logprob=-0.25, top_logprobs=tops, finish_reason="length")
    call = asked(chat, step="s1", top_logprobs=2)
    first = await run(door(cache), call)
    again = await run(door(cache), call)
    assert again == first
    assert (again.mean_logprob, again.top_logprobs, again.truncated) == (-0.25, tops, True)
    assert again.seconds > 0
    assert len(chat.calls) == 1


async def test_a_hit_is_billed_as_the_call_it_stands_for(run: Call, cache: OutcomeCache) -> None:
    doors = [door(cache) for _ in range(2)]
    for each in doors:
        await run(each, asked(echo(), step="s1"))
    [[paid], [kept]] = [each.bill for each in doors]
    assert kept == paid | {"cached": True}
    assert doors[0].meter.spent == doors[1].meter.spent == 4


async def test_a_hit_costs_what_its_tokens_cost_today(run: Call, cache: OutcomeCache) -> None:
    call = asked(echo())
    dearer = member("m1", call.spec.chat, "3000000")
    assert (await run(door(cache), call)).cost == 4
    assert (await run(door(cache), replace(call, spec=dearer))).cost == 12


async def test_limits_hold_for_hits(run: Call, cache: OutcomeCache) -> None:
    call = asked(echo(), max_tokens=10)
    await run(door(cache), call)
    with pytest.raises(LimitExceeded, match="budget"):  # its worst case is more than it cost
        await run(door(cache, budget=9), call)
    once = door(cache, max_calls=1)
    await run(once, call)
    with pytest.raises(LimitExceeded, match="calls"):
        await run(once, call)


OTHERWISE: Mapping[str, dict[str, Any]] = {
    "tokens": {"max_tokens": 7},
    "temperature": {"temperature": 0.5},
    "temperature zero": {"temperature": 0.0},
    "log-probabilities": {"logprobs": True},
    "likeliest tokens": {"top_logprobs": 2},
    "more of them": {"top_logprobs": 3},
    "schema": {"schema": {"title": "Thing", "type": "object"}},
    "sample": {"sample": 1},
    "text": {"messages": [HumanMessage("hello there?")]},
    "role": {"messages": [AIMessage("hello there")]},
    "system message": {"messages": [SystemMessage("Be brief."), HumanMessage("hello there")]},
    "order": {"messages": [HumanMessage("hello there"), SystemMessage("Be brief.")]},
    "picture": {
        "messages": [HumanMessage([{"type": "text", "text": "hello there"}, {"url": "1"}])]
    },
    "other picture": {
        "messages": [HumanMessage([{"type": "text", "text": "hello there"}, {"url": "2"}])]
    },
    "member": {"spec": member("m2", echo())},
}


async def test_whatever_is_asked_otherwise_is_asked(run: Call, cache: OutcomeCache) -> None:
    chat = echo(speaks_json=True)
    plain = asked(chat)
    for fields in OTHERWISE.values():
        await run(door(cache), replace(plain, **fields))
    await run(door(cache), plain)
    assert (cache.hits, cache.misses) == (0, len(OTHERWISE) + 1)
    for fields in OTHERWISE.values():
        await run(door(cache), replace(plain, **fields))
    assert (cache.hits, cache.misses) == (len(OTHERWISE), len(OTHERWISE) + 1)


async def test_who_asks_and_for_what_step_makes_no_difference(
    run: Call, cache: OutcomeCache
) -> None:
    message = HumanMessage("hello there", id="1")
    plain = asked(echo())
    await run(door(cache), plain)
    await run(door(cache), replace(plain, role="verifier", step="s2", messages=[message]))
    assert cache.hits == 1


async def test_each_sample_is_kept_apart(run: Call, cache: OutcomeCache) -> None:
    chat = scripted("one", "two")
    for _ in range(2):
        said = [
            (await run(door(cache), asked(chat, temperature=0.7, sample=sample))).text
            for sample in range(2)
        ]
        assert said == ["one", "two"]
    assert len(chat.calls) == 2


async def test_a_failure_is_not_kept(run: Call, cache: OutcomeCache) -> None:
    call = asked(scripted(ProviderError(500), "yes"))
    with pytest.raises(ModelCallError):
        await run(door(cache, max_retries=0), call)
    assert (await run(door(cache, max_retries=0), call)).text == "yes"


async def test_a_reply_whose_tokens_nobody_counted_is_not_kept(
    run: Call, cache: OutcomeCache
) -> None:
    call = asked(chat := echo(counts_tokens=False))
    for _ in range(2):
        await run(door(cache), call)
    assert len(chat.calls) == 2


async def test_no_prompt_gets_into_the_file(run: Call, cache: OutcomeCache) -> None:
    await run(door(cache), asked(scripted("an answer"), "CANARY"))

    def content() -> bytes:
        return b"".join(file.read_bytes() for file in cache.path.parent.iterdir())

    assert b"an answer" in content()
    assert b"CANARY" not in content()
    cache.close()
    assert b"CANARY" not in content()


# Which model it is


def test_settings_and_files_tell_local_models_apart(tmp_path: Path) -> None:
    def identity(**settings: Any) -> str:
        return member("m1", ChatLocal(model=str(tmp_path), **settings)).identity

    (tmp_path / "model.safetensors").write_text("weights")
    first = identity()
    assert identity() == first
    assert identity(seed=1) != first
    assert identity(dtype="float16") != first
    (tmp_path / "model.safetensors").write_text("others!")
    assert identity() != first


def test_a_recorded_model_is_the_model_itself(tmp_path: Path) -> None:
    spec = member("m1", ChatLocal(model=str(tmp_path)))
    assert record(spec).identity == spec.identity


def local(folder: Path) -> ModelSpec:
    return member("m1", ChatLocal(model=str(folder)))


def says(cache: OutcomeCache, spec: ModelSpec) -> str:
    return door(cache).call(ModelCall("executor", spec, [HumanMessage("hi")])).text


def test_a_model_trained_again_is_asked_again(cache: OutcomeCache, tmp_path: Path) -> None:
    folder = write_parrot(tmp_path / "model", "so")
    assert [says(cache, local(folder)) for _ in range(2)] == ["so", "so"]
    assert cache.hits == 1
    write_parrot(folder, "no")
    assert says(cache, local(folder)) == "no"


def test_a_hit_loads_no_weights(cache: OutcomeCache, tmp_path: Path) -> None:
    folder = write_parrot(tmp_path / "model", "so")
    says(cache, local(folder))
    fresh = local(folder)
    assert says(cache, fresh) == "so"
    assert not fresh.chat._engines  # type: ignore[attr-defined]


def test_what_new_weights_say_is_never_kept_as_the_old_ones(
    cache: OutcomeCache, tmp_path: Path
) -> None:
    folder, old = tmp_path / "model", tmp_path / "old"
    shutil.copytree(write_parrot(folder, "so"), old)
    spec = local(folder)
    assert spec.identity == local(folder).identity
    write_parrot(folder, "no")  # between the look into the cache and the loading
    assert says(cache, spec) == "no"
    shutil.rmtree(folder)
    shutil.copytree(old, folder)
    assert says(cache, local(folder)) == "so"
    assert says(cache, spec) == "no"  # it holds the weights that it loaded


# Graphs and evaluations


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_graph_run_again_gives_the_same_result_without_a_model(
    cache: OutcomeCache, way: str
) -> None:
    weak = FakeChat(answer=lambda text: f"[{text}]", logprob=-1.0)
    strong = FakeChat(answer=lambda text: f"<{text}>", logprob=-0.01)
    graph = create_r2_graph(
        pool_of(weak, strong),
        decomposer=Planned("s1: a\ns2: b\ns3: {s1} {s2}"),
        verifier=ConfidenceVerifier(),
        outcomes=cache,
    )
    results = []
    for _ in range(2):
        result = graph.invoke("q") if way == "invoke" else await graph.ainvoke("q")
        result["messages"] = [message.text for message in result["messages"]]
        results.append({key: json.dumps(result[key]) for key in result.keys() - {"run_id", "run"}})
    assert results[0] == results[1]
    assert "<<a> <b>>" in results[0]["answer"]
    assert (len(weak.calls), len(strong.calls), cache.hits) == (3, 3, 6)


async def test_a_method_is_charged_for_hits_in_dollars_and_in_cpu_time(tmp_path: Path) -> None:
    chat = BusyChat(answer=lambda _: "yes", cpu_s=0.25)
    with ChargedOutcomes(tmp_path / "outcomes") as cache:
        for _ in range(2):
            method = OneCall(record(member("m1", chat)), cache)
            with charge_cpu() as cpu:
                answer = await method.answer("hello there")
            assert (answer.net_usd, answer.calls, cpu.seconds) == (Decimal("0.000003"), 1, 0.25)
    assert len(chat.calls) == 1


POOL = """\
name: tiny
language: tiny
members: [{name: large, model: "local:large", price: {input_per_mtok: 8, output_per_mtok: 8}}]
"""


def test_a_second_evaluation_asks_no_model_and_says_the_same(tmp_path: Path) -> None:
    write_parrot(tmp_path / "large", "walk")
    (tmp_path / "pool.yaml").write_text(POOL)
    told, rows = [], []
    for workers in ("1", "2"):
        done = CliRunner().invoke(
            app,
            [
                *("eval", "--pool", str(tmp_path / "pool.yaml"), "--methods", "single-1,plan-1"),
                *("--benchmarks", "arith,geo", "--limit", "2", "--workers", workers),
                *("--outcomes", str(tmp_path / "outcomes"), "--json", str(tmp_path / "rows")),
            ],
        )
        assert done.exit_code == 0, done.output
        told.append(done.stderr.splitlines()[-1])
        rows.append(json.loads((tmp_path / "rows").read_text()))
    assert told[0].endswith("knew 50.0% of 8 calls")  # both methods ask the same
    assert told[1].endswith("knew 100.0% of 8 calls")
    assert rows[0] == rows[1]
