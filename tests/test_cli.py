"""The command line: what it prints, what it refuses, and with which exit code."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from r2graph.cli import app
from r2graph.cli.story import Story
from tests.tiny_models import write_babbler, write_parrot

ROOT = Path(__file__).parent.parent
POOL = """\
name: tiny
language: tiny
members:
  - {name: small, model: "local:small", price: {input_per_mtok: 1, output_per_mtok: 1}}
  - {name: large, model: "local:large", price: {input_per_mtok: 8, output_per_mtok: 8}}
"""
ROW_KEYS = ["benchmark", "method", "n", "accuracy", "ci_low", "ci_high"]
ROW_KEYS += ["pool_cost_usd", "net_cost_usd", "calls", "cpu_s"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pool file of two local models: one is never sure of anything, the other says `walk`."""
    folder = tmp_path_factory.mktemp("pool")
    write_babbler(folder / "small")
    write_parrot(folder / "large", "walk")
    (folder / "pool.yaml").write_text(POOL)
    return str(folder / "pool.yaml")


def r2graph(*arguments: str, env: dict[str, str | None] | None = None) -> Result:
    return CliRunner().invoke(app, [*arguments], env=env)


# run


def test_run_tells_plan_choice_escalation_answer_and_bill(pool: str) -> None:
    done = r2graph("run", "hello [bold]", "--pool", pool)
    assert done.exit_code == 0, done.output
    told = [
        r"plan\n  s1: hello \[bold\]",
        r"allocation\n  s1 to small",
        r"steps\n  s1 on small: ✗",
        r"s1 on large: ✓ walk",
        r"answer\n  walk  \(verified\)",
        r"small +1 +\d+ +\d+ +0\.000\d+",
        r"large +1 +\d+ +\d+ +0\.000\d+",
        r"\$0\.000\d+ in all",
        r"estimate of the same steps, all on large",
    ]
    assert re.search(".*".join(told), done.output, re.DOTALL), done.output


def test_run_prints_one_json_object_of_the_result(pool: str) -> None:
    done = r2graph("run", "hello", "--pool", pool, "--json")
    result = json.loads(done.stdout)
    assert done.exit_code == 0
    assert result["answer"] == "walk"
    assert result["plan"]["subtasks"] == [{"id": "s1", "text": "hello", "depends_on": []}]
    assert result["messages"] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "walk"},
    ]
    assert {"cost_usd", "counterfactual_usd", "steps", "stop_reason"} <= result.keys()
    assert "bill" not in result


def test_a_run_without_an_answer_fails(pool: str) -> None:
    done = r2graph("run", "hello", "--pool", pool, "--budget", "0.0000001")
    assert done.exit_code == 1
    assert "budget" in done.stdout


def test_texts_are_shown_as_they_are() -> None:
    story = Story()
    story.console = Console(file=io.StringIO(), width=40)
    long = "[red]" + "word " * 20
    attempt = {"event": "attempt", "step": "s1", "member": "m[1]", "reason": "[/]", "ok": None}
    story.tell(attempt | {"output": long})
    assert story.console.file.getvalue() == f"  s1 on m[1]: · {long}  [/]\n"  # type: ignore[attr-defined]


# What is refused


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run|", "the query is empty"),
        ("run|hi|--quality|7", "quality"),
        ("run|hi|--budget|-1", "budget"),
        ("run|hi|--budget|much", "budget"),
        ("run|hi|--router|nowhere", "nowhere"),
        ("eval|--methods|best", "no method is called 'best'"),
        ("eval|--benchmarks|arith,sudoku", "no benchmark is called 'sudoku'"),
        ("eval|--json|/dev/null/rows.json", "/dev/null is no directory"),
    ],
)
def test_bad_input_is_a_message_on_standard_error_and_exit_code_2(
    command: str, message: str, pool: str
) -> None:
    refused(*command.split("|"), "--pool", pool, message=message)


def test_bad_pools_and_queries_are_messages_too(pool: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(f"{POOL}colour: red\n")
    refused("run", "hi", "--pool", "nowhere", message="nowhere")
    refused("run", "hi", "--pool", str(broken), message="unknown key")
    refused("run", "hi", "--pool", "openai", "--local-only", message="no local member")
    refused("run", "Who was Ada Lovelace?", "--router", "none", message="SCAN")
    refused("pool", "check", pool, "--max-usd", "0.0000001", message="could cost")


def refused(*command: str, message: str) -> None:
    done = r2graph(*command)
    assert (done.exit_code, type(done.exception)) == (2, SystemExit), done.output
    *progress, last = done.stderr.splitlines()
    assert last.startswith("r2graph: ")
    assert message in last
    assert len(progress) <= (command[0] == "eval")
    assert not done.stdout


def test_a_missing_key_is_a_message_that_names_the_variable() -> None:
    done = r2graph("run", "hi", "--pool", "openai", env={"OPENAI_API_KEY": None})
    assert done.exit_code == 2
    assert "set OPENAI_API_KEY" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_model_that_is_not_there_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(POOL)
    done = r2graph("run", "hi", "--pool", str(tmp_path / "pool.yaml"))
    assert done.exit_code == 2
    assert "config.json" in done.stderr


# eval


def test_eval_saves_rows_and_bars_and_workers_change_nothing(pool: str, tmp_path: Path) -> None:
    saved = []
    for workers in ("1", "2"):
        rows, bars = tmp_path / f"rows{workers}.json", tmp_path / f"bars{workers}.json"
        done = r2graph(
            *("eval", "--pool", pool, "--limit", "2", "--methods", "plan-2,single-2"),
            *("--benchmarks", "arith,geo", "--workers", workers),
            *("--json", str(rows), "--bars", str(bars)),
        )
        assert done.exit_code == 0, done.output
        assert "plan-2" in done.stdout
        saved.append([json.loads(rows.read_text()), json.loads(bars.read_text())])
    rows, bars = saved[0]
    assert [list(row) for row in rows] == [ROW_KEYS] * 4
    assert [(row["benchmark"], row["method"], row["n"]) for row in rows] == [
        ("arith", "plan-2", 2),
        ("arith", "single-2", 2),
        ("geo", "plan-2", 2),
        ("geo", "single-2", 2),
    ]
    assert [bar["bar"] for bar in bars] == ["accuracy, plan-2"] * 2
    for key in ("accuracy", "net_cost_usd", "calls"):
        assert [row[key] for row in rows] == [row[key] for row in saved[1][0]]
    assert bars == saved[1][1]


# pool check


def test_pool_check_calls_each_member_once(pool: str) -> None:
    done = r2graph("pool", "check", pool)
    assert done.exit_code == 0, done.output
    small, large = done.stdout.splitlines()
    assert re.fullmatch(r"small: ok, \d+\.\d\d s, \$0\.00\d+", small)
    assert re.fullmatch(r"large: ok, \d+\.\d\d s, \$0\.000\d+", large)


def test_pool_check_goes_on_after_a_failure_and_fails(tmp_path: Path) -> None:
    write_parrot(tmp_path / "large", "walk")
    (tmp_path / "pool.yaml").write_text(POOL)
    done = r2graph("pool", "check", str(tmp_path / "pool.yaml"))
    assert done.exit_code == 1
    assert re.search(r"small: ModelFileError: .*large: ok", done.stdout, re.DOTALL)


# doctor


def test_doctor_says_that_a_key_is_set_and_not_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    done = r2graph("doctor")
    assert "OPENAI_API_KEY: set" in done.stdout
    assert "GROQ_API_KEY: not set" in done.stdout
    assert "canary" not in done.output


def test_doctor_fails_exactly_when_something_is_missing() -> None:
    done = r2graph("doctor")
    assert done.exit_code == (1 if "✗" in done.stdout else 0)
    assert "✓ python: 3." in done.stdout


# help


@pytest.mark.parametrize(
    "command", [(), ("run",), ("eval",), ("pool", "check"), ("trace", "export"), ("doctor",)]
)
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    heavy = "{'torch', 'transformers', 'langchain_core', 'langgraph', 'numpy'}"
    code = (
        "import sys; from r2graph.cli import app\n"
        f"try: app([*{command!r}, '--help'])\n"
        f"except SystemExit as end: print(end.code, {heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 set()", done.stderr
