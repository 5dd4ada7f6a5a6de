"""A human approves, edits or rejects a plan before any step is run and paid for.

    python examples/human_review.py

On the lab pool. A review is an interrupt: with a checkpointer that keeps its data (SQLite,
PostgreSQL) the decision may come days later, and to another process.
"""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from r2graph import create_r2_graph

QUERY = "( 12 + 7 ) * 6"
APPROVE = {"type": "approve"}


def edit(plan: dict[str, Any], members: dict[str, str]) -> dict[str, Any]:
    args = {"plan": plan, "members": members}
    return {"type": "edit", "edited_action": {"name": "run_plan", "args": args}}


OTHER_PLAN = {
    "subtasks": [
        {"id": "s1", "text": "12 * 6"},
        {"id": "s2", "text": "7 * 6"},
        {"id": "s3", "text": "{s1} + {s2}"},
    ]
}
REVIEWS = {
    "approved": [APPROVE],
    "edited: another plan, its first step on the strongest model": [edit(OTHER_PLAN, {"s1": "m9"})],
    "edited so that it cannot be done: asked again": [edit(OTHER_PLAN, {"s1": "m10"}), APPROVE],
    # Planners that are prompted are told the reason; the lab's draws another plan. Where it draws
    # the same one, or no round is left (`Limits.max_rounds`), the run ends without an answer.
    "rejected": [{"type": "reject", "message": "sums last"}, {"type": "reject"}],
}


def main() -> None:
    graph = create_r2_graph("lab", router="lab", review_plan=True, checkpointer=InMemorySaver())
    for title, decisions in REVIEWS.items():
        print(title)
        thread = RunnableConfig(configurable={"thread_id": title})
        result = graph.invoke(QUERY, thread)
        for decision in decisions:
            if "__interrupt__" not in result:
                break
            [interrupt] = result["__interrupt__"]
            [action] = interrupt.value["action_requests"]
            print("  ?", *action["description"].splitlines(), sep="\n    ")
            print("  ->", decision["type"])
            result = graph.invoke(Command(resume={"decisions": [decision]}), thread)
        members = {name: step["member"] for name, step in result["steps"].items()}
        print(f"  {result['answer'] or 'no answer'} ({result['stop_reason']}), by {members}")
        print(f"  ${result['cost_usd']}, ${result['router_cost_usd']} of it for the router")


if __name__ == "__main__":
    main()
