"""ChatR2: the whole graph as a LangChain chat model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import Context, ContextVar
from decimal import Decimal
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Self, get_args

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    ToolMessage,
    UsageMetadata,
)
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough
from langchain_core.runnables.config import ensure_config, set_config_context
from langchain_core.tools import BaseTool
from langchain_core.tracers import BaseTracer
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from langgraph.types import StreamMode
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    InstanceOf,
    PrivateAttr,
    ValidationError,
)
from pydantic_core.core_schema import is_instance_schema

from r2graph.bill import Bill
from r2graph.errors import (
    ConfigError,
    LimitExceeded,
    LimitName,
    ModelCallError,
    QueryError,
    R2Error,
    first_fault,
)
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.ledger import Budget, Ledger
from r2graph.limits import Limits
from r2graph.pool import ModelPool, load_pool
from r2graph.router import Router
from r2graph.state import R2Output, RunContext
from r2graph.whole import Outcome, Whole

# `BaseChatModel.stream` keeps to itself under which run, and to whom, `_stream` should report.
_CONFIG: ContextVar[RunnableConfig | None] = ContextVar("r2graph_config", default=None)
_MODES: list[StreamMode] = ["custom", "values"]

# Not `InstanceOf`, which looks into a dataclass, where there are protocols.
_Router = Annotated[Router, GetPydanticSchema(lambda kind, _: is_instance_schema(kind))]


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


class Call(Settings):
    """One call: the settings that hold for it, and what is bound."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: bool | str | dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None

    @property
    def context(self) -> RunContext:
        """The settings of the graph's run."""
        limits = {} if self.limits is None else self.limits.model_dump(exclude_unset=True)
        if self.max_tokens is not None:
            limits["max_output_tokens"] = self.max_tokens
        if self.timeout is not None:
            limits["deadline_s"] = self.timeout
        return RunContext(quality=self.quality, budget_usd=self.budget_usd, limits=Limits(**limits))


class ChatR2(BaseChatModel, Settings):
    """Route-and-Reason as a chat model: `ChatR2(model="lab").invoke("( 12 + 7 ) * 6 - -3")`.

    The last human message is the query. It is planned, routed step by step, checked and answered as
    by `create_r2_graph`; what it cost and how it was done is in `response_metadata`. Fields of
    `Settings` may be given again with a call, as in `chat.invoke("…", quality=0.5)`.

    With tools or a schema bound, and after a tool's result, the call is not split: the cheapest
    member that can do it answers, and a call that fails or whose form is wrong moves up.

    The answer is known once it has been checked, so that no token has to be taken back; a stream
    brings it in words then. Until then callbacks are told what happens as custom events: `r2_plan`,
    `r2_allocation`, `r2_attempt`, `r2_step`, `r2_answer`.

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
            self.ledger = Ledger(":memory:")

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
                return _replied(whole, context.run(whole.ask), call)
            return _answered(graph, context.run(_result, graph, call, asked, watching), call)

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
                return _replied(whole, await asking, call)
            running = asyncio.create_task(_aresult(graph, call, asked, watching), context=context)
            return _answered(graph, await running, call)

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


def read(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Copies of the messages, without ids: the graph gives each its own, and merges like ones.

    Raises `QueryError` for what no budget can count.
    """
    for message in messages:
        blocks = message.content if isinstance(message, HumanMessage | ToolMessage) else ""
        if any(isinstance(block, dict) and block.get("type") != "text" for block in blocks):
            raise QueryError("ChatR2 reads text only: leave images, sound and files out")
    return [message.model_copy(update={"id": None}) for message in messages]


def is_whole(call: Call, messages: Sequence[BaseMessage]) -> bool:
    """Whether a call is routed whole: what goes on after a tool's result has no query to split."""
    bound = bool(call.tools) or call.output_schema is not None
    return bound or (bool(messages) and isinstance(messages[-1], ToolMessage))


def within(watching: CallbackManager) -> CallbackManager:
    """The callbacks of what a call consists of: tracers alone.

    Whoever counts usage or shows tokens is to see one call with one answer.
    """
    tracers: list[BaseCallbackHandler] = [
        handler for handler in watching.handlers if isinstance(handler, BaseTracer)
    ]
    return CallbackManager(
        tracers, inheritable_handlers=tracers, parent_run_id=watching.parent_run_id
    )


def uncounted(context: Context) -> None:
    """Keep handlers that live in context variables, such as usage counters, out of what is within.

    `get_usage_metadata_callback` would count the models, and then the call that they are part of.
    """
    for variable, value in context.items():
        if isinstance(value, BaseCallbackHandler) and not isinstance(value, BaseTracer):
            context.run(variable.set, None)


def chunks(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    """An answer as a stream of words; all but the text is in the last chunk."""
    for word in re.findall(r"\s*\S+|\s+", message.text):
        yield ChatGenerationChunk(message=AIMessageChunk(content=word))
    calls = [
        tool_call_chunk(
            name=call["name"],
            args=call["args"] if isinstance(call["args"], str) else json.dumps(call["args"]),
            id=call["id"],
            index=index,
        )
        for index, call in enumerate([*message.tool_calls, *message.invalid_tool_calls])
    ]
    last = AIMessageChunk(
        content="",
        tool_call_chunks=calls,
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
        chunk_position="last",
    )
    yield ChatGenerationChunk(message=last)


def _result(
    graph: R2Graph, call: Call, messages: list[BaseMessage], watching: CallbackManager
) -> R2Output | None:
    """What a run of the graph comes to; those who watch are told how."""
    result = None
    for mode, data in graph.stream(
        {"messages": messages}, context=call.context, stream_mode=_MODES
    ):
        if mode == "custom":
            watching.on_custom_event(f"r2_{data['event']}", data, watching.parent_run_id)
        else:
            result = data
    return result


async def _aresult(
    graph: R2Graph, call: Call, messages: list[BaseMessage], watching: CallbackManager
) -> R2Output | None:
    """As `_result`."""
    telling, result = AsyncCallbackManager.configure(watching), None
    stream = graph.astream({"messages": messages}, context=call.context, stream_mode=_MODES)
    async for mode, data in stream:
        if mode == "custom":
            await telling.on_custom_event(f"r2_{data['event']}", data, telling.parent_run_id)
        else:
            result = data
    return result


def _whole(graph: R2Graph, call: Call, messages: Sequence[BaseMessage]) -> Whole:
    run = graph.defaults.run(call.context, None)
    return Whole(run, messages, call.tools, call.tool_choice, call.output_schema)


def _replied(whole: Whole, outcome: Outcome, call: Call) -> AIMessage:
    reply = outcome.reply
    message = _message(
        reply.text,
        whole.bill(reply),
        call,
        model_name=whole.run.pool.name,
        run_id=whole.run_id,
        stop_reason=outcome.stop,
        plan=None,
        members={"whole": reply.member},
    )
    message.tool_calls = list(reply.tool_calls)
    message.invalid_tool_calls = list(reply.invalid_tool_calls)
    return message


def _answered(graph: R2Graph, result: R2Output | None, call: Call) -> AIMessage:
    assert result is not None  # a run that does not raise ends with its state
    if not result["answer"]:
        raise _unanswered(graph, result)
    bill = {key: result[key] for key in Bill.__annotations__}  # type: ignore[literal-required]
    return _message(
        result["answer"],
        bill,
        call,
        model_name=graph.defaults.pool.name,
        run_id=result["run_id"],
        stop_reason=result["stop_reason"],
        plan=result["plan"],
        members={name: step["member"] for name, step in result["steps"].items()},
    )


def _unanswered(graph: R2Graph, result: R2Output) -> R2Error:
    """A run without an answer: an empty message would pass for one, and end an agent's loop."""
    stop = result["stop_reason"]
    error: R2Error
    if stop in get_args(LimitName) and stop != "rounds":
        error = LimitExceeded(stop)  # type: ignore[arg-type]
    else:
        last = [step["member"] for step in result["steps"].values()][-1:]
        error = ModelCallError("".join(last) or graph.defaults.pool.names[-1], "empty")
    error.cost_usd = result["cost_usd"]
    return error


def _message(text: str, bill: Mapping[str, Any], call: Call, **metadata: Any) -> AIMessage:
    used = bill["usage"].values()
    tokens_in = sum(use["input_tokens"] for use in used)
    tokens_out = sum(use["output_tokens"] for use in used)
    return AIMessage(
        _ended(text, call.stop or ()),
        usage_metadata=UsageMetadata(
            input_tokens=tokens_in, output_tokens=tokens_out, total_tokens=tokens_in + tokens_out
        ),
        response_metadata={**metadata, **bill},
    )


def _ended(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of the words that end it."""
    return text[: min((at for word in stop if (at := text.find(word)) >= 0), default=None)]


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
