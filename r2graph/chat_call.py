"""A call of `ChatR2`: the settings that hold for it, what is bound to it, and its messages."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from pydantic import BaseModel, ConfigDict, Field, InstanceOf

from r2graph.errors import QueryError
from r2graph.limits import Limits
from r2graph.pool import ModelPool
from r2graph.state import RunContext
from r2graph.whole import Bound


class Settings(BaseModel):
    """What is set for all calls of a `ChatR2`, and may be given again with one of them."""

    model: InstanceOf[ModelPool] | str | Path
    """The pool: one that r2graph ships (`lab`, `openai`, …), the path of a file, or an object."""
    quality: Annotated[float, Field(ge=0, le=1)] = 0.9
    """How sure each step should be."""
    budget_usd: Annotated[Decimal, Field(ge=0, allow_inf_nan=False)] | None = None
    """Dollars that one call must not pass."""
    limits: Limits | None = None
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    """That a member may generate at a time: LangChain's name for `limits.max_output_tokens`."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds for one call with all its steps: LangChain's name for `limits.deadline_s`."""
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    """The answer ends before the first of these."""


class Call(Settings, Bound):
    """One call: the settings that hold for it, and what is bound."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @property
    def context(self) -> RunContext:
        """The settings of the graph's run."""
        limits = {} if self.limits is None else self.limits.model_dump(exclude_unset=True)
        if self.max_tokens is not None:
            limits["max_output_tokens"] = self.max_tokens
        if self.timeout is not None:
            limits["deadline_s"] = self.timeout
        return RunContext(quality=self.quality, budget_usd=self.budget_usd, limits=Limits(**limits))


def read(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Copies of the messages, without ids: the graph gives each its own, and merges like ones.

    Raises `QueryError` for what no budget can count.
    """
    for message in messages:
        blocks = message.content if isinstance(message, HumanMessage | ToolMessage) else ""
        if any(isinstance(block, dict) and block.get("type") != "text" for block in blocks):
            raise QueryError("ChatR2 reads text only: leave images, sound and files out")
    return [message.model_copy(update={"id": None}) for message in messages]


def is_whole(bound: Bound, messages: Sequence[BaseMessage]) -> bool:
    """Whether a call is routed whole: what goes on after a tool's result has no query to split."""
    if bound.tools or bound.output_schema is not None:
        return True
    return bool(messages) and isinstance(messages[-1], ToolMessage)
