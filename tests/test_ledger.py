"""The call ledger: what is recorded is bought once, what is spent is counted, through any crash."""

from __future__ import annotations

import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from r2graph.errors import LedgerError, LimitExceeded
from r2graph.graph import create_r2_graph
from r2graph.ledger import Budget, Ledger, Page
from r2graph.ledger.database import Connection
from r2graph.ledger.sqlite import SqliteDatabase
from tests.fakes import echo, pool_of
from tests.postgres import new_schema, postgres_server

__all__ = ["postgres_server"]  # a fixture

ROOT = Path(__file__).parent.parent
PICO = Decimal("1e-12")
REPLY = {"text": "so", "input_tokens": 3, "output_tokens": 1}


@pytest.fixture(params=["sqlite", "postgres"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A ledger that processes can share."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.sqlite")
    server: str = request.getfixturevalue("postgres_server")
    return new_schema(server)


@pytest.fixture(params=["file", "memory", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    match request.param:
        case "postgres":
            server = request.getfixturevalue("postgres_server")
            place: str | Path = new_schema(server)
        case "file":
            place = tmp_path / "ledger.sqlite"
        case _:
            place = ":memory:"
    with Ledger(place) as opened:
        yield opened


def page(ledger: Ledger, request: object = "q", run: str = "r", **fields: Any) -> Page:
    return ledger.page(run, "executor", "m1", "s1", request, **fields)


def states(found: Page | Ledger) -> list[str]:
    return [line.state for line in found.lines()]


# One call


def test_a_call_is_an_intent_at_its_worst_case_and_then_a_reply_at_its_cost(ledger: Ledger) -> None:
    asked = page(ledger)
    assert asked.lines() == []
    assert asked.intend(Decimal("0.5")) == []
    [line] = asked.lines()
    assert (line.state, line.usd, line.reply, line.kind) == ("intent", Decimal("0.5"), None, None)
    assert (line.run, line.role, line.member, line.step) == ("r", "executor", "m1", "s1")
    assert abs(line.at - time.time()) < 60
    asked.reply(1, Decimal("0.0000123"), REPLY)
    [line] = asked.lines()
    assert (line.state, line.usd, line.reply) == ("reply", Decimal("0.0000123"), REPLY)
    assert ledger.lines() == [line]


def test_a_reply_that_is_there_is_not_bought_again(ledger: Ledger) -> None:
    asked = page(ledger)
    asked.intend(Decimal(1))
    asked.reply(1, Decimal(1), REPLY)
    assert page(ledger).intend(Decimal(1)) is None
    assert page(ledger).lines()[-1].reply == REPLY
    assert len(ledger.lines()) == 1


def test_a_call_that_somebody_waits_for_is_not_sent_again(ledger: Ledger) -> None:
    page(ledger).intend(Decimal(1))
    assert page(ledger).intend(Decimal(1)) is None
    assert states(ledger) == ["intent"]


def test_what_failed_or_is_in_doubt_may_be_tried_again(ledger: Ledger) -> None:
    asked = page(ledger)
    asked.intend(Decimal(4))
    asked.fail(1, Decimal(0), "server")
    assert [line.kind for line in asked.intend(Decimal(4)) or []] == ["server"]
    asked.doubt(2)
    assert [line.usd for line in asked.intend(Decimal(4)) or []] == [0, 4]
    asked.reply(3, Decimal(1), REPLY)
    assert states(asked) == ["failed", "in_doubt", "reply"]
    assert [ledger.is_in_doubt(line) for line in asked.lines()] == [False, True, False]
    assert ledger.left(Budget(usd=Decimal(10))) == 5


def test_a_reply_that_was_given_up_and_comes_all_the_same_is_kept_at_its_cost(
    ledger: Ledger,
) -> None:
    asked = page(ledger)
    asked.intend(Decimal(4))
    asked.doubt(1)
    asked.reply(1, Decimal(1), REPLY)
    assert asked.intend(Decimal(4)) is None
    assert ledger.left(Budget(usd=Decimal(10))) == 9


def test_doubt_does_not_undo_what_is_known(ledger: Ledger) -> None:
    asked = page(ledger)
    asked.intend(Decimal(4))
    asked.reply(1, Decimal(1), REPLY)
    asked.doubt(1)
    assert states(asked) == ["reply"]


@pytest.mark.parametrize("other", [{"run": "r2"}, {"request": "q2"}, {"request": ["q"]}])
def test_another_run_or_request_is_another_call(ledger: Ledger, other: dict[str, Any]) -> None:
    page(ledger).intend(Decimal(1))
    assert page(ledger, **other).intend(Decimal(1)) == []


def test_the_calls_of_a_run_are_told_from_those_of_others(ledger: Ledger) -> None:
    for run in ("a", "b", "a"):
        page(ledger, request=uuid4().hex, run=run).intend(Decimal(1))
    assert [line.run for line in ledger.lines()] == ["a", "b", "a"]
    assert len(ledger.lines("a")) == 2
    assert ledger.lines("c") == []


@pytest.mark.parametrize(
    "text", ["", "a\x00b", "\ud800 alone", "𝄞 ä \u2028", "?%s'\"", "x" * 2_000_000], ids=range(6)
)
def test_any_text_comes_back_as_it_was(ledger: Ledger, text: str) -> None:
    asked = page(ledger, request=text)
    asked.intend(Decimal(1))
    asked.reply(1, Decimal(1), {"text": text})
    assert page(ledger, request=text).lines()[-1].reply == {"text": text}


# Budgets and totals


def test_the_worst_case_is_reserved_and_then_settled(ledger: Ledger) -> None:
    budget = Budget(usd=Decimal(1))
    asked = page(ledger, budget=budget)
    asked.intend(Decimal("0.75"))
    assert ledger.left(budget) == Decimal("0.25")
    asked.reply(1, Decimal("0.5"), REPLY)
    assert ledger.left(budget) == Decimal("0.5")


def test_a_refusal_leaves_nothing_behind(ledger: Ledger) -> None:
    budget = Budget(usd=Decimal(1))
    asked = page(ledger, budget=budget)
    asked.intend(Decimal("0.75"))
    asked.doubt(1)
    before = ledger.lines(), ledger.left(budget)
    for again in (asked, page(ledger, request="another", budget=budget)):
        with pytest.raises(LimitExceeded) as refused:
            again.intend(Decimal("0.250000000001"))
        assert refused.value.limit == "pool_budget"
        assert (ledger.lines(), ledger.left(budget)) == before
    assert asked.intend(Decimal("0.25")) is not None
    assert ledger.left(budget) == 0


def test_scopes_have_budgets_of_their_own(ledger: Ledger) -> None:
    mine, yours = (Budget(usd=Decimal(1), scope=name) for name in ("mine", "yours"))
    page(ledger, budget=mine).intend(Decimal(1))
    assert [ledger.left(mine), ledger.left(yours)] == [0, 1]
    assert page(ledger, run="r2", budget=yours).intend(Decimal(1)) == []


def test_periods_are_those_of_the_calendar_in_utc() -> None:
    new_year = 1_767_225_600.0  # 2026-01-01T00:00:00Z
    names = {"hour": "2025-12-31T23", "day": "2025-12-31", "month": "2025-12"}
    for period, name in names.items():
        budget = Budget.model_validate({"usd": 1, "period": period})
        assert budget.period_at(new_year - 1) == name
        assert budget.period_at(new_year) != name
    assert Budget(usd=Decimal(1)).period_at(new_year) == ""


def test_a_period_has_its_own_total_and_a_call_settles_where_it_was_reserved(
    ledger: Ledger,
) -> None:
    by_day, in_all = Budget(usd=Decimal(9), period="day"), Budget(usd=Decimal(9))
    daily, whole = page(ledger, "a", budget=by_day), page(ledger, "b", budget=in_all)
    daily.intend(Decimal(4))
    whole.intend(Decimal(2))
    # Whoever settles has another budget, or another day, than whoever reserved.
    page(ledger, "a", budget=in_all).reply(1, Decimal(3), REPLY)
    assert [ledger.left(by_day), ledger.left(in_all)] == [6, 7]


def test_no_number_of_threads_passes_the_budget_and_totals_are_exact(ledger: Ledger) -> None:
    budget, worst, cost = Budget(usd=Decimal("0.001")), Decimal("0.00001"), Decimal("3e-12")

    def work(name: int) -> int:
        refused = 0
        for number in range(25):
            asked = page(ledger, [name, number], budget=budget)
            try:
                assert asked.intend(worst) == []
            except LimitExceeded:
                refused += 1
            else:
                assert ledger.left(budget) >= 0
                if number % 5:
                    asked.reply(1, cost, REPLY)
        return refused

    with ThreadPoolExecutor(8) as threads:
        refused = sum(threads.map(work, range(8)))
    lines = ledger.lines()
    assert len(lines) == 200 - refused
    assert ledger.left(budget) == budget.usd - sum(line.usd for line in lines)
    assert ledger.left(budget) >= 0


def test_less_than_a_picodollar_counts_as_one(ledger: Ledger) -> None:
    budget = Budget(usd=Decimal(1))
    for number in range(10):
        asked = page(ledger, number, budget=budget)
        asked.intend(Decimal("1e-13"))
        asked.reply(1, Decimal("1e-14"), REPLY)
    assert Decimal(1) - 10 * PICO <= ledger.left(budget) <= Decimal(1) - Decimal("1e-13")


# Several threads and processes


def test_of_many_threads_that_want_a_call_one_gets_it(ledger: Ledger) -> None:
    start = threading.Barrier(8)

    def want(_: int) -> list[bool]:
        start.wait()
        return [page(ledger, number).intend(Decimal(1)) is not None for number in range(20)]

    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(want, range(8)))
    assert [sum(each) for each in zip(*got, strict=True)] == [1] * 20
    assert ledger.left(Budget(usd=Decimal(100))) == 80


@contextmanager
def python(code: str, *arguments: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that runs code, with a page and a source at hand; killed in the end."""
    start = (
        "import sys, time\nfrom decimal import Decimal\n"
        "from r2graph.ledger import Budget, Ledger\n"
        "source, arguments = sys.argv[1], sys.argv[2:]\n"
        "def page(ledger, request='q', run='r', budget=None):\n"
        "    return ledger.page(run, 'executor', 'm1', 's1', request, budget)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start + code, *arguments],
        cwd=cwd or ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def heard(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


HOLDING = (
    "ledger = Ledger(source)\npage(ledger).intend(Decimal(1))\nprint('here', flush=True)\n"
    "time.sleep(60)"
)


def test_a_call_of_a_living_process_is_waited_for_and_one_of_a_killed_process_in_doubt(
    source: str,
) -> None:
    with Ledger(source) as ledger, python(HOLDING, source) as process:
        assert heard(process) == "here"
        asked = page(ledger)
        [line] = asked.lines()
        assert asked.intend(Decimal(1)) is None
        assert not ledger.is_in_doubt(line)
        process.kill()
        process.wait()
        settled(lambda: ledger.is_in_doubt(line))
        assert states(asked) == ["intent"]  # looking changes nothing
        [earlier] = asked.intend(Decimal(1)) or []
        assert earlier.usd == 1
        assert states(asked) == ["in_doubt", "intent"]
        assert ledger.left(Budget(usd=Decimal(10))) == 8


def settled(condition: Callable[[], bool]) -> None:
    """Wait until PostgreSQL has noticed that a client is gone: it takes milliseconds."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_of_many_processes_that_want_a_call_one_gets_it_and_totals_are_exact(source: str) -> None:
    code = (
        "ledger = Ledger(source)\nprint('here', flush=True)\nsys.stdin.readline()\n"
        "budget = Budget(usd=Decimal(1))\n"
        "for number in range(40):\n"
        "    mine = page(ledger, number, budget=budget)\n"
        "    if mine.intend(Decimal('0.001')) is not None:\n"
        "        print(number, flush=True)\n"
        "        mine.reply(1, Decimal('0.000000000007'), {})\n"
    )
    command = [sys.executable, "-c"]
    with python("", source) as helper:  # its head is what all of them start with
        assert isinstance(helper.args, list)
        head = str(helper.args[2])
    processes = [
        subprocess.Popen(
            [*command, head + code, source],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert heard(process) == "here"
    outputs = [process.communicate("go\n", timeout=60)[0] for process in processes]
    got = sorted(int(word) for output in outputs for word in output.split())
    assert got == list(range(40))
    with Ledger(source) as ledger:
        assert ledger.left(Budget(usd=Decimal(1))) == 1 - 40 * 7 * PICO
        assert states(ledger) == ["reply"] * 40


def test_processes_may_make_a_ledger_at_the_same_time(source: str) -> None:
    code = "ledger = Ledger(source)\npage(ledger, run=arguments[0]).intend(Decimal(1))\n"
    code = f"sys.path[:0] = ['']\n{code}print('made', flush=True)\nledger.close()"
    with ThreadPoolExecutor(4) as threads:

        def make(name: int) -> str:
            with python(code, source, str(name)) as process:
                return heard(process)

        assert list(threads.map(make, range(4))) == ["made"] * 4
    with Ledger(source) as ledger:
        assert len(ledger.lines()) == 4


# SQLite: the file, and those beside it


def test_no_prompt_gets_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        asked = page(ledger, ["PROMPT", {"a": "PROMPT"}])
        asked.intend(Decimal(1))
        asked.reply(1, Decimal(1), REPLY)
        for file in tmp_path.iterdir():
            assert b"PROMPT" not in file.read_bytes()
    assert b"PROMPT" not in path.read_bytes()


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)"])
def test_a_process_that_ends_leaves_one_file(tmp_path: Path, end: str) -> None:
    path = tmp_path / "ledger"
    code = f"ledger = Ledger(source)\npage(ledger).intend(Decimal(1))\n{end}"
    with python(code, str(path)) as process:
        process.wait(30)
    assert [file.name for file in tmp_path.iterdir()] == ["ledger"]


def test_what_a_killed_process_leaves_is_taken_away_and_nothing_else(tmp_path: Path) -> None:
    path, lock = tmp_path / "ledger", "ledger-*[0-9a-f]"
    others = {f"ledger-{'0' * 31}", "ledger-backup", f"my-ledger-{'0' * 32}"}
    for name in others:
        (tmp_path / name).touch()
    with python(HOLDING, str(path)) as killed:
        heard(killed)
    with python(HOLDING.replace("page(ledger)", "page(ledger, 2)"), str(path)) as alive:
        heard(alive)
        with Ledger(path) as ledger:
            there = {file.name for file in tmp_path.glob(lock)}
            assert len(there - others) == 2  # ours, and the living one's
            assert page(ledger, 2).intend(Decimal(1)) is None
            assert page(ledger).intend(Decimal(1)) is not None
    assert others <= {file.name for file in tmp_path.iterdir()}


def test_a_ledger_that_is_forgotten_is_no_sign_of_life(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "ledger")
    page(first).intend(Decimal(1))
    del first
    with Ledger(tmp_path / "ledger") as second:
        assert page(second).intend(Decimal(1)) is not None


def test_a_living_process_is_known_by_any_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "ledger")
    with python(
        f"import os\n{HOLDING.replace(')', '); os.chdir(chr(47))', 1)}", "link", cwd=tmp_path
    ) as process:
        assert heard(process) == "here"
        for name in ("real/ledger", "link"):
            with Ledger(tmp_path / name) as ledger:
                assert page(ledger).intend(Decimal(1)) is None


def test_nothing_is_left_of_a_ledger_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger(":memory:") as ledger:
        page(ledger).intend(Decimal(1))
        assert list(tmp_path.iterdir()) == []


def test_a_ledger_may_wait_for_the_disk(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", fsync=True) as ledger:
        asked = page(ledger)
        asked.intend(Decimal(1))
        asked.reply(1, Decimal(1), REPLY)
        assert states(ledger) == ["reply"]


def test_a_file_that_is_no_ledger_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    text, foreign, newer = tmp_path / "text", tmp_path / "foreign", tmp_path / "newer"
    text.write_text("Not a database, but long enough to be taken for one. " * 100)
    with closing(sqlite3.connect(foreign)) as file:
        file.execute("CREATE TABLE calls (key TEXT)")
    Ledger(newer).close()
    with closing(sqlite3.connect(newer)) as file:
        file.execute("PRAGMA user_version = 2")
    for path in (text, foreign, newer):
        before = path.read_bytes()
        refused(path)
        assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"text", "foreign", "newer"}


def refused(source: str | Path) -> str:
    with pytest.raises(LedgerError) as error:
        Ledger(source)
    assert "then resume the run" in str(error.value)
    return str(error.value)


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere" / "ledger"
    assert str(nowhere) in refused(nowhere)
    assert str(tmp_path) in refused(tmp_path)
    assert not nowhere.parent.exists()


READ_ONLY = """
from r2graph.errors import LedgerError
for path in (source, *arguments):
    try:
        Ledger(path)
    except LedgerError as error:
        print(error)
"""


def test_a_file_or_a_directory_that_is_read_only_is_an_error(tmp_path: Path) -> None:
    file, folder = tmp_path / "ledger", tmp_path / "folder"
    folder.mkdir()
    for path in (file, folder / "there"):
        Ledger(path).close()
    before = file.read_bytes()
    file.chmod(0o444)
    folder.chmod(0o555)
    # Whoever is root may write everywhere: then only in the words of nobody.
    code = f"import os\nif os.geteuid() == 0: os.setuid(65534)\n{READ_ONLY}"
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    with python(code, str(file), str(folder / "there"), str(folder / "new")) as process:
        told = [heard(process) for _ in range(3)]
    folder.chmod(0o755)
    for path, line in zip((file, folder / "there", folder / "new"), told, strict=True):
        assert line.startswith(f"the call ledger in {path} cannot be used"), told
    assert file.read_bytes() == before


def test_a_file_that_another_holds_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    Ledger(path).close()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked"):
            SqliteDatabase(path, fsync=False, patience_s=0.05)
        threading.Timer(0.3, other.execute, ["ROLLBACK"]).start()
        with Ledger(path) as ledger:
            assert page(ledger).intend(Decimal(1)) == []


FULL = """
import resource
from r2graph.errors import LedgerError
ledger = Ledger(source)
mine = page(ledger)
mine.intend(Decimal(1))
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
for _ in range(2):
    try:
        mine.reply(1, Decimal(1), {"text": "x" * 100_000})
    except LedgerError as error:
        print("refused", flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
print(len(mine.intend(Decimal(1))), flush=True)
mine.reply(2, Decimal(1), {})
print([line.state for line in mine.lines()], ledger.left(Budget(usd=Decimal(9))) == 7, flush=True)
"""


def test_a_ledger_outlives_a_full_disk(tmp_path: Path) -> None:
    with python(FULL, str(tmp_path / "ledger")) as process:
        assert [heard(process) for _ in range(2)] == ["refused", "refused"]
        # The reply is lost: it is in doubt, and may be asked for again.
        assert heard(process) == "1"
        assert heard(process) == "['in_doubt', 'reply'] True"


# Where a ledger does not go


def test_a_closed_ledger_is_an_error(ledger: Ledger) -> None:
    asked = page(ledger)
    for _ in range(2):
        ledger.close()
    with pytest.raises(LedgerError):
        asked.intend(Decimal(1))
    for look in (asked.lines, ledger.lines):
        with pytest.raises(LedgerError):
            look()


async def test_a_graph_whose_ledger_is_closed_fails_with_the_ledgers_error(ledger: Ledger) -> None:
    graph = create_r2_graph(pool_of(echo()), ledger=ledger)
    ledger.close()
    with pytest.raises(LedgerError):
        graph.invoke("q")
    with pytest.raises(LedgerError):
        await graph.ainvoke("q")


def test_a_ledger_is_not_pickled(ledger: Ledger) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(ledger)


FORKED = """
import os
from r2graph.errors import LedgerError
ledger = Ledger(source)
mine = page(ledger)
mine.intend(Decimal(1))
if not os.fork():
    try:
        mine.lines()
    except LedgerError as error:
        print("fork" in str(error), flush=True)
    raise SystemExit  # as a child that cleans up after itself
os.wait()
print("parent", flush=True)
time.sleep(60)
"""


def test_a_forked_child_is_refused_and_takes_nothing_from_its_parent(source: str) -> None:
    with Ledger(source) as ledger, python(FORKED, source) as process:
        assert [heard(process), heard(process)] == ["True", "parent"]
        assert page(ledger).intend(Decimal(1)) is None
        assert states(ledger) == ["intent"]


# PostgreSQL


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:CANARY@127.0.0.1:1/db",
        "postgresql://u:CANARY@127.0.0.1:port/db",
        "postgres://u:CANARY@127.0.0.1:1/db?unknown=CANARY",
        "postgresql://u:CANARY@[/db",
    ],
)
def test_a_server_that_cannot_be_reached_is_an_error_without_its_password(url: str) -> None:
    pytest.importorskip("psycopg_pool")
    with pytest.raises(LedgerError) as error:
        Ledger(url)
    told = "".join(traceback.format_exception(error.value)) + repr(error.value)
    assert "CANARY" not in told + repr(pickle.loads(pickle.dumps(error.value)))
    assert "127.0.0.1" not in str(error.value)


def test_tables_of_others_are_left_as_they_are(postgres_server: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    url = new_schema(postgres_server)
    with psycopg.connect(url) as others:
        others.execute("CREATE TABLE calls (key TEXT)")
        others.execute("CREATE TABLE totals (key TEXT)")
    with Ledger(url) as ledger:
        page(ledger).intend(Decimal(1))
        assert states(ledger) == ["intent"]
    with psycopg.connect(url) as others:
        assert others.execute("SELECT * FROM calls, totals").fetchall() == []


def test_a_reply_that_arrives_while_it_is_doubted_is_not_bought_again(postgres_server: str) -> None:
    from r2graph.ledger.postgres import PostgresDatabase

    url = new_schema(postgres_server)

    class Slow(PostgresDatabase):
        """Between reading an intent and doubting it, its process records the reply and ends."""

        def is_gone(self, connection: Connection, owner: str) -> bool:
            page(first).reply(1, Decimal(1), REPLY)
            first.close()
            gone = super().is_gone
            settled(lambda: gone(connection, owner))
            return True

    first = Ledger(url)
    page(first).intend(Decimal(4))
    slow = Slow(url)
    asked = page(first)
    late = Page(slow, set(), True, asked.run, asked.role, asked.member, asked.step, asked.key, None)
    assert late.intend(Decimal(4)) is None
    assert states(late) == ["reply"]
    slow.close()


def test_a_process_whose_connections_broke_goes_on_and_is_known_to_be_alive(
    postgres_server: str,
) -> None:
    psycopg = pytest.importorskip("psycopg")
    url = new_schema(postgres_server)
    with Ledger(url) as ledger:
        page(ledger, 1).intend(Decimal(1))
        with psycopg.connect(url) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE usename = 'r2' AND pid <> pg_backend_pid()"
            )
        assert page(ledger, 2).intend(Decimal(1)) == []
        with Ledger(url) as rival:
            assert page(rival, 2).intend(Decimal(1)) is None
            # Of what it asked before, others cannot know whether anybody waits.
            assert page(rival, 1).intend(Decimal(1)) is not None
        page(ledger, 1).reply(1, Decimal(1), REPLY)
        assert page(ledger, 1).lines()[0].reply == REPLY


def test_a_ledger_that_keeps_no_calls_keeps_what_they_cost() -> None:
    budget = Budget(usd=Decimal(1))
    with Ledger(":memory:", keep=False) as ledger:
        page = ledger.page("run", "executor", "m1", "s1", "request", budget)
        assert page.intend(Decimal("0.2")) == []
        page.fail(1, Decimal(0), "server")
        assert page.intend(Decimal("0.2")) == []
        page.reply(1, Decimal("0.1"), {"text": "yes"})
        other = ledger.page("run", "executor", "m1", "s2", "request", budget)
        other.intend(Decimal("0.3"))
        assert len(ledger.lines()) == 1, "a call in flight is there"
        other.doubt(1)
        assert ledger.lines() == []
        assert ledger.left(budget) == Decimal("0.6")


async def test_a_budget_of_all_runs_alone_keeps_no_reply() -> None:
    graph = create_r2_graph(pool_of(echo()), pool_budget="1")
    for run in range(3):
        await graph.ainvoke({"query": f"query {run}"})
    ledger = graph.defaults.ledger
    assert ledger is not None
    assert ledger.lines() == []
    assert ledger.left(Budget(usd=Decimal(1))) < 1
