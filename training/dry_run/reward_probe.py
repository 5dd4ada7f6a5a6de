"""Whether a module's reward is wired: what it gives for a right, a wrong and an invalid completion
of a made-up query, on a pool of fakes.

The fakes have the names, prices and order of the real members. The cheapest cannot multiply, the
others know both steps of `2 * 3 + 1`; the checks are those of form.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from inspect import signature
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult

from r2graph import ModelPool
from r2graph.allocate import StrongestAllocator, slots_text
from r2graph.decompose import SingleDecomposer
from r2graph.errors import ConfigError
from r2graph.lab.task import Task
from r2graph.plan import parse_text
from r2graph.pool import N_SLOTS
from r2graph.pricing import Price
from r2graph.router import Prices, Router, RouterCard
from r2graph.turn import STEP_INSTRUCTION
from r2graph.verify import FormatVerifier
from training.graph_rewards import AllocatorReward, DecomposerReward
from training.grpo import reward
from training.planned import Planned
from training.rewards import INVALID
from training.rl_data import Row, allocator_rows, decomposer_rows
from training.rollouts import Rollouts
from training.settings import Module

TASK = Task(
    "arith",
    "2 * 3 + 1",
    "7",
    parse_text("s1: 2 * 3\ns2: {s1} + 1"),
    outputs={"s1": "6", "s2": "7"},
    kinds={"s1": "* 1x1", "s2": "+- 1"},
)
KNOWS = {"2 * 3": "6", "6 + 1": "7"}
# By module: what is right, what is wrong, and what is neither.
COMPLETIONS: dict[Module, tuple[str, str, str]] = {
    "decomposer": ("s1: 2 * 3\ns2: {s1} + 1", "s1: 6 + 1\ns2: 2 * 3", "the answer is 7"),
    "allocator": (slots_text([(N_SLOTS, None), (1, None)]), slots_text([(1, None)] * 2), "m1"),
}
ROLES = ("right", "wrong", "invalid")
REWARDS: dict[Module, type] = {"decomposer": DecomposerReward, "allocator": AllocatorReward}
GIVEN = {"self", "prompts", "completions", "completion_ids"}  # what no column holds


class Knows(BaseChatModel):
    """Answers what it knows by heart, and `0` to all else; a token is a word."""

    answers: dict[str, str]

    @property
    def _llm_type(self) -> str:
        return "knows"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> ChatResult:
        asked = str(messages[-1].text)
        sent = len(asked.split())
        usage = UsageMetadata(input_tokens=sent, output_tokens=1, total_tokens=sent + 1)
        known = self.answers.get(asked.removesuffix(STEP_INSTRUCTION), "0")
        message = AIMessage(known, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


def fakes(pool: ModelPool) -> ModelPool:
    """The pool with fakes for its members."""
    if len(pool) < 2:
        raise ConfigError(f"pool {pool.name!r} has one member: there is nothing to choose")
    weak = {"6 + 1": "7"}
    members = tuple(
        spec.model_copy(update={"model": Knows(answers=KNOWS if rank else weak)})
        for rank, spec in enumerate(pool.members)
    )
    return pool.model_copy(update={"members": members})


def fake_router(pool: ModelPool) -> Router:
    """A router that any pool admits; what a completion leaves open goes to the strongest member."""
    free = Price(input_per_mtok=Decimal(0), output_per_mtok=Decimal(0))
    card = RouterCard(
        name="fake",
        language=pool.language,
        base="none",
        trained_with="nothing",
        command="none",
        seed=0,
        data_sha256="0" * 64,
        prices=Prices(decomposer=free, allocator=free),
    )
    return Router(SingleDecomposer(), StrongestAllocator(), FormatVerifier(), card)


def rewards(module: Module, pool: ModelPool) -> dict[str, float]:
    """What the reward of a module gives, by role; raises `ConfigError` unless right beats wrong
    beats invalid.
    """
    faked = fakes(pool)
    router = fake_router(faked)
    function = reward(module, router, Rollouts(faked, router, None))
    row = made_up_row(module)
    check_columns(module, row)
    completions = COMPLETIONS[module]
    given = asyncio.run(
        function(
            prompts=[row["prompt"]] * len(completions),
            completions=[[{"role": "assistant", "content": text}] for text in completions],
            completion_ids=[text.split() for text in completions],
            **{name: [row[name]] * len(completions) for name in row if name != "prompt"},
        )
    )
    if None in given or not given[0] > given[1] > given[2] == INVALID:
        raise ConfigError(
            f"the reward of the {module} gives {given} for right, wrong and invalid: "
            "check `training/rewards.py`"
        )
    return dict(zip(ROLES, given, strict=True))


def made_up_row(module: Module) -> Row:
    """The prompt of the made-up query, with its columns, as a module is trained on it."""
    if module == "decomposer":
        return decomposer_rows([TASK])[0]
    steps = tuple((prompt, output) for _, prompt, output in TASK.steps())
    rows = allocator_rows([Planned(TASK, TASK.plan, steps)], seed=0)
    return next(row for row in rows if parse_text(row["plan"]) == TASK.plan)


def check_columns(module: Module, row: Row) -> None:
    """Raise `ConfigError` if a column that the reward of a module reads is not in a row."""
    read = {
        name
        for name, parameter in signature(REWARDS[module].__call__).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    if missing := sorted(read - GIVEN - row.keys()):
        raise ConfigError(f"the data of the {module} has no column {', '.join(missing)}")
