"""Traces: runs of a graph as data, to train routers on, to calibrate with, to look at later.

    from r2graph.trace import read_traces, trace, write_traces

    write_traces("runs.jsonl", [trace(graph.invoke(query)) for query in queries])

needs no checkpointer; `r2graph trace export` reads runs that one has kept. A file holds one trace a
line, as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from r2graph.allocate import QUALITY_LEVELS
from r2graph.errors import ConfigError, PlanError, TraceFileError
from r2graph.plan import Plan, StepId, Subtask, parse_json
from r2graph.pricing import Money
from r2graph.state import R2Output, StopReason

MAX_LINE_BYTES = 2**24

_DATA = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

Probability = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[int, Field(ge=0)]


class TracedChoice(BaseModel):
    """The member that a step was first given to, and why."""

    model_config = _DATA

    member: str
    reason: str
    slot: int | None
    probabilities: dict[str, Probability] | None
    """Of the members of the pool."""
    propensity: Probability | None
    """With which the member was drawn; `None` where nothing was drawn."""
    check: Annotated[int, Field(ge=1, le=QUALITY_LEVELS)] | None = None
    """The quality level of the step's checks; `None`: the run's."""


class TracedAttempt(BaseModel):
    """One try of a step, and its verdict: `ok` is `None` where the check could not say."""

    model_config = _DATA

    member: str
    output: str | None
    """`None` if the call failed."""
    ok: bool | None
    reason: str
    score: float | None
    input_tokens: Tokens
    output_tokens: Tokens
    cost_usd: Money
    mean_logprob: float | None
    seconds: Annotated[float, Field(ge=0)]


class TracedStep(BaseModel):
    """A step of the last plan; one that a limit prevented has no attempts."""

    model_config = _DATA

    id: StepId
    text: str
    prompt: str
    """The text with its references filled in."""
    depends_on: tuple[StepId, ...]
    choice: TracedChoice
    attempts: tuple[TracedAttempt, ...]
    output: str | None


class Trace(BaseModel):
    """One run. Of a run of several rounds the costs are those of all, the steps of the last."""

    model_config = _DATA

    schema_version: Literal[1] = 1
    run_id: str
    query: str
    pool: str
    members: tuple[str, ...]
    """Of the pool, in order of capability."""
    quality: Probability
    router: str | None
    plan: Plan | None
    """`None` if a limit ended the run before there was one."""
    rounds: Annotated[int, Field(ge=0)]
    steps: tuple[TracedStep, ...]
    answer: str
    stop_reason: StopReason
    cost_usd: Money
    router_cost_usd: Money
    verifier_cost_usd: Money
    counterfactual_usd: Money
    right: bool | None = None
    """Whether the answer is right; `None`: nobody has said."""


_RESULT: TypeAdapter[Any] = TypeAdapter(R2Output)
_MODELS = (Trace, TracedStep, TracedChoice, TracedAttempt, Plan, Subtask)
_FIELDS = {*R2Output.__annotations__, *(name for model in _MODELS for name in model.model_fields)}


def trace(result: Mapping[str, Any], *, right: bool | None = None) -> Trace:
    """The trace of a finished run, from a graph's result or its state.

    Raises `ConfigError` for anything else.
    """
    try:
        return _traced(_RESULT.validate_python(result), right)
    except ValidationError as error:
        raise ConfigError(f"this is not the result of a finished run: {_reason(error)}") from None
    except PlanError as error:
        raise ConfigError(f"this is not the result of a finished run: {error}") from None


def _traced(result: dict[str, Any], right: bool | None) -> Trace:
    plan = parse_json(result["plan"]) if result["plan"].get("subtasks") else None
    needs = {step.id: step.depends_on for step in plan.subtasks} if plan else {}
    choices = {
        name: {"propensity": None} | {key: chosen[key] for key in chosen if key != "final"}
        for name, chosen in result["allocation"].items()
    }
    steps = [
        {key: step[key] for key in ("id", "text", "prompt", "attempts", "output")}
        | {"depends_on": needs.get(name), "choice": choices.get(name)}
        for name, step in result["steps"].items()
    ]
    amounts = ("cost_usd", "router_cost_usd", "verifier_cost_usd", "counterfactual_usd")
    return Trace.model_validate(
        {key: result[key] for key in ("answer", "stop_reason", *amounts)}
        | result["run"]
        | {"plan": plan, "steps": steps, "right": right}
    )


def to_line(trace: Trace) -> bytes:
    """A line of a file of traces."""
    return trace.model_dump_json().encode() + b"\n"


def write_traces(path: str | Path, traces: Iterable[Trace]) -> int:
    """Write a file of traces, in the place of any that is there; returns their number.

    The old file stays until all traces are written, so that what fails loses nothing.
    """
    path = Path(path)
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            written = sum(bool(file.write(to_line(each))) for each in traces)
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).replace(path)
    return written


def read_traces(path: str | Path) -> Iterator[Trace]:
    """The traces of a file, one by one; raises `TraceFileError` at the first line that is none."""
    try:
        with Path(path).open("rb") as file:
            lines = iter(lambda: file.readline(MAX_LINE_BYTES + 1), b"")
            for number, line in enumerate(lines, 1):
                yield _read(line, f"line {number} of {path}")
    except OSError:
        raise TraceFileError(f"{path} is not a file of traces that can be read") from None


def _read(line: bytes, place: str) -> Trace:
    if len(line) > MAX_LINE_BYTES:
        raise TraceFileError(f"{place} has more than {MAX_LINE_BYTES} bytes")
    try:
        return Trace.model_validate_json(line, strict=True)
    except ValidationError as error:
        raise TraceFileError(f"{place} is not a trace: {_reason(error)}") from None


def _reason(error: ValidationError) -> str:
    """The first problem in words that hold nothing of the input but names of fields."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "extra_forbidden":
        return "it has an unknown key"
    known = [part if isinstance(part, int) or part in _FIELDS else "…" for part in first["loc"]]
    return " ".join([".".join(map(str, known)), first["msg"]]).strip()
