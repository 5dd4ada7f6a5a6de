"""Reports of evaluations: their numbers are those of the outcomes, their text is no markup."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from r2graph.cli import app
from r2graph.evaluation.causes import Causes
from r2graph.evaluation.findings import Findings, findings
from r2graph.evaluation.outcomes import Detail, Outcome, Tried
from r2graph.evaluation.record import read_outcomes
from r2graph.evaluation.run import Evaluation, evaluate
from r2graph.evaluation.running import EXAMPLES
from r2graph.evaluation.setup import Setup
from r2graph.evaluation.written import write_report
from r2graph.pool import ModelPool
from tests import chromium
from tests.fakes import FakeChat, pool_of
from tests.test_evaluation_baselines import instructed, write

METHODS = ("single-1", "single-2", "plan-1", "cheapest-first", "router", "cascade", "oracle")
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
FENCE = "```"
HENS = "Ann has {} hens"
QUESTION = "{} and buys one. How many now?"
N = 6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return questions(tmp_path / "data", QUESTION)


@dataclass(frozen=True)
class Report:
    setup: Setup
    done: Evaluation
    found: Findings
    folder: Path

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("farm")
    return report(folder / "report", setup_of(questions(folder / "data", QUESTION)))


def questions(folder: Path, text: str) -> Path:
    """GSM8K of six questions."""
    records = [
        {"question": text.format(HENS.format(n)), "answer": f"#### {n + 1}"}
        for n in range(1, N + 1)
    ]
    write(folder / "gsm8k" / "test.jsonl", *records)
    return folder


def farmer(known: int, **options: Any) -> FakeChat:
    """Knows the answers to so many of the questions, and is hostile in all."""

    def says(text: str) -> str | None:
        found = next((n for n in range(1, N + 1) if HENS.format(n) in text), None)
        return found and f"{FENCE}\n{HOSTILE}\nanswer: {found + 1 if found <= known else HOSTILE}"

    return instructed(says, **options)


def farm() -> ModelPool:
    return pool_of(farmer(2), farmer(5), language="any")


def setup_of(data: Path, **more: Any) -> Setup:
    return Setup(farm(), METHODS, data=data, detailed=True, **more)


def run(setup: Setup) -> Evaluation:
    return evaluate(setup, ["gsm8k"], lambda *_: None)


def report(folder: Path, setup: Setup) -> Report:
    done = run(setup)
    found = findings(setup, done.outcomes)
    folder.mkdir()
    write_report(folder, found)
    return Report(setup, done, found, folder)


class Page(HTMLParser):
    """The elements of a page, and what it says."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


# What is written


def test_a_page_is_whole_asks_for_nothing_and_takes_no_text_for_markup(
    tmp_path: Path,
) -> None:
    data = questions(tmp_path / "data", "{} " + HOSTILE)
    report(tmp_path / "report", replace(setup_of(data), methods=("single-1", "cascade")))
    text = (tmp_path / "report" / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert f"{HENS.format(1)} {HOSTILE}" in page.text  # the query
    assert f"{FENCE}\n{HOSTILE}\nanswer" in page.text  # the output
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    names = {name for name, _ in page.elements}
    assert not names & {"script", "img", "link", "iframe", "object", "form", "base"}
    links = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name.endswith(("href", "src"))
    ]
    assert links
    assert all(value and value.startswith("#") for value in links)
    assert not [name for _, attributes in page.elements for name in attributes if name[:2] == "on"]


def test_names_are_not_taken_for_markup_either(written: Report, tmp_path: Path) -> None:
    outcomes = [replace(o, method=f"router:{HOSTILE}{o.method}") for o in written.done.outcomes]
    write_report(tmp_path, findings(written.setup, outcomes))
    page = Page((tmp_path / "report.html").read_text())
    assert f"router:{HOSTILE}single-1" in page.text
    assert not {name for name, _ in page.elements} & {"script", "img"}
    assert "<" not in outside((tmp_path / "report.md").read_text()).replace("\\<", "")


def outside(markdown: str) -> str:
    """What is in no block of code."""
    return re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)


def test_text_in_markdown_stays_in_its_block(written: Report) -> None:
    text = written.read("report.md")
    assert HOSTILE in text
    assert "<" not in outside(text)


@pytest.mark.skipif(chromium.find() is None, reason="there is no Chromium on the PATH")
def test_a_browser_shows_the_page_without_a_request_or_a_complaint(
    written: Report, tmp_path: Path
) -> None:
    with chromium.browsing(tmp_path / "profile") as page:
        address = (written.folder / "report.html").as_uri()
        for width, scheme in ((1280, "light"), (390, "dark")):
            page.look(width, 800, scheme, phone=width == 390)
            page.open(address)
            assert page.value("document.documentElement.scrollWidth") == width
            assert page.value("document.title") == "r2graph evaluation: fakes"
        assert set(page.requests) == {address}
        assert page.complaints == []


def test_numbers_are_those_of_the_outcomes(written: Report) -> None:
    outcomes = written.done.outcomes
    rows, money = (table(written.folder / name) for name in ("rows.csv", "money.csv"))
    assert [row["method"] for row in rows] == list(METHODS)
    for row in rows:
        some = [o for o in outcomes if o.method == row["method"]]
        assert int(row["n"]) == len(some) == N
        assert float(row["accuracy"]) == pytest.approx(sum(o.right for o in some) / N)
        cost = float(sum(o.net_usd for o in some) / N)
        assert float(row["net_cost_usd"]) == pytest.approx(cost)
        paid = [line for line in money if line["method"] == row["method"]]
        assert sum(float(line["usd"]) for line in paid) == pytest.approx(cost)
        assert sum(float(line["calls"]) for line in paid) == pytest.approx(float(row["calls"]))
    assert {failures.method: failures.wrong for failures in written.found.failures} == {
        name: sum(not o.right for o in outcomes if o.method == name) for name in METHODS
    }


def test_the_page_says_what_is_saved_against_the_best_single_member(written: Report) -> None:
    standings = {each.method: each for each in written.found.standings}
    small, best, router = (standings[name] for name in ("single-1", "single-2", "router"))
    assert written.found.best == best
    assert (best.accuracy.value, small.accuracy.value) == pytest.approx((5 / N, 2 / N))
    assert small.saved is not None
    assert small.saved.value == pytest.approx(1 - small.net_usd.value / best.net_usd.value)
    assert small.gained is not None
    assert small.gained.value == pytest.approx(-3 / N)
    assert (
        f"router is right on {router.accuracy.value:.1%}" in Page(written.read("report.html")).text
    )


def test_an_output_that_was_not_used_is_a_failed_attempt(written: Report) -> None:
    paid = {
        (line.purpose, line.member): line.calls
        for line in written.found.spent
        if line.method == "cascade"
    }
    expected = {("step", "m2"): 1, ("failed attempt", "m1"): 1, ("verifier", "m1"): 1}
    assert paid == pytest.approx(expected)


def test_the_picture_is_a_picture(written: Report) -> None:
    content = (written.folder / "frontier.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
    assert (width, height) > (1000, 500)


def test_examples_are_runs_with_their_bills(written: Report) -> None:
    assert written.found.headline.method == "router"
    assert [example.kind for example in written.found.examples] == [
        "escalated",
        "escalated",
        "wrong",
    ]
    for example in written.found.examples:
        total = sum(Decimal(str(line.usd)) for line in example.paid)
        assert float(total) == pytest.approx(float(example.trace.cost_usd))
        assert example.trace.right == (example.kind != "wrong")
        assert (example.cause is not None) == (example.kind == "wrong")


def test_there_are_but_a_few_examples_of_each_kind(written: Report) -> None:
    kept = Counter(
        (o.method, o.right) for o in written.done.outcomes if o.detail and o.detail.example
    )
    assert max(kept.values()) == EXAMPLES
    assert not {method for method, _ in kept} & {"single-1", "single-2"}


def test_a_resumed_evaluation_has_the_whole_report(data: Path, tmp_path: Path) -> None:
    setup = setup_of(data, out=tmp_path / "out.jsonl", concurrency=1)
    first = run(replace(setup, limit=3))
    whole, again = run(setup), run(setup)
    assert again.outcomes == whole.outcomes
    assert findings(setup, again.outcomes) == findings(setup, whole.outcomes)
    assert {o.query for o in first.outcomes} < {o.query for o in whole.outcomes}


def test_outcomes_on_record_without_detail_are_told(data: Path, tmp_path: Path) -> None:
    setup = setup_of(data, out=tmp_path / "out.jsonl")
    run(replace(setup, detailed=False))
    assert all(o.detail is None for o in read_outcomes(tmp_path / "out.jsonl"))
    later = report(tmp_path / "report", setup)
    assert later.found.undetailed == len(METHODS) * N
    assert all(f.causes["unknown"] == f.wrong for f in later.found.failures)
    for name in ("report.html", "report.md"):
        assert "on record without detail" in later.read(name)


def test_a_record_of_before_there_was_detail_is_read(tmp_path: Path) -> None:
    old = (
        '{"format": 1, "settings": "x"}\n{"benchmark": "a", "method": "m", "query": "q", '
        '"right": true, "pool_usd": "1", "net_usd": "2", "calls": 3, "cpu_s": 0.5}\n'
    )
    (tmp_path / "out.jsonl").write_text(old)
    expected = Outcome("a", "m", "q", True, Decimal(1), Decimal(2), 3, 0.5)
    assert read_outcomes(tmp_path / "out.jsonl") == [expected]


def test_without_a_report_nothing_more_is_kept(data: Path) -> None:
    setup = replace(setup_of(data), detailed=False)
    assert all(o.detail is None for o in run(setup).outcomes)


# Why an answer is wrong


def wrong(*tried: Tried, stop: str = "verified", method: str = "router") -> Outcome:
    found = Detail((), tried, stop)
    return Outcome("arith", method, "q", False, Decimal(1), Decimal(1), 1, 0.0, found)


def step(member: str, went: str, ok: bool | None = None, name: str = "s1") -> Tried:
    return Tried(name, f"task of {name}", member, went, ok)  # type: ignore[arg-type]


ABLE = Outcome(
    "arith", "plan-2", "q", True, Decimal(1), Decimal(1), 1, 0.0, Detail((), (step("m2", "right"),))
)


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [
        (wrong(stop="plan"), "plan"),
        (wrong(step("m1", "right")), "plan"),
        (wrong(step("m1", "unplanned", True)), "plan"),
        (wrong(step("m1", "wrong")), "allocation"),
        (wrong(step("m2", "wrong")), "execution"),
        (wrong(step("m1", "wrong", name="s2")), "execution"),
        (wrong(stop="unreachable"), "execution"),
        (wrong(step("m1", "wrong", True)), "verification"),
        (wrong(step("m1", "right", False), step("m2", "wrong")), "verification"),
        (wrong(step("m1", "wrong", False), step("m2", "wrong", False)), "execution"),
        (wrong(step("m1", "wrong"), stop="budget"), "limit"),
        (wrong(step("m1", "unknown")), "unknown"),
        (wrong(step("m1", "right"), step("m1", "wrong", True, name="s2")), "verification"),
        (wrong(step("m2", "wrong"), step("m1", "unplanned", name="s2")), "execution"),
    ],
)
def test_a_cause_is_that_of_the_first_step_that_is_wrong(outcome: Outcome, cause: str) -> None:
    assert Causes([ABLE, outcome], ["m1", "m2"]).of(outcome) == cause


def test_what_is_known_of_one_benchmark_says_nothing_of_another() -> None:
    outcome = replace(wrong(step("m1", "wrong")), benchmark="geo")
    assert Causes([ABLE, outcome], ["m1", "m2"]).of(outcome) == "execution"


# The command


def test_the_command_reports_on_the_lab_and_says_why_answers_are_wrong(tmp_path: Path) -> None:
    out = tmp_path / "report"
    options = ["--benchmarks", "geo", "--methods", "plan-1,plan-9,router", "--limit", "3"]
    done = CliRunner().invoke(app, ["eval", *options, "--report", str(out)])
    assert done.exit_code == 0, done.output
    assert str(out / "report.html") in done.stderr
    files = {"report.html", "report.md", "rows.csv", "money.csv", "frontier.png"}
    assert {file.name for file in out.iterdir()} == files
    page = Page((out / "report.html").read_text())
    assert "router, by model" in page.text
    assert "lab-decomposer" in page.text
    rows = {(row["benchmark"], row["method"]): row for row in table(out / "rows.csv")}
    assert len(rows) == 3
    [line] = re.findall(r"^\| plan-1 \| (\d+) \| (.*) \|$", (out / "report.md").read_text(), re.M)
    wrong, causes = int(line[0]), [int(count) for count in line[1].split(" | ")]
    shares = [1 - float(row["accuracy"]) for (_, name), row in rows.items() if name == "plan-1"]
    assert wrong == sum(causes) == round(3 * sum(shares))
    assert causes[1] > 0  # of allocation: what the weakest gets wrong the strongest gets right


def test_a_report_that_cannot_be_saved_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["eval", "--report", f"{tmp_path}/file/report"])
    assert done.exit_code == 2
    assert "is no directory" in done.stderr
