"""The settings of reinforcement learning, as a YAML file under `training/configs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from r2graph.errors import ConfigError, first_fault
from r2graph.pricing import Price
from training.rewards import LOWEST

Module = Literal["decomposer", "allocator"]
Count = Annotated[int, Field(gt=0)]
Queries = dict[Literal["scan", "arith", "geo"], Count] | Path
"""So many of each of the lab's families, or a file (`training/query_files.py`)."""


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
    lowest_cost_weight: Annotated[float, Field(gt=0, le=1)] = LOWEST
    """What cost weighs at quality level 10 in the allocator's reward; at level 1 it is 1."""
    accumulate: Count = 1
    """Gradient accumulation steps; divides prompts x generations."""
    save_every: Count = 50
    """Steps between two checkpoints: what an interruption costs at most."""
    vllm: Literal["off", "colocate", "server"] = "off"
    """Whether vLLM samples the completions, and where."""
    vllm_url: str = "http://127.0.0.1:8100"
    """Where the server is, if it is `server`."""
    vllm_cards: Count = 1
    """Cards of the server: those of the machine after the cards that train."""
    vllm_group_port: int = 51216
    """Where the server is sent new weights; of two runs on a machine each needs its own."""
    lora: Lora | None = None
    """`None`: all weights are trained."""

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.prompts * self.generations % self.accumulate:
            raise ValueError("`accumulate` must divide prompts x generations")
        return self

    def batch(self, processes: int = 1) -> int:
        """Completions that a process takes at once; raises `ConfigError` if they do not come out.

        The prompts of a step are dealt out whole: a group is never split between processes, for a
        plan is scored against the others of its query.
        """
        if self.prompts % processes:
            raise ConfigError(f"{self.prompts} prompts a step are not to be split by {processes}")
        share = self.prompts // processes * self.generations
        if share % self.accumulate:
            raise ConfigError(
                f"{share} completions a process are not to be split into {self.accumulate} parts: "
                "change `accumulate`, `prompts` or the number of processes"
            )
        return share // self.accumulate


class OutcomeGradient(BaseModel):
    """Exact policy gradient of the allocator over recorded outcomes (the lab's only)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queries: dict[Literal["scan", "arith", "geo"], Count]
    """Whose questions are asked, besides those about every fact."""
    steps: Count
    """Batches of 2,048 tokens."""
    learning_rate: Annotated[float, Field(gt=0)]
    """At its peak; warm-up and linear decay as in `training/pretrain.py`."""
    save_every: Count = 1_000
    """Steps between two checkpoints: what an interruption costs at most."""


class Base(BaseModel):
    """What a new router starts from: both of its modules are this model, to be fine-tuned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1)]
    """A hub id, or a directory."""
    price: Price
    """What either module charges; on the bill like a member of the pool."""


class Settings(BaseModel):
    """What is trained, on what, for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: str
    """A shipped pool's name, or a file."""
    base: Base | None = None
    """`None`: there is a router already, named on the command line."""
    sft: dict[Module, Path] = Field(default_factory=dict)
    """The rows on which the base is fine-tuned before reinforcement learning."""
    queries: Queries
    """What is trained on."""
    held_out: Queries
    """What rounds are compared on."""
    rounds: Count = 1
    """At most so many; each trains the decomposer, then the allocator."""
    decomposer: Phase | None = None
    """`None`: it stays as it is."""
    allocator: Phase | None = None
    outcome_gradient: OutcomeGradient | None = None
    """The allocator once more, last of a round; `None`: outcomes are not on record."""

    @model_validator(mode="after")
    def _check_base(self) -> Self:
        if self.base is not None and len(self.sft) < 2:
            raise ValueError("`base` needs `sft`, the rows of both modules")
        return self


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
