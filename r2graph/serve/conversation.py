"""OpenAI's conversations: messages and tools as clients send them, and as models take them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import from_json

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
CallId = Annotated[str, Field(min_length=1)]


class Given(BaseModel):
    """What comes from a client."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TextPart(Given):
    type: Literal["text"]
    text: str


class Called(Given):
    """Which function, and its arguments as the model wrote them: they need not parse."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str


class GivenCall(Given):
    """A call of a tool."""

    id: CallId
    type: Literal["function"]
    function: Called

    @property
    def read(self) -> ToolCall | InvalidToolCall:
        name, written = self.function.name, self.function.arguments
        try:
            args = from_json(written, allow_inf_nan=False)
        except ValueError:
            args = None
        if isinstance(args, dict):
            return ToolCall(name=name, args=args, id=self.id, type="tool_call")
        return InvalidToolCall(
            name=name, args=written, id=self.id, error=None, type="invalid_tool_call"
        )


class Message(Given):
    """A message of a conversation in text."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: tuple[GivenCall, ...] = ()
    tool_call_id: CallId | None = None

    @model_validator(mode="after")
    def _has_what_its_role_has(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a tool's message has a tool_call_id, and no other has")
        if self.content is None and not self.tool_calls:
            raise ValueError("it has no content")
        return self

    @property
    def read(self) -> BaseMessage:
        """The message as models take it."""
        text = self.content or ""
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        match self.role:
            case "user":
                return HumanMessage(text)
            case "tool":
                return ToolMessage(text, tool_call_id=self.tool_call_id)
            case "assistant":
                calls = [call.read for call in self.tool_calls]
                return AIMessage(
                    text,
                    tool_calls=[call for call in calls if call["type"] == "tool_call"],
                    invalid_tool_calls=[call for call in calls if call["type"] != "tool_call"],
                )
            case _:
                return SystemMessage(text)


def _answered(messages: list[Message]) -> list[Message]:
    """Providers want each call answered, at once and once, and nothing else."""
    open_calls: list[str] = []
    for message in messages:
        if message.tool_call_id is not None:
            if message.tool_call_id not in open_calls:
                raise ValueError("a tool's message must follow the call that it answers")
            open_calls.remove(message.tool_call_id)
            continue
        if open_calls:
            break
        open_calls = [call.id for call in message.tool_calls]
    if open_calls:
        raise ValueError("each of tool_calls must be followed by a tool's message with its id")
    if messages[-1].role not in ("user", "tool"):
        raise ValueError("the last message must be the user's or a tool's")
    return messages


Conversation = Annotated[list[Message], Field(min_length=1), AfterValidator(_answered)]


class Function(Given):
    """A function that a model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    strict: bool | None = None


class Tool(Given):
    type: Literal["function"]
    function: Function


class Named(Given):
    name: ToolName


class NamedTool(Given):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: Named


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class JsonSchema(Given):
    name: ToolName
    description: str | None = None
    form: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None

    @property
    def titled(self) -> dict[str, Any]:
        """As LangChain takes it."""
        about = {} if self.description is None else {"description": self.description}
        return self.form | about | {"title": self.name}


class ResponseFormat(Given):
    """The form that the answer is to have; whether it is kept strictly is up to the member."""

    type: Literal["json_schema"]
    json_schema: JsonSchema
