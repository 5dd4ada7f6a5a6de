"""Each prompt is put to each model once; every method that asks it again pays for it again.

Methods share most of their calls (the same plan of a query, the same step on the same member), and
the lab's models answer a prompt always in the same way. So a reply is kept with its tokens, from
which each method is billed, and with its CPU time, which each method is charged with as well.
Sampled calls (a temperature above zero) are made anew.

CPU time is what local models report as `cpu_s` in the metadata of a reply: seconds of their own
decoding thread, a batch's time in equal shares. Other models, and the graph's own work, count as
nothing: the benchmarks of the repository measure the latter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import RunnableConfig
from pydantic import PrivateAttr

from r2graph.allocate import CheckpointAllocator
from r2graph.decompose import CheckpointDecomposer
from r2graph.outcome_cache import OutcomeCache
from r2graph.pool import ModelPool, ModelSpec
from r2graph.router import Router


@dataclass
class CpuTime:
    """Seconds that local models computed."""

    seconds: float = 0.0


_charged: ContextVar[CpuTime | None] = ContextVar("_charged", default=None)


@contextmanager
def charge_cpu() -> Iterator[CpuTime]:
    """What the calls of recorded models inside cost in CPU time, kept replies included."""
    time = CpuTime()
    token = _charged.set(time)
    try:
        yield time
    finally:
        _charged.reset(token)


class Recorded(BaseChatModel):
    """A chat model that is asked each prompt once; only asynchronous calls are recorded.

    `ainvoke` itself is replaced: for a reply that is there already LangChain's callbacks would be
    most of the time of an evaluation.
    """

    model: BaseChatModel

    _replies: dict[Any, asyncio.Task[AIMessage]] = PrivateAttr(default_factory=dict)

    @property
    def _llm_type(self) -> str:
        return f"recorded-{self.model._llm_type}"

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """To caches it is the model itself."""
        return self.model._get_llm_string(stop, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        if kwargs.get("temperature"):
            return await self.model.ainvoke(input, stop=stop, **kwargs)
        messages = self._convert_input(input).to_messages()
        key = (*((m.type, m.text) for m in messages), *sorted(kwargs.items()))
        if key not in self._replies:
            # A task, so that who asked first may give up and others still get the reply.
            self._replies[key] = asyncio.create_task(
                self.model.ainvoke(messages, stop=stop, **kwargs)
            )
        try:
            message = await asyncio.shield(self._replies[key])
        except Exception:
            self._replies.pop(key, None)  # the next to ask may have more luck
            raise
        if (charged := _charged.get()) is not None:
            charged.seconds += message.response_metadata.get("cpu_s", 0.0)
        return message.model_copy()

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return self.model._generate(messages, *args, **kwargs)


class ChargedOutcomes(OutcomeCache):
    """Outcomes that are charged, each time they are used, with the CPU time they once took."""

    def get(self, key: object) -> dict[str, Any] | None:
        response = super().get(key)
        if response is not None and (charged := _charged.get()) is not None:
            charged.seconds += response["cpu_s"]
        return response


def record(spec: ModelSpec) -> ModelSpec:
    """The member with its chat model recorded; builds the model."""
    tags = spec.tags | {"local"} if spec.is_local else spec.tags
    return ModelSpec(
        name=spec.name,
        model=Recorded(model=spec.chat),
        price=spec.price,
        context_length=spec.context_length,
        tags=tags,
    )


def record_pool(pool: ModelPool) -> ModelPool:
    members = tuple(record(spec) for spec in pool.members)
    return ModelPool.model_validate(dict(pool) | {"members": members})


def record_router(router: Router) -> Router:
    """The router with its own models recorded; one that asks members of the pool has none."""
    decomposer, allocator = router.decomposer, router.allocator
    if isinstance(decomposer, CheckpointDecomposer):
        decomposer = CheckpointDecomposer(
            record(decomposer.model),
            temperature=decomposer.temperature,
            retry_temperature=decomposer.retry_temperature,
        )
    if isinstance(allocator, CheckpointAllocator):
        allocator = CheckpointAllocator(record(allocator.model), n_slots=allocator.n_slots)
    return replace(router, decomposer=decomposer, allocator=allocator)
