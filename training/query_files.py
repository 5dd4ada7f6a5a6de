"""Graded queries of your own, as a file of JSON lines:

    {"query": "…", "gold": "…"}
    {"query": "…", "gold": "…", "plan": "s1: …\\ns2: … {s1}"}

An answer is right if it is `gold`, white space aside: so golds are short, such as names and
numbers. `plan`, in the text form, is the decomposer's reference of costs; a query without one is
its own single step. Of a query that occurs twice the first is kept.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from random import Random
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from r2graph.errors import ConfigError, PlanError, first_fault
from r2graph.lab.task import Task
from r2graph.plan import parse_text, single
from training.rl_data import tasks
from training.settings import Queries

Text = Annotated[str, Field(min_length=1)]


class GradedQuery(BaseModel):
    """A line of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    query: Text
    gold: Text
    plan: Text | None = None


def draw(source: Queries, seed: int, without: Collection[str] = frozenset()) -> list[Task]:
    """The tasks of the lab's families or of a file, in random order, but for some queries."""
    if isinstance(source, dict):
        return tasks(source, seed, without)
    found = [task for task in read(source) if task.query not in without]
    if not found:
        raise ConfigError(f"{source} has no query that is not held out: add some")
    Random(seed).shuffle(found)
    return found


def read(path: Path) -> list[Task]:
    """The tasks of a file, in its order; raises `ConfigError` that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path} cannot be read: it should hold queries as JSON lines") from None
    found: dict[str, Task] = {}
    for number, line in enumerate(lines, start=1):
        try:
            task = _task(GradedQuery.model_validate_json(line))
        except ValidationError as error:
            raise ConfigError(f"{path}, line {number}: {first_fault(error)}") from None
        except PlanError as error:
            raise ConfigError(f"{path}, line {number}: plan: {error}") from None
        found.setdefault(task.query, task)
    if not found:
        raise ConfigError(f"{path} is empty: it should hold queries as JSON lines")
    return list(found.values())


def _task(row: GradedQuery) -> Task:
    plan = single(row.query) if row.plan is None else parse_text(row.plan)
    return Task("file", row.query, row.gold, plan, outputs={}, kinds={})
