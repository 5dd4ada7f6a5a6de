"""`r2graph ledger`: what runs have cost, and what is in doubt."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from langchain_core.runnables import RunnableConfig
from typer.testing import CliRunner, Result

from r2graph.cli import app
from r2graph.graph import create_r2_graph
from r2graph.ledger import Ledger
from tests.fakes import Planned, ProviderError, echo, pool_of, scripted

ROOT = Path(__file__).parent.parent
RUNS = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The ledger of two runs: one as usual, one with a call that failed and one in doubt."""
    path = str(tmp_path / "ledger.sqlite")
    with Ledger(path) as ledger:
        graph = create_r2_graph(
            pool_of(echo()), decomposer=Planned("s1: a\ns2: b {s1}"), ledger=ledger
        )
        graph.invoke("q", config(RUNS[0]))
        chats = scripted(ProviderError(401)), scripted("B [bold]")
        graph = create_r2_graph(pool_of(*chats), decomposer=Planned("s1: a"), ledger=ledger)
        graph.invoke("q", config(RUNS[1]))
        lost = ledger.page(RUNS[1], "verifier", "m[1]", None, "q")
        lost.intend(Decimal("0.25"))
        lost.doubt(1)
    return path


def config(run: str) -> RunnableConfig:
    return RunnableConfig(run_id=run)  # type: ignore[typeddict-item]


def r2graph(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ledger", *arguments])


def test_runs_are_shown_with_their_calls_dollars_and_doubts(path: str) -> None:
    done = r2graph(path)
    assert done.exit_code == 0, done.output
    told = [
        r"run +calls +\$ +in doubt +\$ in doubt",
        rf"{RUNS[0]} +2 +0\.00000\d+ +0 +0",
        rf"{RUNS[1]} +3 +0\.2500\d+ +1 +0\.25",
        r"\$0\.2500\d+ in all; \$0\.25 of it is in doubt: .* \(1\)",
    ]
    assert re.search(r"\s*\n".join(told), done.output), done.output


def test_the_id_of_a_run_is_one_word_in_a_narrow_terminal(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.sqlite")
    with Ledger(path) as ledger:
        for number in range(3):
            lost = ledger.page(RUNS[0], "verifier", "m1", f"s{number}", "q")
            lost.intend(Decimal("0.123456789012345678"))
            lost.doubt(1)
    done = CliRunner().invoke(app, ["ledger", path], env={"COLUMNS": "80"})
    assert f"{RUNS[0]} " in done.output


def test_one_run_is_shown_call_by_call(path: str) -> None:
    done = r2graph(path, RUNS[1])
    assert done.exit_code == 0, done.output
    told = [
        r"role +member +step +state +tokens in +tokens out +\$",
        r"executor +m1 +s1 +failed: auth +0",
        r"executor +m2 +s1 +reply +1 +2 +0\.00003",
        r"verifier +m\[1\] +in doubt +0\.25",
    ]
    assert re.search(r"\s*\n".join(told), done.output), done.output


def test_a_ledger_without_doubts_does_not_speak_of_them(path: str) -> None:
    done = r2graph(path, RUNS[0])
    assert done.output.splitlines()[-1].endswith("in all")


def test_the_same_is_printed_as_one_json_object(path: str) -> None:
    first, second = json.loads(r2graph(path, "--json").stdout)["runs"]
    assert (first["run"], first["calls"], first["in_doubt"]) == (RUNS[0], 2, 0)
    assert (second["in_doubt"], second["in_doubt_usd"]) == (1, "0.25")
    bill = json.loads(r2graph(path, RUNS[1], "--json").stdout)
    assert bill["run"] == RUNS[1]
    assert sum(Decimal(call["cost_usd"]) for call in bill["calls"]) == Decimal(second["cost_usd"])
    assert [call["state"] for call in bill["calls"]] == ["failed", "reply", "in doubt"]
    assert bill["calls"][1] == {
        "role": "executor",
        "member": "m2",
        "step": "s1",
        "state": "reply",
        "kind": None,
        "input_tokens": 1,
        "output_tokens": 2,
        "cost_usd": "0.00003",
    }
    assert bill["calls"][2]["input_tokens"] is None


def test_a_call_that_is_under_way_is_not_in_doubt(path: str) -> None:
    with Ledger(path) as ledger:
        ledger.page("r", "executor", "m1", "s1", "q").intend(Decimal(1))
        done = r2graph(path, "r")
        assert "in flight" in done.output
        assert "doubt" not in done.output
    assert "in doubt" in r2graph(path, "r").output


def test_a_ledger_without_calls_is_an_empty_table(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger").close()
    done = r2graph(str(tmp_path / "ledger"))
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "$0 in all")
    assert json.loads(r2graph(str(tmp_path / "ledger"), "--json").stdout) == {"runs": []}


def test_what_is_no_ledger_is_a_message_and_nothing_is_made(path: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no ledger " * 1000)
    refused(str(tmp_path / "nowhere"), message="there is no ledger")
    refused(str(tmp_path), message="there is no ledger")
    refused(":memory:", message="there is no ledger")
    refused(str(tmp_path / "text"), message="cannot be used")
    refused(path, "nobody", message="there is no run 'nobody'")
    assert {file.name for file in tmp_path.iterdir()} == {"ledger.sqlite", "text"}


def test_a_server_that_is_not_there_is_a_message_without_its_password() -> None:
    pytest.importorskip("psycopg_pool")
    told = refused("postgresql://u:CANARY@127.0.0.1:1/db", message="PostgreSQL")
    assert "CANARY" not in told


def refused(*command: str, message: str) -> str:
    done = r2graph(*command)
    assert (done.exit_code, type(done.exception)) == (2, SystemExit), done.output
    [line] = done.stderr.splitlines()
    assert line.startswith("r2graph: ")
    assert message in line
    assert not done.stdout
    return line


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'langchain_core', 'langgraph', 'psycopg'}"
    code = (
        "import sys; from r2graph.cli import app\n"
        "try: app(['ledger', '--help'])\n"
        f"except SystemExit as end: print(end.code, {heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 set()", done.stderr
