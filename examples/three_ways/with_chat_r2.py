"""The app on `ChatR2`, a chat model that is a pool.

python examples/three_ways/with_chat_r2.py
"""

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from r2graph import ChatR2


@tool
def calculate(a: int, sign: str, b: int) -> int:
    """One sum, difference or product of two integers."""
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


model = ChatR2(model="examples/three_ways/pool.yaml", budget_usd="0.05")
agent = create_agent(model, [calculate])
result = agent.invoke({"messages": [("user", "( 12 + 7 ) * 6 - -3")]})
for message in result["messages"]:
    if isinstance(message, AIMessage):
        print([call["args"] for call in message.tool_calls] or message.text)
        print(" ", message.response_metadata["members"], message.response_metadata["cost_usd"])
