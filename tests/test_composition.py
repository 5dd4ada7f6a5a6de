"""ChatR2 and the graph among LangChain's and LangGraph's own parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core._api import LangChainBetaWarning
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command

from r2graph import ChatR2, create_r2_graph
from r2graph.errors import LimitExceeded
from r2graph.state import RunContext
from tests.chat_fakes import tool_user
from tests.fakes import FakeChat, echo, pool_of

ROOT = Path(__file__).parent.parent


def chat_of(*chats: FakeChat, **fields: Any) -> ChatR2:
    return ChatR2(model=pool_of(*chats), **fields)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


# LCEL


async def test_it_stands_between_a_prompt_and_a_parser() -> None:
    chain = ChatPromptTemplate.from_template("{x}?") | chat_of(echo()) | StrOutputParser()
    assert chain.invoke({"x": "a"}) == await chain.ainvoke({"x": "a"}) == "[a?]"
    assert chain.batch([{"x": "a"}, {"x": "b"}]) == ["[a?]", "[b?]"]
    assert await chain.abatch([{"x": "a"}, {"x": "b"}]) == ["[a?]", "[b?]"]
    assert list(chain.stream({"x": "a b"})) == ["[a", " b?]", ""]


async def test_events_of_a_chain_show_the_steps_and_then_the_words() -> None:
    chain = ChatPromptTemplate.from_template("{x}") | chat_of(echo())
    events = [event async for event in chain.astream_events({"x": "a b"})]
    names = [event["name"] for event in events if event["event"] == "on_custom_event"]
    told = ["r2_plan", "r2_allocation", "r2_asked", "r2_attempt", "r2_step", "r2_answer"]
    assert names == told
    words = [e["data"]["chunk"].text for e in events if e["event"] == "on_chat_model_stream"]
    assert words == ["[a", " b]", ""]
    assert [e["event"] for e in events if "chat_model_start" in e["event"]] == [
        "on_chat_model_start"
    ]


async def test_a_run_without_an_answer_falls_back() -> None:
    broke, rich = chat_of(echo(), budget_usd=0), chat_of(echo())
    assert broke.with_fallbacks([rich]).invoke("q").text == "[q]"
    assert (await broke.with_fallbacks([rich]).ainvoke("q")).text == "[q]"
    tools = broke.bind_tools([add]).with_fallbacks([chat_of(tool_user("add")).bind_tools([add])])
    assert tools.invoke("q").tool_calls
    with pytest.raises(LimitExceeded):
        broke.with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke("q")


# Agents


async def test_an_agent_calls_tools_through_it() -> None:
    agent = create_agent(chat_of(echo(), tool_user("add", a=1, b=2)), tools=[add])
    question = {"messages": [HumanMessage("What is 1 + 2?")]}
    for result in (agent.invoke(question), await agent.ainvoke(question)):
        said = result["messages"]
        assert [message.type for message in said] == ["human", "ai", "tool", "ai"]
        assert said[-1].text == "It is 3."
        assert [m.response_metadata["members"] for m in said if m.type == "ai"] == [
            {"whole": "m2"},
            {"whole": "m2"},
        ]


async def test_an_agent_without_tools_has_its_queries_split() -> None:
    agent = create_agent(chat_of(echo()), system_prompt="Be brief.")
    result = await agent.ainvoke({"messages": [HumanMessage("q")]})
    assert result["messages"][-1].text == "[q]"
    assert result["messages"][-1].response_metadata["plan"]["subtasks"]


async def test_an_agents_stream_has_the_answer_once() -> None:
    agent = create_agent(chat_of(echo()))
    question = {"messages": [HumanMessage("a b")]}
    for subgraphs in (False, True):
        stream = agent.astream(question, stream_mode="messages", subgraphs=subgraphs)
        parts = [part[1] if subgraphs else part async for part in stream]
        assert "".join(message.text for message, _ in parts) == "[a b]"


# The graph itself


async def test_the_graph_is_a_node_that_shares_messages() -> None:
    builder = StateGraph(MessagesState)
    builder.add_node("r2", create_r2_graph(pool_of(echo())))
    builder.add_edge(START, "r2")
    builder.add_edge("r2", END)
    outer = builder.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    outer.invoke({"messages": [HumanMessage("a")]}, config)
    result = await outer.ainvoke({"messages": [HumanMessage("b")]}, config)
    assert [message.text for message in result["messages"]] == ["a", "[a]", "b", "[b]"]


async def test_a_node_is_run_under_the_context_of_the_graph_around_it() -> None:
    class Outer(MessagesState):
        run: dict[str, Any]

    builder = StateGraph(Outer, context_schema=RunContext)
    builder.add_node("r2", create_r2_graph(pool_of(echo())))
    builder.add_edge(START, "r2")
    outer = builder.compile()
    question: Any = {"messages": [HumanMessage("q")]}
    context = RunContext(quality=0.25)
    for result in (
        outer.invoke(question, context=context),
        await outer.ainvoke(question, context=context),
    ):
        assert result["run"]["quality"] == 0.25
    assert outer.invoke(question)["run"]["quality"] == 0.9


async def test_the_stream_of_a_node_shows_plan_and_steps() -> None:
    builder = StateGraph(MessagesState)
    builder.add_node("r2", create_r2_graph(pool_of(echo())))
    builder.add_edge(START, "r2")
    question: Any = {"messages": [HumanMessage("q")]}
    stream = builder.compile().astream(question, stream_mode="custom", subgraphs=True)
    events = [part["event"] async for _, part in stream]
    assert [e for e in events if e != "asked"] == [
        "plan",
        "allocation",
        "attempt",
        "step",
        "answer",
    ]


async def test_a_function_that_calls_the_graph_is_a_tool_of_an_agent() -> None:
    graph = create_r2_graph(pool_of(echo()))

    @tool
    def solve(query: str) -> str:
        """Work out a query step by step."""
        answer: str = graph.invoke(query)["answer"]
        return answer

    agent = create_agent(tool_user("solve", query="q"), tools=[solve])
    result = await agent.ainvoke({"messages": [HumanMessage("Solve q.")]})
    assert result["messages"][-1].text == "It is [q]."


# The graph as a tool


def test_a_tool_says_what_it_is_for_and_takes_one_query() -> None:
    graph = create_r2_graph(pool_of(echo()))
    plain, named = graph.as_tool(), graph.as_tool(name="solve", description="Solve it.")
    assert (plain.name, named.name, named.description) == ("r2graph", "solve", "Solve it.")
    assert plain.description.startswith("Works out the answer to a query")
    schema = convert_to_openai_tool(plain)["function"]["parameters"]
    assert schema["required"] == list(schema["properties"]) == ["query"]
    assert schema["properties"]["query"].keys() == {"type", "description"}


async def test_an_agents_model_hears_the_answer_and_the_message_keeps_the_bill() -> None:
    solve = create_r2_graph(pool_of(echo())).as_tool(name="solve")
    agent = create_agent(tool_user("solve", query="q"), tools=[solve])
    question: Any = {"messages": [HumanMessage("Solve q.")]}
    for result in (agent.invoke(question), await agent.ainvoke(question)):
        *_, told, said = result["messages"]
        assert said.text == "It is [q]."
        assert (told.text, told.status) == ("[q]", "success")
        assert told.artifact["plan"]["subtasks"][0]["text"] == "q"
        assert told.artifact["cost_usd"] == "0.000002"


async def test_an_agents_model_is_told_why_a_query_is_refused_or_unanswered() -> None:
    refusing = create_r2_graph(pool_of(echo(), language="lab"))
    broke = create_r2_graph(pool_of(echo()), budget_usd=0)
    for graph, why in ((refusing, "outside the lab's language"), (broke, "stop reason: budget")):
        agent = create_agent(tool_user("solve", query="Who?"), [graph.as_tool(name="solve")])
        for result in (
            agent.invoke({"messages": [HumanMessage("q")]}),
            await agent.ainvoke({"messages": [HumanMessage("q")]}),
        ):
            assert why in result["messages"][-1].text


async def test_a_tool_whose_plans_are_reviewed_pauses_the_agent() -> None:
    solve = create_r2_graph(pool_of(echo()), review_plan=True).as_tool(name="solve")
    agent = create_agent(tool_user("solve", query="q"), [solve], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    [paused] = (await agent.ainvoke({"messages": [HumanMessage("Solve q.")]}, config))[
        "__interrupt__"
    ]
    assert paused.value["action_requests"][0]["description"] == "s1 (m1): q"
    approved: Any = Command(resume={"decisions": [{"type": "approve"}]})
    result = await agent.ainvoke(approved, config)
    assert result["messages"][-1].text == "It is [q]."


def test_a_tool_with_arguments_of_ones_own_is_langchains() -> None:
    graph = create_r2_graph(pool_of(echo()))
    with pytest.warns(LangChainBetaWarning):
        mine = graph.as_tool(name="solve", description="Solve it.", arg_types={"query": str})
    assert mine.invoke({"query": "q"})["answer"] == "[q]"


STRICT = """
import warnings
warnings.simplefilter("error")
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from r2graph import create_r2_graph
from tests.fakes import echo, pool_of
from tests.test_composition import add, chat_of
from tests.chat_fakes import tool_user

config = {"configurable": {"thread_id": "1"}}
builder = StateGraph(MessagesState)
builder.add_node("r2", create_r2_graph(pool_of(echo())))
builder.add_edge(START, "r2")
node = builder.compile(checkpointer=InMemorySaver())
tools = create_agent(chat_of(tool_user("add", a=1, b=2)), [add], checkpointer=InMemorySaver())
solve = create_r2_graph(pool_of(echo())).as_tool(name="solve")
graph_as_tool = create_agent(tool_user("solve", query="q"), [solve], checkpointer=InMemorySaver())
plain = create_agent(chat_of(echo()), checkpointer=InMemorySaver())
for graph in (node, tools, graph_as_tool, plain):
    for query in "ab":
        graph.invoke({"messages": [HumanMessage(query)]}, config)
    graph.get_state(config)
    list(graph.get_state_history(config))
    print(len(graph.get_state(config).values["messages"]))
"""


def test_strict_checkpoints_hold_all_of_it_without_a_warning() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRICT],
        cwd=ROOT,
        env={"LANGGRAPH_STRICT_MSGPACK": "true", "PATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["4", "8", "8", "4"]
