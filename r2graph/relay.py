"""The relay: an agent's own handler, presented to the `Door` as a member's chat model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain.agents.structured_output import (
    AutoStrategy,
    ProviderStrategy,
    StructuredOutputError,
    ToolStrategy,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.errors import GraphBubbleUp

from r2graph.pool import ModelSpec

# What an image, a sound or a file may take: no provider says so beforehand.
DATA_TOKENS = 4096
_DATA = frozenset({"image", "image_url", "audio", "input_audio", "video", "file", "document"})


class Relay(BaseChatModel):
    """A member as the `Door` sees it: to ask it is to ask the agent's handler with that member.

    By way of the door the handler's calls have the reservations, retries, breakers and bill of all
    others, those with tools too. The handler's response, or the error with which it refused one
    that had come, is in `outcome`.
    """

    target: ModelSpec
    request: Any
    """LangChain's `ModelRequest`; its classes are generic dataclasses that Pydantic cannot read."""
    handler: Callable[[Any], Any]
    is_capped: bool
    outcome: Any = None
    error: Exception | None = None
    """What the last call raised."""

    @property
    def _llm_type(self) -> str:
        return "r2-relay"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise NotImplementedError  # LangChain would report a second run of a model

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Self:
        return self  # the handler binds them to the member

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **options: Any,
    ) -> AIMessage:
        """What the member replies."""
        try:
            return self._keep(self.handler(self._asked(options["max_tokens"])))
        except Exception as error:  # noqa: BLE001 - sorted there
            return self._refused(error)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **options: Any,
    ) -> AIMessage:
        """As `invoke`."""
        try:
            return self._keep(await self.handler(self._asked(options["max_tokens"])))
        except Exception as error:  # noqa: BLE001
            return self._refused(error)

    def _asked(self, max_tokens: int) -> ModelRequest[Any]:
        settings = self.request.model_settings
        if self.is_capped:
            settings = {**settings, "max_tokens": max_tokens}
        asked: ModelRequest[Any] = self.request.override(
            model=self.target.chat, model_settings=settings
        )
        return asked

    def _keep(self, response: ModelResponse[Any]) -> AIMessage:
        self.outcome = response
        return spoken(response)

    def _refused(self, error: Exception) -> AIMessage:
        """Raise what failed; what is not the member's failure waits in `outcome`."""
        if isinstance(error, StructuredOutputError):  # it was answered, and is billed
            self.outcome = error
            return error.ai_message
        if isinstance(error, GraphBubbleUp):  # an interrupt of another middleware
            self.outcome = error
            return AIMessage("")
        self.error = error
        raise error


def as_seen(spec: ModelSpec, relay: Relay) -> ModelSpec:
    """The member with the relay in the place of its chat model."""
    return ModelSpec(
        name=spec.name,
        model=relay,
        price=spec.price,
        context_length=spec.context_length,
        tags=spec.tags | ({"local"} if spec.is_local else set()),
    )


def spoken(response: ModelResponse[Any]) -> AIMessage:
    """The model's message; an empty one if another middleware has taken it out."""
    said = [message for message in response.result if isinstance(message, AIMessage)]
    return said[-1] if said else AIMessage("")


def sent(request: ModelRequest[Any]) -> list[BaseMessage]:
    """The messages of a request, and images and the like as texts: `worst_usage` counts bytes."""
    first = [request.system_message] if request.system_message else []
    messages = [*first, *request.messages]
    return [*messages, *(HumanMessage(part) for each in messages for part in _beside_text(each))]


def _beside_text(message: BaseMessage) -> Iterator[str]:
    for block in message.content if isinstance(message.content, list) else ():
        if isinstance(block, dict) and block.get("type") != "text":
            is_data = block.get("type") in _DATA
            yield " " * DATA_TOKENS if is_data else json.dumps(block, default=str)


def tools_of(request: ModelRequest[Any]) -> list[dict[str, Any]]:
    """The tools of a request, and the schemas of its structured output, which are as long."""
    tools = [convert_to_openai_tool(t) if isinstance(t, BaseTool) else t for t in request.tools]
    form: Any = request.response_format  # another middleware may put a bare schema there
    match form:
        case None:
            return tools
        case ProviderStrategy():
            specs: list[Any] = [form.schema_spec]
        case ToolStrategy():
            specs = form.schema_specs
        case _:
            schema = form.schema if isinstance(form, AutoStrategy) else form
            specs = ToolStrategy(schema).schema_specs
    return [
        *tools,
        *({"name": s.name, "about": s.description, "schema": s.json_schema} for s in specs),
    ]
