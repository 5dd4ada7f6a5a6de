"""The examples run, offline, and print what is right; docs/three_ways.md shows what they print."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from difflib import unified_diff
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from examples.three_ways.provider import Provider
from r2graph import create_r2_graph, load_pool
from r2graph.serve import create_app
from tests.serving import serving

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs/three_ways.md").read_text()
WAYS = ("middleware", "chat_r2", "serve")

Run = Callable[..., str]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs an example as `python examples/NAME` does, and returns what it prints."""

    def running(name: str, *arguments: str) -> str:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capfd.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capfd.readouterr().out

    return running


def dollars(text: str) -> list[Decimal]:
    return [Decimal(amount) for amount in re.findall(r"\$([0-9.]*[0-9])", text)]


def test_every_example_is_run_by_a_test() -> None:
    names = [str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py")]
    tests = Path(__file__).read_text()
    ways = {f"three_ways/with_{way}.py" for way in WAYS}
    unrun = [name for name in names if f'run("{name}"' not in tests and name not in ways]
    assert unrun == ["three_ways/provider.py"], "the provider is run by the ways"


def test_quickstart_shows_plan_bill_stream_and_knob(run: Run) -> None:
    told = run("quickstart.py")
    assert told.startswith("( 12 + 7 ) * 6 - -3 = 117  (verified)")
    plan, bill, stream, knob = told.split("\n\n")[1:]
    assert [line.split(" = ")[1] for line in plan.splitlines()[1:]] == ["19", "114", "117"]
    *uses, (total, router), [estimate] = map(dollars, bill.splitlines()[1:])
    assert sum(use for [use] in uses) == total
    assert Decimal(0) < router < total < estimate
    assert stream.splitlines()[-1].split(": ")[1] == " ".join(
        ["I_TURN_LEFT I_TURN_LEFT I_JUMP"] * 2 + ["I_TURN_RIGHT I_WALK"]
    )
    lines = [line.split() for line in knob.splitlines()[1:]]
    assert [line[0] for line in lines] == ["0.1", "0.5", "0.9"] * 2
    assert [line[-1] for line in lines[1:3]] == ["-41"] * 2, "surer is right"
    assert [line[-1] for line in lines[3:]] == ["Beijing"] * 3
    assert dollars(knob)[0] < dollars(knob)[2]
    assert dollars(knob)[3] < dollars(knob)[5]


def test_human_review_approves_edits_and_rejects(run: Run) -> None:
    told = re.split(r"^(?=\S)", run("human_review.py"), flags=re.M)[1:]
    approved, edited, corrected, rejected = told
    assert "114 (verified)" in approved
    assert "114 (verified), by {'s1': 'm9'" in edited
    assert dollars(edited)[0] > dollars(approved)[0], "the strongest model costs more"
    assert "That cannot be done: pool 'lab' has no member 'm10'" in corrected
    assert "114 (verified)" in corrected
    assert "no answer (rounds), by {}" in rejected
    cost, router = dollars(rejected)
    assert cost == router, "no step was run"


def test_a_run_is_resumed_after_a_crash_and_buys_nothing_twice(run: Run) -> None:
    first, resumed = run("resume_after_crash.py").split("resumed\n")
    assert "s2: 19 * 6 = 114" in first
    assert "ended by SIGKILL" in first
    assert "answer" not in first
    assert "answer 202" in resumed
    assert resumed.endswith("bought again: nothing\n")
    total, replies = dollars(resumed)
    assert dollars(first)[0] < replies
    assert replies <= total, "what is in doubt is on the bill"
    assert (replies == total) == ("in doubt: nothing" in resumed)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_router_is_trained_from_runs_and_used(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    told = run("train_your_own.py", "--queries", "6")
    runs, right = re.findall(r"^collect: (\d+) runs of 6 queries, (\d+) right$", told, re.M)[0]
    assert int(runs) == 24
    assert int(right) > 0
    assert int(re.findall(r"^data: (\d+) rows", told, re.M)[0]) > 0
    for name in ("the lab's router", "yours"):
        [line] = re.findall(rf"^{name}: (\d) of 6 right, (.*)$", told, re.M)
        assert int(line[0]) >= 3
        assert dollars(line[1])[0] > 0


def test_an_agent_is_routed(run: Run) -> None:
    told = run("agent_middleware.py")
    *calls, bill = told.splitlines()
    assert calls[-1].endswith("All files are in UTF-16.")
    assert sum("tool failed" in call for call in calls) == 1
    cost, counterfactual = dollars(bill)
    assert sum(dollars(call)[0] for call in calls) == cost
    assert cost < counterfactual
    assert told in (ROOT / "docs/middleware.md").read_text()


# A provider


class Riverside(Provider):
    """Two models that know rivers; the small one cannot subtract."""

    def message(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"role": "assistant", "content": self._text(request)}

    def _text(self, request: dict[str, Any]) -> str:
        first, asked = (str(request["messages"][at]["content"]) for at in (0, -1))
        if request.get("response_format"):
            return (
                '{"subtasks": [{"id": "s1", "text": "How many km long is the Danube?"}, '
                '{"id": "s2", "text": "How many km long is the Rhine?"}, '
                '{"id": "s3", "text": "{s1} less {s2}?"}], "answer": null}'
            )
        if "Reply with one word" in first:
            return "no" if "1,000" in asked else "yes"
        if "2,850 less 1,230?" in asked:
            return "1,000" if "Qwen" in request["model"] else "1,620"
        return "2,850" if "Danube" in asked else "1,230"


@contextmanager
def providing(handler: type[Provider]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_real_pool_is_reached_as_a_user_reaches_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with providing(Riverside) as url:
        monkeypatch.setenv("VLLM_BASE_URL", url)
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test")
        told = run("real_pool.py").splitlines()
    assert told[:7] == [
        "s1: How many km long is the Danube?",
        "  small: 2,850 (large says yes)",
        "s2: How many km long is the Rhine?",
        "  small: 1,230 (large says yes)",
        "s3: 2,850 less 1,230?",
        "  small: 1,000 (large says no)",
        "  large: 1,620 (nobody is strong enough to judge)",
    ]
    answer, *uses, total, estimate = told[7:]
    assert answer == "1,620"
    assert sum(dollars(use)[0] for use in uses) == dollars(total)[0]
    assert "67% of the steps ran at home" in total
    assert dollars(estimate)[0] > 0


def test_a_real_pool_without_its_variables_says_what_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_BASE_URL", raising=False)
    with pytest.raises(SystemExit, match="VLLM_BASE_URL, which is not set"):
        run("real_pool.py")
    monkeypatch.setenv("VLLM_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SystemExit, match="set OPENAI_API_KEY"):
        run("real_pool.py")


# Three ways


@pytest.fixture
def provided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with providing(Provider) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        yield


@pytest.fixture
def served(provided: None) -> Iterator[str]:
    """A URL of what `r2graph serve` serves with the options that the page names, and of the lab."""
    mine = create_r2_graph(EXAMPLES / "three_ways/pool.yaml", budget_usd="0.05")
    pool = load_pool("lab")
    for spec in pool.members:
        spec.chat.get_num_tokens("")  # as the command does: to load torch takes long
    graphs = {"mine": mine, "lab": create_r2_graph(pool, router="lab")}
    with serving(create_app(graphs)) as server:
        yield server.url


def shown(fence: str) -> list[str]:
    """The page's blocks of one kind."""
    return re.findall(rf"^```{fence}\n(.*?)^```", PAGE, re.M | re.S)


def printed(name: str) -> str:
    """What the page says that a file prints."""
    command = f"$ python examples/three_ways/{name}.py\n"
    [block] = [block for block in shown("text") if block.startswith(command)]
    return block.removeprefix(command)


def code(name: str) -> list[str]:
    """A file's lines without its docstring and empty ones."""
    source = (EXAMPLES / f"three_ways/{name}.py").read_text()
    begins = ast.parse(source).body[1].lineno - 1
    return [line for line in source.splitlines()[begins:] if line]


@pytest.mark.parametrize("at", range(len(WAYS)))
def test_the_page_shows_all_that_changes(at: int) -> None:
    lines = list(unified_diff(code("app"), code(f"with_{WAYS[at]}"), n=0))[2:]  # the files' names
    assert shown("diff")[at].splitlines() == [line for line in lines if line[0] != "@"]


def test_the_page_shows_what_the_app_prints(run: Run, provided: None) -> None:
    assert run("three_ways/app.py") == printed("app")
    excerpt = next(block for block in shown("py") if "create_agent" in block)
    assert excerpt in (EXAMPLES / "three_ways/app.py").read_text()
    assert shown("yaml") == [(EXAMPLES / "three_ways/pool.yaml").read_text()]


@pytest.mark.parametrize("way", ["middleware", "chat_r2"])
def test_the_page_shows_what_two_ways_print(run: Run, provided: None, way: str) -> None:
    assert run(f"three_ways/with_{way}.py") == printed(f"with_{way}")


def test_the_page_shows_what_the_third_way_prints(
    served: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (EXAMPLES / "three_ways/with_serve.py").read_text()
    there = source.replace("http://127.0.0.1:8000", served)
    assert there != source
    exec(compile(there, "with_serve.py", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == printed("with_serve")


def test_the_page_shows_what_the_lab_answers_and_what_it_refuses(served: str) -> None:
    @tool
    def calculate(a: int) -> int:
        """Not to be called."""
        return a

    url = f"{served}/v1"
    [line] = [line for block in shown("py") for line in block.splitlines() if "# 117" in line]
    assert eval(line, {"ChatOpenAI": ChatOpenAI, "url": url}) == "117"
    model = ChatOpenAI(model="lab", base_url=url, api_key="none")  # type: ignore[arg-type]
    with pytest.raises(Exception, match="no member of pool 'lab' takes tools") as refused:
        create_agent(model, [calculate]).invoke({"messages": [("user", "1 + 1")]})
    assert f"{refused.value}\n" in shown("text")
