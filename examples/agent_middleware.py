"""An agent whose calls go to the cheapest model that gets on with the task.

    python examples/agent_middleware.py

It runs without a key or a network: the two models are played by a script. The small one takes every
file for UTF-8; the large one reads what the tool said was wrong. Any chat model that can call tools
takes their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import ToolException, tool

from r2graph import ModelPool, ModelSpec, Price, R2RouterMiddleware

FILES = dict.fromkeys("abcdefgh", "utf-8") | {"c": "latin-1"}
TASK = {"messages": [{"role": "user", "content": "Convert the files a to h to UTF-16."}]}


@tool
def convert(file: str, encoding: str) -> str:
    """Converts a file that is in some encoding to UTF-16."""
    if encoding != FILES[file]:
        raise ToolException(f"{file}: invalid start byte 0xe9 at 17; it looks like {FILES[file]}")
    return f"{file}: converted"


convert.handle_tool_error = True  # the model is told, and the message's status is "error"


class ScriptedChat(BaseChatModel):
    """Plays a model that converts one file after the other."""

    model: str
    learns: bool
    """Whether it reads what a tool says is wrong."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self.bind(**kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> ChatResult:
        results = [message for message in messages if isinstance(message, ToolMessage)]
        done = sum(result.status == "success" for result in results)
        failed = bool(results) and results[-1].status == "error"
        message = AIMessage("All files are in UTF-16.")
        if done < len(FILES):
            encoding = "latin-1" if failed and self.learns else "utf-8"
            args = {"file": list(FILES)[done], "encoding": encoding}
            message = AIMessage(
                "", tool_calls=[{"name": "convert", "args": args, "id": str(len(results))}]
            )
        sent = 200 + 40 * len(messages)
        message.usage_metadata = UsageMetadata(
            input_tokens=sent, output_tokens=20, total_tokens=sent + 20
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


def price(dollars: str) -> Price:
    return Price(input_per_mtok=Decimal(dollars), output_per_mtok=4 * Decimal(dollars))


SMALL, LARGE = ScriptedChat(model="small", learns=False), ScriptedChat(model="large", learns=True)
POOL = ModelPool(
    name="example",
    members=(
        ModelSpec(name="small", model=SMALL, price=price("0.25")),
        ModelSpec(name="large", model=LARGE, price=price("2.5")),
    ),
)


def main() -> None:
    """Run the agent, then say who made each call, why, and for how much."""
    agent = create_agent(LARGE, [convert], middleware=[R2RouterMiddleware(POOL, budget_usd="0.05")])
    result = agent.invoke(TASK)
    for message in result["messages"]:
        if isinstance(message, AIMessage):
            note = message.response_metadata["r2"]
            done = message.tool_calls[0]["args"] if message.tool_calls else message.text
            print(f"{note['member']:6} {note['reason']:24} ${note['cost_usd']:10} {done}")
    bill = result["r2_bill"]
    print(f"${bill['cost_usd']}; all on large: ${bill['counterfactual_usd']}")


if __name__ == "__main__":
    main()
