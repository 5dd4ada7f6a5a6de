"""Graders accept a right answer in any of its forms, and nothing else; no answer stops them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2graph.benchmarks import NAMES, Question, grade, graded_f1, load
from r2graph.benchmarks.formula import equal, latex
from r2graph.errors import ConfigError
from r2graph.lab import benchmarks as lab

DATA = Path(__file__).parent / "data" / "benchmarks"
PUBLISHED = [name for name in NAMES if name not in lab.NAMES]


def right(name: str, gold: Any, answer: str | None) -> bool:
    return grade(Question(name, "1", "?", gold), answer)


BANK: Any = {"letter": "B", "text": "the bank"}
EASY = "def sat(li: List[int], n=3):\n    return len(li) == n and sum(li) == 7"
# benchmark, gold, answers that are right, answers that are wrong
CASES: list[tuple[str, Any, list[str], list[str]]] = [
    (
        "gsm8k",
        "2,125",
        [
            "2125",
            "So she pays $2,125.00 in all.",
            "1 + 1 = 2.\n**Answer:** $2,125",
            "17 * 125 = 2125\n#### 2125",
            "It took 3 steps. The answer is 2125 dollars.",
        ],
        ["2126", "-2125", "21.25", "2125, no: 5", "answer: 2\nof 2125", "two", ""],
    ),
    ("gsm8k", "-10", ["-10", "answer: -$10", "5-15=-10"], ["10", "answer: 5-10"]),
    (
        "math",
        r"\frac{\sqrt{3}}{2}",
        [
            r"Hence $\boxed{\frac{\sqrt 3}{2}}$.",
            r"answer: $\dfrac{\sqrt{3}}2$.",
            "answer: sqrt(3)/2",
            r"First \boxed{1}.\nAnswer: \boxed{\sqrt{\frac{3}{4}}}",
            r"\frac{3}{2\sqrt{3}}",
        ],
        [r"\boxed{\frac{\sqrt{2}}{3}}", r"answer: \frac{3}{2}", r"\boxed{\frac{\sqrt{3}}{2}", ""],
    ),
    ("math", r"(x-3)(x+3)", ["x^2-9", "(x+3)(x-3)", r"\boxed{-(9-x^2)}"], ["x^2+9", "y^2-9"]),
    ("math", r"2,3", ["3, 2", r"\boxed{\{2,3\}}", "answer: 2 and 3"], ["2", "2,3,4", "5"]),
    ("math", r"(-2,2)", [r"(-2, 2)", r"\left(-2,2\right)", r"x \in (-2,2)"], ["[-2,2]", "(-2,3)"]),
    ("math", r"\frac{1}{6}", ["1/6", r"\tfrac16", "2/12"], ["6", "0.17", r"\frac{1}{6}+1"]),
    ("math", r"\text{Tuesday}", ["Tuesday", "tuesday.", r"\boxed{\text{Tuesday}}"], ["Monday"]),
    (
        "champ",
        ["C(10, 5)", "252"],
        ["252", r"answer: \binom{10}{5}", "answer: 10!/(5!)^2", r"\boxed{252}"],
        ["251", "C(10, 4)", "answer: C(5, 10)"],
    ),
    (
        "champ",
        ["n(n-3)/2"],
        [r"\frac{n(n-3)}{2}", "answer: (n^2-3n)/2", "answer: n*(n-3)/2"],
        ["n(n-1)/2", "m(m-3)/2"],
    ),
    (
        "champ",
        ["(1+sqrt(4a+1))/2"],
        [r"\frac{1+\sqrt{1+4a}}{2}", "1/2 + sqrt(4a+1)/2", "(sqrt(1+4a)+1)/2"],
        ["(1+sqrt(4a-1))/2"],
    ),
    ("champ", ["x=2, y=1"], ["y = 1, x = 2", "answer: x=2, y=1", "(2, 1)"], ["x=1, y=2"]),
    ("champ", ["2^997"], ["2^{997}", "2**997", "4^498 * 2"], ["2^97", "2^9 97"]),
    ("champ", ["No"], ["no", "answer: No, never", "It can't. The answer is no."], ["Yes", "maybe"]),
    (
        "csqa",
        BANK,
        [
            "B",
            "answer: b",
            "(B) the bank",
            "A door turns. **Answer: B.**",
            "The answer is bank",
            "It is (B), not an (obvious) door.",
        ],
        ["A", "answer: (A) the bank", "A bank? No: (C)", "library", "Because", "answer: AB", ""],
    ),
    (
        "csqa",
        {"letter": "A", "text": "mall"},
        ["A", "answer: a", "Answer:\n(A)", "A: mall"],
        ["A door names no choice", "the", "answer: an"],
    ),
    (
        "strategyqa",
        "yes",
        ["Yes.", "answer: yes", "No doubt.\nAnswer: **Yes**", "One says no. So yes", "true"],
        ["no", "answer: no, not yes", "yes\nanswer: no", "eyes", ""],
    ),
    (
        "musique",
        ["Pittsburgh Pirates", "Pirates"],
        ["pirates", "answer: the Pittsburgh Pirates.", "**Answer:** Pirates!"],
        ["Pittsburgh", "Pirates or Mets", "answer: Mets\nPirates", ""],
    ),
    (
        "scan",
        "I_TURN_LEFT I_WALK",
        [
            "I_TURN_LEFT I_WALK",
            "answer: `I_TURN_LEFT I_WALK`",
            "walk left is\nI_TURN_LEFT, I_WALK",
            "I_JUMP\nanswer: I_TURN_LEFT   I_WALK",
        ],
        ["I_TURN_LEFT", "I_WALK I_TURN_LEFT", "answer: I_TURN_LEFT I_WALK I_WALK", "left", ""],
    ),
    (
        "p3",
        EASY,
        [
            "answer: [1, 2, 4]",
            "[7, 0, 0]",
            "Try\n```python\ndef sol(n=3):\n    return [7] + [0] * (n - 1)\n```\nDone.",
            "```python\n1\n```\nNo:\n```\n[5, 1, 1]\n```",
            "def sol():\n    text = '```'\n    return [len(text), 4, 0]",
        ],
        [
            "answer: [1, 2, 5]",
            "answer: (1, 2, 4)",
            "```python\ndef sol():\n    return 1 / 0\n```",
            "",
        ],
    ),
    ("scan-simple", "I_WALK I_JUMP", ["I_WALK I_JUMP", "I_WALK  I_JUMP\n"], ["answer: I_WALK", ""]),
]
RIGHT = [(name, gold, answer) for name, gold, answers, _ in CASES for answer in answers]
WRONG = [(name, gold, answer) for name, gold, _, answers in CASES for answer in answers]


@pytest.mark.parametrize(("name", "gold", "answer"), RIGHT)
def test_a_right_answer_may_be_written_in_many_ways(name: str, gold: Any, answer: str) -> None:
    assert right(name, gold, answer)


@pytest.mark.parametrize(("name", "gold", "answer"), WRONG)
def test_a_wrong_answer_is_wrong(name: str, gold: Any, answer: str) -> None:
    assert not right(name, gold, answer)


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_is_wrong(name: str) -> None:
    assert not right(name, "1", None)


def golds(question: Question) -> list[str]:
    gold: Any = question.gold
    if question.benchmark == "csqa":
        return [gold["letter"], gold["text"]]
    return gold if isinstance(gold, list) else [gold]


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "p3"])
def test_each_gold_answer_is_right(name: str) -> None:
    for question in load(name, data=DATA):
        for gold in golds(question):
            assert grade(question, gold)
            assert grade(question, f"Let us see.\n\n**Answer:** {gold}\n")


def test_each_puzzles_own_solution_is_right() -> None:
    puzzles = json.loads((DATA / "p3" / "puzzles.json").read_text())
    programs = {each["name"]: f"{each['sol_header']}\n{each['sol_bodies'][0]}" for each in puzzles}
    for question in load("p3", data=DATA):
        assert grade(question, f"```python\n{programs[question.id]}\n```")


@given(st.text())
def test_what_comes_before_the_last_answer_line_does_not_count(before: str) -> None:
    assert right("gsm8k", "7", f"{before}\nanswer: 7")
    assert right("csqa", BANK, f"{before}\n(A)\nanswer: B")
    assert right("strategyqa", "no", f"{before}\nyes\nanswer: no")


@pytest.mark.parametrize(
    ("answer", "f1"),
    [
        ("Pittsburgh Pirates", 1.0),
        ("answer: the pirates", 1.0),
        ("Pittsburgh", 2 / 3),
        ("The answer is the Pirates of Penzance", 1 / 2),
        ("Mets", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_the_f1_of_musique_is_that_of_the_nearest_alias(answer: str | None, f1: float) -> None:
    question = Question("musique", "1", "?", ["Pittsburgh Pirates", "Pirates"])
    assert graded_f1(question, answer) == pytest.approx(f1)


def test_other_benchmarks_have_no_f1() -> None:
    for name in ("gsm8k", "scan-simple"):
        with pytest.raises(ConfigError, match="has no F1"):
            graded_f1(Question(name, "1", "?", "7"), "7")


@pytest.mark.parametrize(
    ("typed", "formula"),
    [
        ("$x^2$", "x^2"),
        (r"\[ x \]", "x"),
        ("2^(n-1)", "2^{n-1}"),
        ("10^15", "10^{15}"),
        ("sqrt(1+sqrt(C(n, 2)))", r"\sqrt{1+\sqrt{\binom{n}{2}}}"),
        ("sum_(i=1)^n i", r"\sum_{i=1}^n i"),
        (r"\sqrt(2)", r"\sqrt(2)"),
        ("sqrt(2", "sqrt(2"),
        ("C(1)", "C(1)"),
        ("−5.", "-5"),
    ],
)
def test_what_one_types_becomes_latex(typed: str, formula: str) -> None:
    assert latex(typed) == formula


LONG = 100_000
HOSTILE = [
    "x" * LONG,
    "9" * LONG,
    "(" * LONG,
    "$" * LONG,
    "`" * LONG,
    "```\n" * (LONG // 4),
    "answer: " * (LONG // 8),
    "answer:\n" * (LONG // 8),
    "answer" + "*" * LONG,
    "\n" * LONG,
    r"\boxed{" * (LONG // 7),
    r"\frac{" * (LONG // 6),
    "answer: \\boxed{\ud800\0}",
    "answer: [" * 2_000,
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_hostile_text_is_a_wrong_answer(name: str) -> None:
    question = load(name, data=DATA, limit=1)[0]
    assert not any(grade(question, answer) for answer in HOSTILE)


@pytest.mark.parametrize(
    "formula",
    [
        "9**9**9",
        "9^{9^{9^9}}",
        r"\sum_{i=1}^{10^{12}} i^{i}",
        "(" * 400 + "1" + ")" * 400,
        r"\frac{" * 99 + "1" + "}{2}" * 99,
    ],
)
def test_a_formula_that_takes_too_long_is_wrong_and_the_next_one_is_judged(formula: str) -> None:
    assert not right("math", "7", f"answer: {formula}")
    assert right("math", "x^2-1", "answer: (x-1)(x+1)")


def test_a_formula_does_not_run_as_python(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for code in (f"open('{mark}','w')", f"__import__('pathlib').Path('{mark}').touch()"):
        for answer in (code, f"answer: {code}", rf"\boxed{{{code}}}", f"answer: ${code}$"):
            assert not right("math", "7", answer)
    assert not mark.exists()


def test_formulas_are_compared_in_threads() -> None:
    with ThreadPoolExecutor(4) as threads:
        verdicts = threads.map(lambda n: equal(["x^2-1"], f"(x-{n})(x+1)"), [1, 2, 1, 3] * 3)
        assert list(verdicts) == [True, False, True, False] * 3
