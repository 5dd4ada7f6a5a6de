"""Whether a file holds rows that a module can be fine-tuned on: TRL's prompt/completion form, with
plans or slots that read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from r2graph.allocate import parse_slots
from r2graph.errors import AllocationError, ConfigError, PlanError, first_fault
from r2graph.plan import parse_text
from training.settings import Module


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(min_length=1)]


class SftRow(BaseModel):
    """A line of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    prompt: Annotated[list[Message], Field(min_length=1)]
    completion: Annotated[list[Message], Field(min_length=1, max_length=1)]

    @property
    def asked(self) -> str:
        return self.prompt[-1].content

    @property
    def answered(self) -> str:
        return self.completion[0].content


def check(module: Module, path: Path) -> list[SftRow]:
    """The rows of a file; raises `ConfigError` that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path} cannot be read: it should hold rows as JSON lines") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = SftRow.model_validate_json(line)
            _parse(module, row)
        except ValidationError as error:
            raise ConfigError(f"{path}, line {number}: {first_fault(error)}") from None
        except (PlanError, AllocationError) as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
        rows.append(row)
    if not rows:
        raise ConfigError(f"{path} is empty: it should hold rows as JSON lines")
    return rows


def _parse(module: Module, row: SftRow) -> None:
    if module == "decomposer":
        parse_text(row.answered)
    else:
        parse_slots(row.answered, row.asked.count("\n"))  # a line of the level, one of each step
