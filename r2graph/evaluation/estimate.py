"""What an evaluation would cost, before anything is spent: the methods run on stand-ins.

A stand-in has a member's name and price, and answers any prompt without a model. Two kinds of them:

expected    a reply has 256 tokens, one token is four characters, a plan has three steps, and every
            check is passed at the first attempt
worst       a reply has as many tokens as a call may generate, a prompt as many as it has bytes, a
            plan has twelve steps, the dearest member is chosen, and no check is passed

Expected is the mean of up to eight queries, in equal distances; worst is the dearest of these and
the longest, by either kind, for a longer text may lead to a cheaper member. Both are times the
number of queries. A prompt counts as no more tokens than its member's context; a reply has at most
a quarter as many characters, so that the router's own models, which run, can read several. Retries
of calls that failed and may be billed all the same are in neither, and what a cache or a record
knows is in both, as if it were not known.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult

from r2graph.allocate import ALLOCATE_INSTRUCTIONS
from r2graph.decompose import PLAN_INSTRUCTIONS
from r2graph.evaluation.baselines import SELF_CHECK
from r2graph.evaluation.lineup import Lineup, is_derived
from r2graph.evaluation.setup import Asked, Setup, other_routers, pool_of, questions
from r2graph.plan import MAX_PLAN_CHARS
from r2graph.pool import ModelPool, ModelSpec
from r2graph.router import load_router
from r2graph.verify import JUDGE_INSTRUCTIONS

SAMPLE = 8
REPLY_TOKENS, TOKEN_CHARS = 256, 4
STEPS, MOST_STEPS = 3, 12
ROOM = 4  # replies that a prompt of one character a token has room for


@dataclass(frozen=True)
class Estimate:
    """Dollars for all queries of a benchmark with a method, each paying for its own calls."""

    benchmark: str
    method: str
    n: int
    expected_usd: float
    worst_usd: float


class StandIn(BaseChatModel):
    """Answers in the form that a prompt asks for; in the `worst` case it does not count tokens, so
    that they are billed as the most that they can be.
    """

    worst: bool
    context: int | None

    @property
    def _llm_type(self) -> str:
        return "stand-in"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        most: int = options["max_tokens"]
        tokens = most if self.worst else min(REPLY_TOKENS, most)
        said = self._says(messages)
        room = self.context // ROOM if self.context else tokens * TOKEN_CHARS
        message = AIMessage(said or "x" * min(tokens * TOKEN_CHARS, room))
        if not self.worst:
            sent = sum(len(each.text) for each in messages) // TOKEN_CHARS
            sent = min(sent, self.context or sent)
            written = min(tokens, len(said) // TOKEN_CHARS + 1) if said else tokens
            message.usage_metadata = UsageMetadata(
                input_tokens=sent, output_tokens=written, total_tokens=sent + written
            )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _says(self, messages: Sequence[BaseMessage]) -> str | None:
        rules, shown = messages[0].text, messages[-1].text
        if rules.startswith(PLAN_INSTRUCTIONS):
            return self._plan(shown)
        if rules.startswith(ALLOCATE_INSTRUCTIONS):
            members = re.findall(r"^(\d+): ", rules, re.MULTILINE)
            steps = re.findall(r"^<s\d+", shown, re.MULTILINE)
            return " ".join(members[-1 if self.worst else 0] for _ in steps)
        if rules in (JUDGE_INSTRUCTIONS, SELF_CHECK):
            return "no" if self.worst else "yes"
        return None

    def _plan(self, query: str) -> str:
        """Steps that repeat the query, each with the output of the one before it."""
        text = query[: MAX_PLAN_CHARS // MOST_STEPS - len(" {s11}")]
        texts = [text if k == 1 else f"{text} {{s{k - 1}}}" for k in self._steps]
        subtasks = [{"id": f"s{k}", "text": t} for k, t in zip(self._steps, texts, strict=True)]
        return json.dumps({"subtasks": subtasks, "answer": None})

    @property
    def _steps(self) -> range:
        return range(1, (MOST_STEPS if self.worst else STEPS) + 1)


def estimate(setup: Setup, names: Sequence[str]) -> list[Estimate]:
    """A line for each benchmark and method that calls models; raises `ConfigError`."""
    pool = pool_of(setup)
    return [
        line
        for name in names
        for line in _benchmark(setup, name, pool, questions(setup, name, pool))
    ]


def _benchmark(
    setup: Setup, benchmark: str, pool: ModelPool, asked: Sequence[Asked]
) -> list[Estimate]:
    queries = [task.query for task in asked]
    some = queries[:: -(-len(queries) // SAMPLE)]
    longest = max(queries, key=lambda query: len(query.encode()))
    likely, worst = (_lineup(setup, _stand_ins(pool, worst=worst)) for worst in (False, True))

    def line(name: str) -> Estimate:
        usual = asyncio.run(_costs(likely, name, some))
        most = max(usual + asyncio.run(_costs(worst, name, [*some, longest])))
        n = len(queries)
        mean = sum(usual, Decimal(0)) / len(usual)
        return Estimate(benchmark, name, n, expected_usd=float(mean * n), worst_usd=float(most * n))

    return [line(name) for name in setup.methods if not is_derived(name, pool)]


def _lineup(setup: Setup, pool: ModelPool) -> Lineup:
    router = load_router(setup.router) if setup.router else None
    others = other_routers(setup)
    return Lineup(pool, router, setup.quality, {}, others=others, max_tokens=setup.max_tokens)


async def _costs(lineup: Lineup, name: str, queries: Sequence[str]) -> list[Decimal]:
    """Dollars for each query."""
    method = lineup.method(name)
    return [(await method.answer(query)).net_usd for query in queries]


def _stand_ins(pool: ModelPool, *, worst: bool) -> ModelPool:
    members = tuple(
        ModelSpec(
            name=spec.name,
            model=StandIn(worst=worst, context=spec.context_length),
            price=spec.price,
            context_length=spec.context_length,
            tags=spec.tags,
        )
        for spec in pool.members
    )
    return ModelPool.model_validate(dict(pool) | {"members": members})
