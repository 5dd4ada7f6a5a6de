"""Fakes that call tools: a chat model, and a server that speaks OpenAI's protocol on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field

from tests.fakes import FakeChat

USAGE = UsageMetadata(input_tokens=10, output_tokens=5, total_tokens=15)


class ToolChat(FakeChat):
    """Answers from a function of the messages; keeps what was sent, and what was bound."""

    answer: Callable[[str], str | Exception] = str
    turn: Callable[[Sequence[BaseMessage]], AIMessage | Exception]
    heard: list[list[BaseMessage]] = Field(default_factory=list)

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Runnable:  # type: ignore[type-arg]
        return self.bind(tools=tools, tool_choice=tool_choice, **kwargs)

    def _result(self, messages: list[BaseMessage], options: dict[str, Any]) -> ChatResult:
        self.calls.append((str(messages[-1].text), options))
        self.heard.append(messages)
        message = self.turn(messages)
        if isinstance(message, Exception):
            raise message
        message = message.model_copy(update={"usage_metadata": USAGE})
        return ChatResult(generations=[ChatGeneration(message=message)])


def calling(name: str, **args: Any) -> AIMessage:
    """A message that calls a tool."""
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": "call-1"}])


def tool_user(name: str, **args: Any) -> ToolChat:
    """A model that calls a tool, and then says what the tool said."""

    def turn(messages: Sequence[BaseMessage]) -> AIMessage:
        last = messages[-1]
        return AIMessage(f"It is {last.text}.") if last.type == "tool" else calling(name, **args)

    return ToolChat(turn=turn)


def saying(message: AIMessage | str | Exception) -> ToolChat:
    """A model with one reply."""
    said = AIMessage(message) if isinstance(message, str) else message
    return ToolChat(turn=lambda _: said)


# The server


@contextmanager
def openai_server() -> Iterator[str]:
    """The base URL of a server that answers any request in the form that it asks for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        message = _message(request)
        finish = "tool_calls" if "tool_calls" in message else "stop"
        body = {"id": "chatcmpl-1", "created": 0, "model": request["model"]}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        if not request.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish}
            whole = body | {"object": "chat.completion", "choices": [choice], "usage": usage}
            self._send("application/json", json.dumps(whole))
            return
        delta = message | {
            "tool_calls": [
                {"index": index, **call} for index, call in enumerate(message.get("tool_calls", []))
            ]
        }
        body["object"] = "chat.completion.chunk"
        parts = [
            body | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
            body | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
            body | {"choices": [], "usage": usage},
        ]
        lines = [*(json.dumps(part) for part in parts), "[DONE]"]
        self._send("text/event-stream", "".join(f"data: {line}\n\n" for line in lines))

    def _send(self, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def _message(request: dict[str, Any]) -> dict[str, Any]:
    last = request["messages"][-1]
    choice = request.get("tool_choice")
    if (tools := request.get("tools")) and (choice or last["role"] != "tool"):
        named = choice["function"]["name"] if isinstance(choice, dict) else None
        functions = [tool["function"] for tool in tools]
        function = next((each for each in functions if each["name"] == named), functions[0])
        arguments = json.dumps(_made(function["parameters"], str(last["content"])))
        call = {"name": function["name"], "arguments": arguments}
        calls = [{"id": "call_1", "type": "function", "function": call}]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    if form := request.get("response_format"):
        content = json.dumps(_made(form["json_schema"]["schema"], str(last["content"])))
    else:
        content = "yes" if "Reply with one word" in str(request["messages"][0]) else "Well met."
    return {"role": "assistant", "content": content}


def _made(schema: dict[str, Any], text: str) -> Any:
    """A value of a schema, from what the text has: what is in quotes, or the first number."""
    match schema.get("type"):
        case "object":
            parts = schema.get("properties", {})
            return {name: _made(part, text) for name, part in parts.items()}
        case "integer":
            found = re.search(r"\d+", text)
            return int(found[0]) if found else 1
        case "string":
            found = re.search(r"'([^']+)'", text)
            return found[1] if found else "something"
    return None
