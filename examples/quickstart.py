"""The lab pool: a plan, who does each step, the bill, a stream of events, and the quality knob.

    python examples/quickstart.py

Nine small models and a router come with the package: it needs no key, no download and no GPU.
"""

from __future__ import annotations

from decimal import Decimal

from r2graph import create_r2_graph, load_pool

QUERY = "( 12 + 7 ) * 6 - -3"
KNOB = ("25 + 4 - 70", "What is the capital of the country where Deyang is?")


def main() -> None:
    graph = create_r2_graph(load_pool("lab"), router="lab")

    result = graph.invoke(QUERY)
    print(f"{QUERY} = {result['answer']}  ({result['stop_reason']})")

    print("\nplan, and who did each step")
    for step in result["steps"].values():
        chosen = result["allocation"][step["id"]]["member"]
        print(
            f"  {step['id']}: {step['text']:10} {chosen} chosen, {step['member']} did it:", end=""
        )
        print(f" {step['prompt']} = {step['output']}")

    print("\nbill")
    for name, use in result["usage"].items():
        print(f"  {name:15} {use['calls']} calls  ${use['cost_usd']}")
    cost, estimate = Decimal(result["cost_usd"]), Decimal(result["counterfactual_usd"])
    print(f"  ${cost} in all, ${result['router_cost_usd']} of it for the router")
    print(f"  ${estimate} is an estimate of the same steps, all on the strongest model")

    print("\nthe same as a stream")
    for event in graph.stream("jump opposite left twice and walk right", stream_mode="custom"):
        match event["event"]:
            case "attempt":
                print(f"  {event['step']} {event['member']}: {event['output']}")
            case "answer":
                print(f"  answer: {event['answer']}")
            case other:
                print(f"  {other}")

    print("\nthe knob: how sure the router should be of each step")
    for query in KNOB:
        for quality in (0.1, 0.5, 0.9):
            result = graph.invoke(query, context={"quality": quality})
            members = [step["member"] for step in result["steps"].values()]
            print(f"  {quality}  ${result['cost_usd']:15} {' '.join(members)}  {result['answer']}")


if __name__ == "__main__":
    main()
