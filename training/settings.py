"""The settings of reinforcement learning, as a YAML file under `training/configs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from r2graph.errors import ConfigError, first_fault

Module = Literal["decomposer", "allocator"]
Count = Annotated[int, Field(gt=0)]


class Lora(BaseModel):
    """Low-rank adapters in place of full fine-tuning (PEFT)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Count = 16
    alpha: Count = 32


class Phase(BaseModel):
    """GRPO of one module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Count
    """Optimiser steps a round."""
    prompts: Count
    """Prompts a step."""
    generations: Annotated[int, Field(ge=2)]
    """Completions of a prompt: the group of GRPO."""
    max_completion_tokens: Count
    """Longer completions are cut off, and then rarely valid."""
    learning_rate: Annotated[float, Field(gt=0)]
    """At its peak, after ten steps; then it falls linearly to zero."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL divergence from the parent."""
    entropy: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the completions that are sampled."""
    scale_rewards: Literal["group", "batch", "none"] = "none"
    """What advantages are divided by the standard deviation of."""
    loss: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = "dapo"
    """TRL's `loss_type`."""
    accumulate: Count = 1
    """Gradient accumulation steps; divides prompts x generations."""
    vllm: Literal["off", "colocate", "server"] = "off"
    """Whether vLLM samples the completions, and where."""
    lora: Lora | None = None
    """`None`: all weights are trained."""

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.prompts * self.generations % self.accumulate:
            raise ValueError("`accumulate` must divide prompts x generations")
        return self

    @property
    def batch(self) -> int:
        """Completions that a device takes at once."""
        return self.prompts * self.generations // self.accumulate


class Settings(BaseModel):
    """What is trained, on what, for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: str
    """A shipped pool's name, or a file."""
    queries: dict[Literal["scan", "arith", "geo"], Count]
    """Training queries by family."""
    held_out: dict[Literal["scan", "arith", "geo"], Count]
    """Queries on which rounds are compared."""
    rounds: Count = 1
    """At most so many; each trains the decomposer, then the allocator."""
    decomposer: Phase | None = None
    """`None`: it stays as it is."""
    allocator: Phase | None = None


def load_settings(path: Path) -> Settings:
    """Read a settings file; raises `ConfigError` that names the entry."""
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text()))
    except OSError:
        raise ConfigError(f"{path} cannot be read") from None
    except yaml.YAMLError:
        raise ConfigError(f"{path} is not YAML") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_fault(error)}") from None
