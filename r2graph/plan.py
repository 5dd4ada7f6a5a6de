"""The plan language: a query as at most twelve subtasks, each using the outputs of earlier ones.

    s1: walk around right thrice
    s2: jump opposite left twice
    answer: {s1} {s2}

One subtask a line. `{sK}` stands for the output of step K and makes a dependency;
`s3 (after s1, s2): …` names more of them. `answer:` says how the answer is put together; without it
the last step's output is the answer. The JSON form is
`{"subtasks": [{"id", "text", "depends_on"}], "answer"}`; in it a text may hold line breaks, which
the text form cannot say.

Parsing is strict and quick: any input gives a plan or a `PlanError`, and sizes are checked before
anything is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from typing import Annotated, Any, Self
from unicodedata import normalize

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from r2graph.errors import PlanError

MAX_SUBTASKS = 12
MAX_PLAN_CHARS = 64_000  # of all texts together
MAX_SUBTASK_CHARS = MAX_PLAN_CHARS  # for a long query may be the one step of its plan
MAX_PLAN_BYTES = 2**20  # no valid plan is longer in any form, even with every character escaped
MAX_REFERENCES = 64  # in one text: filling them in must not blow a prompt up
MAX_FILLED_CHARS = 2**20  # of a text with outputs filled in, which hold outputs in their turn
MAX_FAULTS = 100  # listing the faults of a bad plan costs more than finding them

_REFERENCE = re.compile(r"\{(s[0-9]+)\}")
_LINE = re.compile(r"(?P<id>s[0-9]+)(?: \(after (?P<after>s[0-9]+(?:, s[0-9]+)*)\))?: (?P<text>.+)")
_ANSWER = "answer: "
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # never fails, so it is linear
_NUMBER = re.compile(r"[-+]?[0-9]+(?:[.,][0-9]+)*")
_TAG = re.compile(r"<[^\w<]*/|<[^\W\d]")  # an end or a beginning, however it is spaced

StepId = Annotated[str, Field(pattern=r"^s[1-9][0-9]?$")]
Text = Annotated[str, Field(min_length=1, max_length=MAX_SUBTASK_CHARS)]


def references(text: str) -> list[str]:
    """The step ids that `text` refers to, each once, in order of first use."""
    return list(dict.fromkeys(_REFERENCE.findall(text)))


def fence(tag: str, text: str) -> str:
    """`text` between tags that do not occur in it: what is inside cannot say that it is over.

    `<s1>Oslo</s1>`; where the text has tags of its own, a digest of it makes ours another:
    `<s1-9f86d081>`. The same text always has the same fence, so a prompt has one cache key.
    """
    digest = ""
    while digest in text if digest else _TAG.search(normalize("NFKD", text)):
        digest = "-" + sha256((digest + text).encode(errors="replace")).hexdigest()[:8]
    space = "\n" if "\n" in text else ""
    return f"<{tag}{digest}>{space}{text}{space}</{tag}{digest}>"


def fill(template: str, outputs: Mapping[str, str]) -> str:
    """Replace each reference in `template` by that step's output.

    A single pass of plain substitution: an output that itself holds `{s1}` is a value and is never
    expanded. Raises `PlanError` if an output is missing, or if the outputs, which repeat what was
    filled in for them, have grown too long: to cut one off unseen would falsify the answer.
    """
    used = _REFERENCE.findall(template)
    if missing := next((step for step in used if step not in outputs), None):
        raise PlanError(f"step {missing} has no output to fill in: run it first")
    if len(template) + sum(len(outputs[step]) for step in used) > MAX_FILLED_CHARS:
        raise PlanError(
            f"a text has more than {MAX_FILLED_CHARS} characters once outputs are filled in: "
            "lower `max_output_tokens`"
        )
    return _REFERENCE.sub(lambda match: outputs[match[1]], template)


def fenced(outputs: Mapping[str, str]) -> dict[str, str]:
    """The outputs of steps, each in a fence; a number is no instruction and stands bare."""
    return {
        step: output if _NUMBER.fullmatch(output) else fence(step, output)
        for step, output in outputs.items()
    }


class Subtask(BaseModel):
    """One step. `depends_on` always holds the references of `text` too, in plan order."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: StepId
    text: Text
    depends_on: Annotated[
        tuple[StepId, ...], Field(max_length=MAX_SUBTASKS, validate_default=True, fail_fast=True)
    ] = ()

    @field_validator("text")
    @classmethod
    def _trim(cls, text: str) -> str:
        return _trimmed(text)

    @field_validator("depends_on")
    @classmethod
    def _add_references(cls, named: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        every = {*named, *references(info.data.get("text", ""))}
        return tuple(sorted(every, key=lambda step: (len(step), step)))


class Plan(BaseModel):
    """Subtasks `s1` … `sK` in an order in which they can run, and a template of the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    subtasks: Annotated[
        tuple[Subtask, ...], Field(min_length=1, max_length=MAX_SUBTASKS, fail_fast=True)
    ]
    answer: Text | None = None

    @field_validator("answer")
    @classmethod
    def _trim(cls, answer: str | None) -> str | None:
        return answer if answer is None else _trimmed(answer)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problem := next(_problems(self), None):
            raise ValueError(problem)
        return self


def _trimmed(text: str) -> str:
    if not (text := text.strip()):
        raise ValueError("is blank")
    if len(_REFERENCE.findall(text)) > MAX_REFERENCES:
        raise ValueError(f"has more than {MAX_REFERENCES} references")
    return text


def _problems(plan: Plan) -> Iterator[str]:
    """What is wrong with a plan whose parts are right, gravest first."""
    ids = [step.id for step in plan.subtasks]
    if ids != [f"s{number}" for number in range(1, len(ids) + 1)]:
        yield f"the {len(ids)} ids must be s1 to s{len(ids)}, in order"
    if len(plan.answer or "") + sum(len(step.text) for step in plan.subtasks) > MAX_PLAN_CHARS:
        yield f"its texts together have more than {MAX_PLAN_CHARS} characters"
    for step in plan.subtasks:
        for needed in step.depends_on:
            if needed not in ids:
                yield f"{step.id} depends on an unknown step {needed[:4]}"
    try:
        TopologicalSorter({step.id: step.depends_on for step in plan.subtasks}).prepare()
    except CycleError as error:
        yield "it is cyclic: " + " -> ".join(reversed(error.args[1]))
    for number, step in enumerate(plan.subtasks):
        if late := next((needed for needed in step.depends_on if needed in ids[number:]), None):
            yield f"{step.id} depends on {late}, which comes later"
    if plan.answer is not None:
        used = references(plan.answer)
        if unknown := next((step for step in used if step not in ids), None):
            yield f"the answer refers to an unknown step {unknown[:4]}"
        if (
            not used
        ):  # else the planner would answer by itself, and the steps would be paid for nothing
            yield "the answer refers to no step"


def single(text: str) -> Plan:
    """The plan of one step that is the whole of `text`."""
    return _validated({"subtasks": [{"id": "s1", "text": text}]})


def parse_text(text: str | bytes) -> Plan:
    """Read the text form; only white space around the whole is ignored."""
    lines = _decoded(text).strip().splitlines()
    if len(lines) > MAX_SUBTASKS + 1:
        raise PlanError(f"the plan has more than {MAX_SUBTASKS} subtasks")
    answer = None
    if lines and lines[-1].startswith(_ANSWER):
        answer = lines.pop().removeprefix(_ANSWER)
    subtasks = []
    for number, line in enumerate(lines, start=1):
        if not (match := _LINE.fullmatch(line)):
            raise PlanError(f"line {number} of the plan is not of the form `s{number}: text`")
        named = match["after"].split(", ") if match["after"] else []
        subtasks.append({"id": match["id"], "text": match["text"], "depends_on": named})
    return _validated({"subtasks": subtasks, "answer": answer})


def render_text(plan: Plan) -> str:
    """The text form, such that `parse_text(render_text(plan)) == plan`.

    Raises `PlanError` if a text has line breaks.
    """
    lines = []
    for step in plan.subtasks:
        named = [needed for needed in step.depends_on if needed not in references(step.text)]
        after = f" (after {', '.join(named)})" if named else ""
        lines.append(f"{step.id}{after}: {step.text}")
    if plan.answer is not None:
        lines.append(_ANSWER + plan.answer)
    text = "\n".join(lines)
    if len(text.splitlines()) != len(lines):
        raise PlanError(
            "the text form holds one line a subtask: render a plan with line breaks as JSON"
        )
    return text


def parse_json(source: object) -> Plan:
    """Read the JSON form: a decoded object, or JSON as text or UTF-8 bytes."""
    if isinstance(source, str | bytes):
        text = _decoded(source)
        bare = _STRING.sub("", text)  # for texts may hold brackets
        if bare.count("[") + bare.count("{") > MAX_FAULTS:  # each costs more than it looks
            raise PlanError("the plan has more lists and objects than a plan has")
        try:
            source = json.loads(text, object_pairs_hook=_object)
        except PlanError:
            raise
        except (ValueError, RecursionError):
            raise PlanError("the plan is not JSON") from None
    return _validated(source)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object with each key once: of two values, readers would differ on which one counts."""
    if len(pairs) > MAX_FAULTS or len(found := dict(pairs)) < len(pairs):
        raise PlanError("an object of the plan has a key twice, or too many keys")
    return found


def render_json(plan: Plan) -> dict[str, Any]:
    """The JSON form as plain lists, dicts and strings; `parse_json` is its inverse."""
    return plan.model_dump(mode="json")


def _decoded(source: str | bytes) -> str:
    """The input as text, its size bounded first."""
    if len(source) > MAX_PLAN_BYTES:
        raise PlanError(f"the plan has more than {MAX_PLAN_BYTES} bytes")
    if isinstance(source, str):
        return source
    try:
        return source.decode()
    except UnicodeDecodeError:
        raise PlanError("the plan is not UTF-8") from None


def _validated(data: object) -> Plan:
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        raise PlanError(f"the plan is not valid: {_reason(error)}") from None


def _reason(error: ValidationError) -> str:
    """The first problem in words that hold nothing of the input but step ids and field names."""
    if error.error_count() > MAX_FAULTS:
        return f"it has more than {MAX_FAULTS} faults"
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "extra_forbidden":
        return "it has an unknown key"
    place = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return f"{place} {message}" if place else message
