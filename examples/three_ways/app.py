"""An app as you may have it: an agent with a calculator, on one large model.

python examples/three_ways/app.py
"""

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def calculate(a: int, sign: str, b: int) -> int:
    """One sum, difference or product of two integers."""
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


model = ChatOpenAI(model="large")
agent = create_agent(model, [calculate])
result = agent.invoke({"messages": [("user", "( 12 + 7 ) * 6 - -3")]})
for message in result["messages"]:
    if isinstance(message, AIMessage):
        print([call["args"] for call in message.tool_calls] or message.text)
