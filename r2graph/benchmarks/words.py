"""SCAN, CSQA, StrategyQA and MuSiQue, whose answers are words."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from r2graph.benchmarks.question import Question, plain, stated, text_id
from r2graph.benchmarks.source import Hub, Source

SCAN_FILES = {  # benchmark: split; the lab asks scan-simple and scan-length without the rules
    "scan": "simple",
    "scan-by-length": "length",
    "scan-addprim-jump": "addprim_jump",
    "scan-addprim-turn-left": "addprim_turn_left",
    "scan-around-right": "template_around_right",
}
SCAN_QUERY = """\
Translate a command into the actions that it stands for.

- walk, look, run and jump are I_WALK, I_LOOK, I_RUN and I_JUMP.
- "walk left" is I_TURN_LEFT I_WALK, and so for the other verbs and for right (I_TURN_RIGHT).
- "walk opposite left" is I_TURN_LEFT I_TURN_LEFT I_WALK.
- "walk around left" is I_TURN_LEFT I_WALK, four times.
- turn is no action of its own: "turn left" is I_TURN_LEFT, "turn opposite left" is I_TURN_LEFT
  two times, "turn around left" is I_TURN_LEFT four times.
- twice and thrice repeat all actions of the phrase before them, two and three times.
- "X and Y" is X, then Y. "X after Y" is Y, then X.

Command: {}

End with a line `answer: …` that holds the actions, separated by spaces."""


def scan(source: Source) -> Iterator[Question]:
    for line in source.lines(f"tasks_test_{SCAN_FILES[source.benchmark]}.txt"):
        command, _, actions = line.removeprefix("IN: ").partition(" OUT: ")
        query = SCAN_QUERY.format(command)
        yield Question(source.benchmark, text_id(command), query, actions.strip())


def scan_right(gold: str, answer: str) -> bool:
    """The exact actions; without a stated answer, those of the last line that has any."""
    said = stated(answer)
    if said is None:
        said = next((line for line in reversed(answer.splitlines()) if "I_" in line), "")
    return plain(said).replace(",", " ").split() == gold.split()


CSQA_QUERY = """\
{}

{}

End with a line `answer: …` that holds the letter of the best choice."""


def csqa(source: Source) -> Iterator[Question]:
    hub = Hub("tau/commonsense_qa", "validation")
    for record in source.records("dev_rand_split.jsonl", hub=hub):
        stem, choices = record["question"], record.get("choices")
        if choices is None:  # as the authors publish it
            stem, choices = stem["stem"], stem["choices"]
            texts = {each["label"]: each["text"] for each in choices}
        else:
            texts = dict(zip(choices["label"], choices["text"], strict=True))
        listed = "\n".join(f"({label}) {text}" for label, text in texts.items())
        letter = record["answerKey"]
        gold: Any = {"letter": letter, "text": texts[letter]}
        query = CSQA_QUERY.format(stem, listed)
        yield Question(source.benchmark, record["id"], query, gold)


_CHOICE = re.compile(r"\(?([A-E])(?=\s*(?:[^\w\s']|$))")  # "A door" names no choice
_LETTERS = re.compile(r"\(([A-E])\)")


def csqa_right(gold: dict[str, str], answer: str) -> bool:
    """The letter, or the words of the choice; without a stated answer, the last `(letter)`."""
    said = stated(answer)
    if said is None:
        letters = _LETTERS.findall(answer)
        said = letters[-1] if letters else plain(answer)
    if found := _CHOICE.match(said):
        return found[1] == gold["letter"]
    return said.lower() == gold["letter"].lower() or bare(said) == bare(gold["text"])


YES_NO_QUERY = "{}\n\nEnd with a line `answer: yes` or `answer: no`."


def strategyqa(source: Source) -> Iterator[Question]:
    hub = Hub("ChilleD/StrategyQA", "test")
    for record in source.records("strategyqa_train.json", hub=hub):
        query = YES_NO_QUERY.format(record["question"])
        yield Question(source.benchmark, record["qid"], query, "yes" if record["answer"] else "no")


_YES_NO = re.compile(r"\b(yes|no|true|false)\b")
_MEANING = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}


def yes_no_right(gold: str, answer: str) -> bool:
    """The first yes or no of a stated answer, else the last of the text."""
    said = stated(answer)
    words = _YES_NO.findall((answer if said is None else said).lower())
    return bool(words) and _MEANING[words[0 if said is not None else -1]] == gold


MUSIQUE_QUERY = """\
{}

End with a line `answer: …` that holds the answer in as few words as possible."""


def musique(source: Source) -> Iterator[Question]:
    """With its paragraphs; what they do not answer is left out."""
    names = ("musique_ans_v1.0_dev.jsonl", "*_full.jsonl")
    for record in source.records(*names, hub=Hub("dgslibisey/MuSiQue", "validation")):
        if not record["answerable"]:
            continue
        paragraphs = "\n\n".join(
            f"{each['title']}: {each['paragraph_text']}" for each in record["paragraphs"]
        )
        asked = f"{paragraphs}\n\nBy these paragraphs: {record['question']}"
        gold = [record["answer"], *record["answer_aliases"]]
        yield Question(source.benchmark, record["id"], MUSIQUE_QUERY.format(asked), gold)


def musique_closed_book(source: Source) -> Iterator[Question]:
    for record in source.json("dev_questions_and_answers.json"):
        question = record["question"]
        query = MUSIQUE_QUERY.format(question)
        yield Question(source.benchmark, text_id(question), query, [record["answer"]])


def exact(gold: Sequence[str], answer: str) -> bool:
    """Equal to the answer or one of its aliases, as SQuAD compares."""
    said = bare(stated(answer) or plain(answer))
    return any(bare(each) == said for each in gold)


def f1(gold: Sequence[str], answer: str) -> float:
    """SQuAD's F1 of words with the answer or the alias that is nearest."""
    return max(map(partial(_f1, bare(stated(answer) or plain(answer)).split()), gold))


def _f1(said: list[str], gold: str) -> float:
    words = bare(gold).split()
    shared = (Counter(said) & Counter(words)).total()
    return 2 * shared / (len(said) + len(words)) if shared else float(said == words)


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def bare(text: str) -> str:
    """In lower case, without punctuation, articles and further white space, as SQuAD has it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
