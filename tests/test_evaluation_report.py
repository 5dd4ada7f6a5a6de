"""Reports of evaluations: their numbers are those of the outcomes, their text is no markup."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from r2graph.evaluation.causes import Causes
from r2graph.evaluation.findings import Findings, findings
from r2graph.evaluation.outcomes import Detail, Outcome, Tried
from r2graph.evaluation.record import read_outcomes
from r2graph.evaluation.run import Evaluation, Setup, evaluate
from r2graph.evaluation.written import write_report
from r2graph.pool import ModelPool
from tests.fakes import FakeChat, pool_of
from tests.test_evaluation_baselines import instructed, write

METHODS = ("single-1", "single-2", "plan-1", "cheapest-first", "router", "cascade", "oracle")
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
FENCE = "```"
HENS = "Ann has {} hens"
N = 6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return questions(tmp_path / "data", "{} and buys one. How many now?")


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


def report(folder: Path, setup: Setup) -> tuple[Evaluation, Findings]:
    done = run(setup)
    found = findings(setup, done.outcomes)
    folder.mkdir()
    write_report(folder, found)
    return done, found


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


def test_names_are_not_taken_for_markup_either(data: Path, tmp_path: Path) -> None:
    setup = setup_of(data)
    done = run(setup)
    hostile = [replace(o, method=f"router:{HOSTILE}{o.method}") for o in done.outcomes]
    write_report(tmp_path, findings(setup, hostile))
    page = Page((tmp_path / "report.html").read_text())
    assert f"router:{HOSTILE}single-1" in page.text
    assert not {name for name, _ in page.elements} & {"script", "img"}
    assert "<img" not in re.sub(
        r"\\<|```+text.*?\n```+", "", (tmp_path / "report.md").read_text(), flags=re.DOTALL
    )


def test_text_in_markdown_stays_in_its_block(data: Path, tmp_path: Path) -> None:
    report(tmp_path / "report", setup_of(data))
    text = (tmp_path / "report" / "report.md").read_text()
    assert HOSTILE in text
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in outside


def test_numbers_are_those_of_the_outcomes(data: Path, tmp_path: Path) -> None:
    done, found = report(tmp_path / "report", setup_of(data))
    for line in table(tmp_path / "report" / "rows.csv"):
        some = [o for o in done.outcomes if o.method == line["method"]]
        assert int(line["n"]) == len(some) == N
        assert float(line["accuracy"]) == pytest.approx(sum(o.right for o in some) / N)
        cost = float(sum(o.net_usd for o in some) / N)
        assert float(line["net_cost_usd"]) == pytest.approx(cost)
        paid = [
            m for m in table(tmp_path / "report" / "money.csv") if m["method"] == line["method"]
        ]
        assert sum(float(m["usd"]) for m in paid) == pytest.approx(cost)
        assert sum(float(m["calls"]) for m in paid) == pytest.approx(float(line["calls"]))
    standings = {each.method: each for each in found.standings}
    assert found.best == standings["single-2"]
    small, best = standings["single-1"], standings["single-2"]
    assert small.saved is not None
    assert small.saved.value == pytest.approx(1 - small.net_usd.value / best.net_usd.value)
    assert small.gained is not None
    assert small.gained.value == pytest.approx(-3 / N)
    page = Page((tmp_path / "report" / "report.html").read_text())
    assert f"router is right on {standings['router'].accuracy.value:.1%}" in page.text
    assert {failures.method: failures.wrong for failures in found.failures} == {
        name: sum(not o.right for o in done.outcomes if o.method == name) for name in METHODS
    }


def test_the_picture_is_a_picture(data: Path, tmp_path: Path) -> None:
    report(tmp_path / "report", setup_of(data))
    content = (tmp_path / "report" / "frontier.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
    assert (width, height) > (1000, 500)


def test_examples_are_right_escalated_and_wrong_runs_with_their_bills(
    data: Path, tmp_path: Path
) -> None:
    _, found = report(tmp_path / "report", setup_of(data))
    assert found.headline.method == "router"
    kinds = [example.kind for example in found.examples]
    assert set(kinds) <= {"right", "escalated", "wrong"}
    assert "wrong" in kinds
    for example in found.examples:
        total = sum((Decimal(str(line.usd)) for line in example.paid), Decimal(0))
        assert float(total) == pytest.approx(float(example.trace.cost_usd))
        assert example.trace.right == (example.kind != "wrong")
        assert (example.cause is not None) == (example.kind == "wrong")


def test_a_resumed_evaluation_has_the_whole_report(data: Path, tmp_path: Path) -> None:
    setup = setup_of(data, out=tmp_path / "out.jsonl", concurrency=1)
    first = run(replace(setup, limit=3))
    whole, again = run(setup), run(setup)
    assert again.outcomes == whole.outcomes
    assert findings(setup, again.outcomes) == findings(setup, whole.outcomes)
    assert {o.detail for o in first.outcomes if o.detail is None} == set()


def test_outcomes_on_record_without_detail_are_told(data: Path, tmp_path: Path) -> None:
    setup = setup_of(data, out=tmp_path / "out.jsonl")
    run(replace(setup, detailed=False))
    assert all(o.detail is None for o in read_outcomes(tmp_path / "out.jsonl"))
    _, found = report(tmp_path / "report", setup)
    assert found.undetailed == len(METHODS) * N
    assert {f.causes["unknown"] == f.wrong for f in found.failures} == {True}
    assert "on record without detail" in (tmp_path / "report" / "report.html").read_text()


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
