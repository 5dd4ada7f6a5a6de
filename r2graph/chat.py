"""ChatR2: the whole graph as a LangChain chat model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextvars import ContextVar
from decimal import Decimal
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough
from langchain_core.runnables.config import ensure_config, set_config_context
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, GetPydanticSchema, InstanceOf, PrivateAttr, ValidationError
from pydantic_core.core_schema import is_instance_schema

from r2graph.chat_call import Call, Settings, is_whole, read
from r2graph.errors import ConfigError, first_fault
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.ledger import Budget, Ledger
from r2graph.message import answered, chunks, replied
from r2graph.pool import ModelPool, load_pool
from r2graph.router import Router
from r2graph.watch import aresult, result, uncounted, within
from r2graph.whole import Whole

# `BaseChatModel.stream` keeps to itself under which run, and to whom, `_stream` should report.
_CONFIG: ContextVar[RunnableConfig | None] = ContextVar("r2graph_config", default=None)

# Not `InstanceOf`, which looks into a dataclass, where there are protocols.
_Router = Annotated[Router, GetPydanticSchema(lambda kind, _: is_instance_schema(kind))]


class ChatR2(BaseChatModel, Settings):
    """Route-and-Reason as a chat model: `ChatR2(model="lab").invoke("( 12 + 7 ) * 6 - -3")`.

    The last human message is the query. It is planned, routed step by step, checked and answered as
    by `create_r2_graph`; what it cost and how it was done is in `response_metadata`. Fields of
    `Settings` may be given again with a call, as in `chat.invoke("…", quality=0.5)`.

    With tools or a schema bound, and after a tool's result, the call is not split: the cheapest
    member that can do it answers, and a call that fails or whose form is wrong moves up.

    The answer is known once it has been checked, so that no token has to be taken back; a stream
    brings it in words then. Until then callbacks are told what happens as custom events: `r2_asked`
    of each call of a model, `r2_plan`, `r2_allocation`, `r2_attempt`, `r2_step`, `r2_answer`.

    Raises the `R2Error`s of the graph; `LimitExceeded` where a limit ended a run that has no
    answer. Not supported, and a `ConfigError`: temperature and other sampling settings, `n`,
    log-probabilities; a `QueryError`: images, sound and files.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    router: _Router | str | Path | None = "auto"
    """`auto`: the one that r2graph ships for the pool's language, or none; `None`: none."""
    pool_budget: InstanceOf[Budget] | Decimal | None = None
    """Dollars that all calls together must not pass; an agent makes many."""
    ledger: InstanceOf[Ledger] | str | Path | None = None
    """Where calls are recorded; of use to a `pool_budget` that is to outlive the process."""
    streaming: bool = False
    """Stream inside `invoke` as well, for the sake of callbacks."""

    _graphs: Graphs = PrivateAttr(default_factory=lambda: Graphs())

    def model_post_init(self, context: Any, /) -> None:
        """One budget for all pools that calls may name."""
        super().model_post_init(context)
        if self.pool_budget is not None and self.ledger is None:
            self.ledger = Ledger(":memory:", keep=False)

    def __copy__(self) -> Self:
        """A copy may be given other fields, and builds its own graphs."""
        copied = super().__copy__()
        copied._graphs = Graphs()
        return copied

    @property
    def _llm_type(self) -> str:
        return "r2graph"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What LangChain's caches and traces must not confuse."""
        router = self.router.card.name if isinstance(self.router, Router) else self.router
        own = {"model": _identity(self.model), "router": router and str(router)}
        settings = self.model_dump(include=Settings.model_fields.keys() - {"model"}, mode="json")
        return own | settings

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "r2graph"
        params["ls_model_name"] = _name(kwargs.get("model", self.model))
        return params

    # LangChain's ways in

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        message = self._answer(messages, self._call(stop, kwargs), self._watching(run_manager))
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        watching = self._watching(run_manager)
        message = await self._aanswer(messages, self._call(stop, kwargs), watching)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        watching = self._watching(run_manager)
        yield from chunks(self._answer(messages, self._call(stop, kwargs), watching))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        watching = self._watching(run_manager)
        for chunk in chunks(await self._aanswer(messages, self._call(stop, kwargs), watching)):
            yield chunk

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's names
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """As `BaseChatModel.stream`, with the steps told to the callbacks in `config`."""
        stream = super().stream(input, config, stop=stop, **kwargs)
        token = _CONFIG.set(ensure_config(config))
        try:
            first = next(stream)  # all the work is done in here
        finally:
            _CONFIG.reset(token)
        yield first
        yield from stream

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """As `stream`."""
        stream = super().astream(input, config, stop=stop, **kwargs)
        token = _CONFIG.set(ensure_config(config))
        try:
            first = await anext(stream)
        finally:
            _CONFIG.reset(token)
        yield first
        async for chunk in stream:
            yield chunk

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The chat model with tools that its answer may call; `tool_choice` goes to the member.

        Raises `ConfigError`, when called, if no member of the pool takes tools.
        """
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: str | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers of a schema's form, by each member's own way of making them.

        `method` and `strict` are taken for the sake of callers that pass them: how is up to each
        member. Raises `ConfigError`, when called, if no member of the pool can.
        """
        llm = self.bind(
            output_schema=convert_to_json_schema(schema),
            ls_structured_output_format={"kwargs": {"method": "json_schema"}, "schema": schema},
            **kwargs,
        )
        parser: JsonOutputParser = (
            PydanticOutputParser(pydantic_object=schema)
            if isinstance(schema, type) and is_basemodel_subclass(schema)
            else JsonOutputParser()
        )
        if not include_raw:
            return llm | parser
        parsed = RunnablePassthrough.assign(
            parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
        )
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    # Behind them

    def _call(self, stop: list[str] | None, given: dict[str, Any]) -> Call:
        """This model's settings, with those of one call in their place."""
        given.pop("stream", None)  # LangChain's own, it has been acted upon
        settings = {name: getattr(self, name) for name in Settings.model_fields} | given
        try:
            return Call(**settings | ({"stop": stop} if stop else {}))
        except ValidationError as error:
            raise ConfigError(f"ChatR2 cannot be called so: {first_fault(error)}") from None

    def _watching(
        self, run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None
    ) -> CallbackManager:
        """The callbacks of a call, which may be those of what runs around it."""
        if run_manager is not None:
            return CallbackManager(
                run_manager.handlers,
                parent_run_id=run_manager.run_id,
                tags=run_manager.tags,
                metadata=run_manager.metadata,
            )
        config = _CONFIG.get() or ensure_config()
        return CallbackManager.configure(
            config.get("callbacks"),
            self.callbacks,
            inheritable_tags=config.get("tags"),
            inheritable_metadata=config.get("metadata"),
        )

    def _answer(
        self, messages: list[BaseMessage], call: Call, watching: CallbackManager
    ) -> AIMessage:
        asked, graph = read(messages), self._graph(call.model)
        with set_config_context(RunnableConfig(callbacks=within(watching))) as context:
            uncounted(context)
            if is_whole(call, asked):
                whole = _whole(graph, call, asked)
                return replied(whole, context.run(whole.ask), call.stop or ())
            return answered(
                graph, context.run(result, graph, call.context, asked, watching), call.stop or ()
            )

    async def _aanswer(
        self, messages: list[BaseMessage], call: Call, watching: CallbackManager
    ) -> AIMessage:
        asked = read(messages)
        graph = await asyncio.to_thread(self._graph, call.model)  # it may have to read files
        with set_config_context(RunnableConfig(callbacks=within(watching))) as context:
            uncounted(context)
            if is_whole(call, asked):
                whole = _whole(graph, call, asked)
                asking = asyncio.create_task(whole.aask(), context=context)
                return replied(whole, await asking, call.stop or ())
            running = asyncio.create_task(
                aresult(graph, call.context, asked, watching), context=context
            )
            return answered(graph, await running, call.stop or ())

    def _graph(self, model: ModelPool | str | Path) -> R2Graph:
        return self._graphs.get(model, self._build)

    def _build(self, model: ModelPool | str | Path) -> R2Graph:
        pool = model if isinstance(model, ModelPool) else load_pool(model)
        router = self.router
        if router == "auto":
            router = "lab" if pool.language == "lab" else None
        return create_r2_graph(
            pool, router=router, ledger=self.ledger, pool_budget=self.pool_budget
        )


class Graphs:
    """The graphs of pools, each built once; what is copied or pickled builds its own."""

    def __init__(self) -> None:
        self._graphs: dict[str | int, R2Graph] = {}
        self._lock = Lock()

    def get(
        self,
        pool: ModelPool | str | Path,
        build: Callable[[ModelPool | str | Path], R2Graph],
    ) -> R2Graph:
        key = id(pool) if isinstance(pool, ModelPool) else str(pool)  # a graph holds its pool
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = build(pool)
            return self._graphs[key]

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()


def _whole(graph: R2Graph, call: Call, messages: Sequence[BaseMessage]) -> Whole:
    return Whole(graph.defaults.run(call.context, None), messages, call)


def _name(model: ModelPool | str | Path) -> str:
    return model.name if isinstance(model, ModelPool) else str(model)


def _identity(model: ModelPool | str | Path) -> str:
    """Tells pools apart, without showing how their models are set up."""
    if not isinstance(model, ModelPool):
        return str(model)
    members = [
        [
            member.name,
            member.model if isinstance(member.model, str) else member.identity,
            member.model_kwargs,
            str(member.price),
        ]
        for member in model.members
    ]
    digest = sha256(json.dumps(members, default=repr).encode()).hexdigest()
    return f"{model.name}@{digest}"
