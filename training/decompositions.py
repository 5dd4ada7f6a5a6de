"""SFT data of real-size decomposers: decompositions that people wrote down, as plans.

    python -m training.decompositions --data DIR --sources strategyqa,gsm8k,musique --out FILE.jsonl

Reads DIR/strategyqa/*.json (MIT), DIR/gsm8k/*socratic.jsonl (MIT) and DIR/musique/*.jsonl
(CC BY 4.0: name its authors with what you train), each as its authors publish it. A prompt is what
the deployed decomposer sends: `--form text` trains checkpoints, `--form json` chat models. Of a
query that occurs twice the first is kept, and the split goes by the query's hash.

What makes no valid plan is dropped and counted; nothing is repaired. Never evaluate on a file that
was read here, even on the validation split: others' training and test files are not told apart.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from r2graph.decompose import CheckpointDecomposer, DecomposeContext, PromptedDecomposer
from r2graph.errors import PlanError
from r2graph.plan import Plan, parse_json, render_json, render_text
from r2graph.pool import ModelPool, ModelSpec
from r2graph.pricing import Price
from training.rows import row

Record = dict[str, Any]
Importer = Callable[[Record], Iterator[str]]

PEOPLE = frozenset(
    {"author", "cast member", "child", "composer", "creator", "director", "father", "mother"}
    | {"performer", "producer", "screenwriter", "sibling", "spouse"}
)
PHRASES = {  # relations that "What is the … of X?" does not suit
    "award received": "Which award did {} receive?",
    "capital of": "What is {} the capital of?",
    "contains administrative territorial entity": "Which administrative entity does {} contain?",
    "crosses": "What does {} cross?",
    "educated at": "Where was {} educated?",
    "located in the administrative territorial entity": "Which administrative entity is {} in?",
    "located on terrain feature": "Which terrain feature is {} located on?",
    "member of": "What is {} a member of?",
    "member of political party": "Which political party is {} a member of?",
    "member of sports team": "Which sports team is {} a member of?",
    "position held": "Which position did {} hold?",
    "shares border with": "What does {} share a border with?",
}
PREPOSITION = re.compile(r".* (after|at|by|from|in|of|on|to|with)")


def strategyqa(record: Record) -> Iterator[str]:
    """Its steps refer to earlier ones as `#1`."""
    yield from map(referring, record["decomposition"])


def musique(record: Record) -> Iterator[str]:
    """Its steps refer to earlier ones as `#1`; some of them are relations: `#1 >> spouse`."""
    for step in record["question_decomposition"]:
        yield referring(asked(step["question"]))


def gsm8k(record: Record) -> Iterator[str]:
    """Its sub-questions, each after the problem and the earlier ones with their results.

    They name no reference and rest on the problem's numbers, but a step is shown its own text
    alone. So a text holds what the person who wrote the sub-question had before them: that makes
    plans long, but needs no guess about which number came from where.
    """
    *lines, _ = record["answer"].split("\n")  # the last one is `#### ANSWER`
    if any(" ** " not in line for line in lines):
        raise PlanError("a line has no sub-question")
    questions = [line.split(" ** ")[0] for line in lines]
    if len(set(map(plain, questions))) < len(questions):  # one is there for a step it does not name
        raise PlanError("a sub-question is asked twice")
    text = f"Problem: {record['question']}"
    for number, question in enumerate(questions, start=1):
        text += f" Question: {question}"
        yield text
        text += f" Answer: {{s{number}}}"


def referring(text: str) -> str:
    """The text with `#1` as `{s1}`."""
    if re.search(r"#(?!\d)", text):
        raise PlanError("a # names no step")
    return re.sub(r"#(\d+)", r"{s\1}", text)


def asked(text: str) -> str:
    """MuSiQue's `SUBJECT >> RELATION` as a question; questions stay as they are."""
    subject, relates, relation = (part.strip() for part in text.partition(">>"))
    if not relates:
        return text
    if phrase := PHRASES.get(relation):
        return phrase.format(subject)
    if PREPOSITION.fullmatch(relation):
        return f"What is {subject} {relation}?"
    return f"{'Who' if relation in PEOPLE else 'What'} is the {relation} of {subject}?"


SOURCES: dict[str, tuple[str, Importer]] = {
    "strategyqa": ("strategyqa/*.json", strategyqa),
    "gsm8k": ("gsm8k/*socratic.jsonl", gsm8k),
    "musique": ("musique/*.jsonl", musique),
}
REASONS = {  # what a `PlanError` says of a plan, as it is counted
    "at least 1": "no steps",
    "at most 12": "more than 12 steps",
    "comes later": "a reference to a later step",
    "cyclic": "cyclic",
    "pattern": "a reference to an unknown step",  # to #0 or #100
    "unknown step": "a reference to an unknown step",
}


@dataclass(frozen=True)
class Imported:
    """A record that makes a plan."""

    query: str
    plan: Plan


@dataclass(frozen=True)
class Dropped:
    """A record that does not."""

    reason: str


def imported(
    records: Iterable[Record], importer: Importer, seen: set[str]
) -> Iterator[Imported | Dropped]:
    """What each record makes; `seen` holds the queries so far and is added to.

    The last step's output is the answer: so it is in every source.
    """
    for record in records:
        try:
            query, plan = record["question"].strip(), plan_of(importer(record))
        except KeyError as error:
            yield Dropped(f"no {error.args[0]}")
        except PlanError as error:
            said = str(error)
            yield Dropped(next((why for sign, why in REASONS.items() if sign in said), said))
        else:
            yield Dropped("a query seen before") if plain(query) in seen else Imported(query, plan)
            seen.add(plain(query))


def plan_of(texts: Iterable[str]) -> Plan:
    # White space is made plain, for the text form holds a step on one line.
    steps = [{"id": f"s{n}", "text": " ".join(text.split())} for n, text in enumerate(texts, 1)]
    return parse_json({"subtasks": steps})


def plain(text: str) -> str:
    return " ".join(text.casefold().split())


def split_of(query: str) -> str:
    """One query in twenty is for validation, by hash, whatever its case and white space."""
    number = int.from_bytes(sha256(plain(query).encode()).digest()[:4])
    return "validation" if number % 20 == 0 else "train"


# Any model: a decomposer's messages do not depend on it.
MODEL = ModelSpec(name="any", model="local:any", price=Price(input_per_mtok=0, output_per_mtok=0))
CONTEXT = DecomposeContext(pool=ModelPool(name="any", members=(MODEL,)))
DECOMPOSERS = {
    "text": CheckpointDecomposer(MODEL),
    "json": PromptedDecomposer(single_below=0),
}


def row_of(query: str, plan: Plan, form: str) -> str:
    """The deployed decomposer's own prompt, and the reply that makes it return `plan`."""
    call = next(DECOMPOSERS[form].decompose(query, CONTEXT))
    return row(call.messages, render_text(plan) if form == "text" else as_asked(plan))


def as_asked(plan: Plan) -> str:
    """The JSON form as `PLAN_INSTRUCTIONS` ask for it: dependencies are the references."""
    rendered = render_json(plan)
    for step in rendered["subtasks"]:
        del step["depends_on"]
    return json.dumps(rendered, ensure_ascii=False)


def records_of(data: Path, pattern: str) -> Iterator[Record]:
    """The records of the source's files, in order of their names."""
    if not (paths := sorted(data.glob(pattern))):
        raise SystemExit(f"{data} holds no {pattern}")
    for path in paths:
        text = path.read_text(encoding="utf-8")
        # Not `splitlines`: JSON may hold U+2028 as it is.
        lines = filter(None, text.split("\n"))
        yield from json.loads(text) if path.suffix == ".json" else map(json.loads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--form", choices=DECOMPOSERS, default="text")
    parser.add_argument("--split", choices=("train", "validation", "all"), default="train")
    arguments = parser.parse_args()
    names = arguments.sources.split(",")
    if unknown := next((name for name in names if name not in SOURCES), None):
        parser.error(f"there is no source {unknown!r}: name some of {', '.join(SOURCES)}")
    write(arguments.data, names, arguments.out, arguments.form, arguments.split)


def write(data: Path, names: Iterable[str], out: Path, form: str, split: str) -> None:
    """The rows of one split (or `all`) of the named sources, in their order."""
    seen: set[str] = set()
    lines = []
    for name in names:
        pattern, importer = SOURCES[name]
        found = list(imported(records_of(data, pattern), importer, seen))
        report(name, found)
        lines += [
            row_of(item.query, item.plan, form)
            for item in found
            if isinstance(item, Imported) and split in ("all", split_of(item.query))
        ]
    out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def report(name: str, found: list[Imported | Dropped]) -> None:
    """One line on standard output; every dropped record on standard error."""
    dropped: Counter[str] = Counter()
    for number, item in enumerate(found, start=1):
        if isinstance(item, Dropped):
            dropped[item.reason] += 1
            print(f"{name}: record {number} dropped: {item.reason}", file=sys.stderr)
    steps = [len(item.plan.subtasks) for item in found if isinstance(item, Imported)]
    reasons = "".join(f", {count} dropped: {reason}" for reason, count in dropped.most_common())
    mean = f", {sum(steps) / len(steps):.2f} steps a plan" if steps else ""
    print(f"{name}: {len(found)} records, {len(steps)} kept{reasons}{mean}")


if __name__ == "__main__":
    main()
