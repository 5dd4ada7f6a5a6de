"""GSM8K, MATH and CHAMP, whose answers are numbers and formulas."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal

from r2graph.benchmarks.formula import equal
from r2graph.benchmarks.question import Question, plain, stated, text_id
from r2graph.benchmarks.source import Hub, Source
from r2graph.benchmarks.words import yes_no_right

GSM8K_QUERY = "{}\n\nEnd with a line `answer: …` that holds the number alone."


def gsm8k(source: Source) -> Iterator[Question]:
    for record in source.records("test.jsonl", hub=Hub("openai/gsm8k", "test", "main")):
        problem = record["question"].strip()
        gold = record["answer"].rpartition("####")[2].strip()
        yield Question(source.benchmark, text_id(problem), GSM8K_QUERY.format(problem), gold)


_NUMBER = re.compile(r"(?:(?<![\w.)])-)?\$?(\d[\d,]*(?:\.\d+)?|\.\d+)")


def gsm8k_right(gold: str, answer: str) -> bool:
    """The last number of the stated answer, else what follows `####`, else the last of the text."""
    said = stated(answer) or answer.rpartition("####")[2]
    found = None
    for found in _NUMBER.finditer(said):  # noqa: B007 - the last one
        pass
    return found is not None and _value(found[0]) == _value(gold)


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("$", ""))


MATH_QUERY = r"""{}

End with a line `answer: \boxed{{…}}` that holds the final answer in LaTeX."""


def math(source: Source) -> Iterator[Question]:
    for record in source.records("*.jsonl", hub=Hub("HuggingFaceH4/MATH-500", "test")):
        problem = record["problem"].strip()
        gold = record.get("answer") or boxed(record["solution"])
        if gold:
            yield Question(source.benchmark, text_id(problem), MATH_QUERY.format(problem), gold)


def math_right(gold: str, answer: str) -> bool:
    return equal([gold], formula(answer))


def formula(answer: str) -> str:
    """What is boxed in the stated answer or else anywhere; else the stated answer, or the last
    line.
    """
    said = stated(answer)
    lines = plain(answer).splitlines() or [""]
    return boxed(said or "") or said or boxed(answer) or plain(lines[-1])


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{…}` holds."""
    _, opened, rest = text.rpartition(r"\boxed{")
    if not opened:
        return None
    depth = 1
    for index, sign in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth == 0:
            return rest[:index]
    return None


CHAMP_QUERY = """\
{}

End with a line `answer: …` that holds only the number or the formula asked for, several of them
separated by commas, or yes or no."""


def champ(source: Source) -> Iterator[Question]:
    """What has numbers, formulas, yes or no as its answer; sentences are left out."""
    for id_, problem in source.json("champ_v0_explorer.json")["problems"].items():
        if gold := champ_gold(problem["_answer"]):
            query = CHAMP_QUERY.format(problem["_text"])
            yield Question(source.benchmark, id_, query, [*gold])


_AROUND = re.compile(
    r"^The (?:limit exists and is equal to|only possible value for the limit is) "
    r"| is the only possible value$| (?:values|inequalities|pairs|roots|times)$"
)
_WORD = re.compile(r"(?<![a-z])(?!sqrt|sum|and|Yes)[A-Za-z]{3,}|\.\.\.")


def champ_gold(answer: str) -> list[str]:
    """The forms in which an answer is given, without the words around them."""
    answer = _AROUND.sub("", re.sub(r" \((?:i\.e\.|no).*\)$", "", answer))
    forms = re.split(r",? or (?:equivalently|approximately|an equivalent form such as) ", answer)
    return [form for form in forms if not _WORD.search(form)]


def champ_right(gold: Sequence[str], answer: str) -> bool:
    if gold[0] in ("Yes", "No"):
        return yes_no_right(gold[0].lower(), answer)
    return equal(gold, formula(answer))
