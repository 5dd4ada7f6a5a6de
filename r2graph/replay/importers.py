"""What others have recorded, and r2graph's own traces, as tables of outcomes."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from r2graph.errors import ConfigError, first_fault
from r2graph.replay.table import Floats, Replay, Rows
from r2graph.trace import Trace, TracedStep, read_traces

T = TypeVar("T")

WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
CHARACTERS_A_TOKEN = 4

_DATA = ConfigDict(extra="ignore", hide_input_in_errors=True)


def routellm_gsm8k(folder: Path) -> Replay:
    """`gsm8k_responses.csv` of RouteLLM (Ong et al., 2024; Apache-2.0), as it is or gzipped.

    A cost of 1 is a call of the strong model: the file has no tokens, and RouteLLM counts calls.
    """
    texts, scores = [], []
    for row in csv.DictReader(_lines(folder, "gsm8k_responses.csv")):
        right = [{"True": 1.0, "False": 0.0}.get(row.get(model) or "") for model in (WEAK, STRONG)]
        if not row.get("prompt") or None in right:
            raise ConfigError("gsm8k_responses.csv is not RouteLLM's table of answers")
        texts.append(row["prompt"])
        scores.append(right)
    costs = np.tile([0.0, 1.0], (len(texts), 1))
    return _table(texts, ["gsm8k"] * len(texts), [WEAK, STRONG], scores, costs)


class _Scored(BaseModel):
    model_config = _DATA

    question: Annotated[str, Field(min_length=1)]
    task: str
    scores: dict[str, Annotated[float, Field(ge=0, le=1)]]


class _Listed(BaseModel):
    model_config = _DATA

    input_price: Annotated[float, Field(ge=0)]


def llmrouter(folder: Path) -> Replay:
    """`scores.jsonl` and `prices_usd_per_mtok.json` of LLMRouter (U Lab, UIUC; MIT).

    Replies are not recorded, so that a cost is that of the question, at four characters a token.
    """
    rows = [_parsed(TypeAdapter(_Scored), line) for line in _lines(folder, "scores.jsonl")]
    listed = "\n".join(_lines(folder, "prices_usd_per_mtok.json"))
    prices = _parsed(TypeAdapter(dict[str, _Listed]), listed)
    models = sorted(prices, key=lambda model: prices[model].input_price)
    models = [model for model in models if rows and model in rows[0].scores]
    if any(row.scores.keys() != set(models) for row in rows):
        raise ConfigError("scores.jsonl does not have the same models, with prices, in each line")
    tokens = np.array([len(row.question) / CHARACTERS_A_TOKEN for row in rows])
    costs = np.outer(tokens, [prices[model].input_price / 1e6 for model in models])
    scores = [[row.scores[model] for model in models] for row in rows]
    return _table([row.question for row in rows], [row.task for row in rows], models, scores, costs)


def from_traces(paths: Iterable[Path]) -> Replay:
    """The steps of r2graph's own traces, as long as a check or a grader has spoken.

    A row is a step of a run. Attempts after the first are made because a weaker member has failed,
    which is more likely of a hard step: they count only for members that were never tried first.
    """
    steps = [(trace, step) for path in paths for trace in read_traces(path) for step in trace.steps]
    members = {name: None for trace, _ in steps for name in trace.members}
    models = list(members)
    first = {step.attempts[0].member for _, step in steps if step.attempts}
    scores = np.full((len(steps), len(models)), np.nan)
    costs = np.full_like(scores, np.nan)
    for row, (trace, step) in enumerate(steps):
        for at, attempt in enumerate(step.attempts):
            right = _right(trace, step, at)
            if right is not None and (at == 0 or attempt.member not in first):
                scores[row, models.index(attempt.member)] = right
                costs[row, models.index(attempt.member)] = float(Decimal(attempt.cost_usd))
    told = np.flatnonzero(~np.isnan(scores).all(axis=1))
    texts = [steps[row][1].text for row in told]
    questions = [steps[row][0].query for row in told]
    pools = [steps[row][0].pool for row in told]
    return _table(texts, pools, models, scores[told], costs[told], questions)


@dataclass(frozen=True)
class DrawnSteps:
    """Steps whose member was drawn, for `r2graph.replay.off_policy`."""

    texts: tuple[str, ...]
    models: tuple[str, ...]
    chosen: Rows
    """Which of the models each step was given to first."""
    propensities: Floats
    rewards: Floats
    """1 where the first attempt was right, else 0."""


def drawn_steps(paths: Iterable[Path]) -> DrawnSteps:
    """The steps of traces that have a propensity and whose first attempt was judged."""
    models: dict[str, int] = {}
    rows: list[tuple[str, int, float, float]] = []
    for trace in (trace for path in paths for trace in read_traces(path)):
        for name in trace.members:
            models.setdefault(name, len(models))
        for step in trace.steps:
            propensity, member = step.choice.propensity, step.choice.member
            # Another member may have stepped in for one that was down: that is no draw.
            drawn = step.attempts and step.attempts[0].member == member and propensity
            right = _right(trace, step, 0) if drawn else None
            if propensity and right is not None:
                rows.append((step.text, models[member], propensity, float(right)))
    if not rows:
        raise ConfigError("no step in the traces was drawn and judged: collect with exploration")
    texts, chosen, propensities, rewards = zip(*rows, strict=True)
    return DrawnSteps(
        texts, tuple(models), np.array(chosen), np.array(propensities), np.array(rewards)
    )


def _right(trace: Trace, step: TracedStep, at: int) -> bool | None:
    """Whether an attempt's output is right: the grader's word for the answer, else the check's."""
    last = at == len(step.attempts) - 1
    if trace.right is not None and len(trace.steps) == 1 and trace.rounds == 1 and last:
        return trace.right
    return step.attempts[at].ok


REPLAYS: Mapping[str, Callable[[Path], Replay]] = {
    "routellm-gsm8k": routellm_gsm8k,
    "llmrouter": llmrouter,
}


def load_replay(name: str, folder: Path) -> Replay:
    """Recorded outcomes that others have published, from a user's copy; raises `ConfigError`."""
    if name not in REPLAYS:
        raise ConfigError(f"there is no replay {name!r}: choose {' or '.join(REPLAYS)}")
    return REPLAYS[name](folder)


def _lines(folder: Path, name: str) -> Iterable[str]:
    for file, opener in ((folder / name, open), (folder / f"{name}.gz", gzip.open)):
        if file.is_file():
            with opener(file, "rt", encoding="utf-8", newline="") as lines:
                yield from lines
            return
    raise ConfigError(f"{folder} has neither {name} nor {name}.gz")


def _parsed(form: TypeAdapter[T], text: str) -> T:
    try:
        return form.validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"recorded outcomes that do not read: {first_fault(error)}") from None


def _table(
    texts: list[str],
    tasks: list[str],
    models: list[str],
    scores: Any,
    costs: Any,
    questions: list[str] | None = None,
) -> Replay:
    shape = (len(texts), len(models))
    return Replay(
        tuple(texts),
        tuple(questions or texts),
        tuple(tasks),
        tuple(models),
        np.array(scores, dtype=float).reshape(shape),
        np.array(costs, dtype=float).reshape(shape),
    )
