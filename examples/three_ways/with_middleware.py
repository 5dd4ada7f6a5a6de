"""The app, each call of it on the cheapest model that gets on with the task.

python examples/three_ways/with_middleware.py
"""

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from r2graph import R2RouterMiddleware


@tool
def calculate(a: int, sign: str, b: int) -> int:
    """One sum, difference or product of two integers."""
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


model = ChatOpenAI(model="large")
router = R2RouterMiddleware("examples/three_ways/pool.yaml", budget_usd="0.05")
agent = create_agent(model, [calculate], middleware=[router])
result = agent.invoke({"messages": [("user", "( 12 + 7 ) * 6 - -3")]})
for message in result["messages"]:
    if isinstance(message, AIMessage):
        print([call["args"] for call in message.tool_calls] or message.text)
        print(" ", message.response_metadata["r2"])
print(result["r2_bill"]["cost_usd"], "on large:", result["r2_bill"]["counterfactual_usd"])
