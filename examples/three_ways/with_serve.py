"""The app as a client of `r2graph serve --pool examples/three_ways/pool.yaml --budget 0.05`.

python examples/three_ways/with_serve.py
"""

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def calculate(a: int, sign: str, b: int) -> int:
    """One sum, difference or product of two integers."""
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


url = "http://127.0.0.1:8000/v1"
model = ChatOpenAI(model="mine", base_url=url, api_key="none", include_response_headers=True)
agent = create_agent(model, [calculate])
result = agent.invoke({"messages": [("user", "( 12 + 7 ) * 6 - -3")]})
for message in result["messages"]:
    if isinstance(message, AIMessage):
        print([call["args"] for call in message.tool_calls] or message.text)
        headers = message.response_metadata["headers"]
        print(" ", headers["x-r2-models"], headers["x-r2-cost-usd"])
