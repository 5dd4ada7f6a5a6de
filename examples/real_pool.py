"""A pool of your own: a small model on your vLLM server first, OpenAI for what it cannot do.

    export OPENAI_API_KEY=…  VLLM_BASE_URL=http://127.0.0.1:8000/v1
    python examples/real_pool.py ["a question"]

The text in POOL may as well be a file: `load_pool("pool.yaml")`.
"""

from __future__ import annotations

import sys

import yaml

from r2graph import R2Error, create_r2_graph, load_pool

POOL = """
name: mine
decomposer: large                # plans; short questions are tried without a plan
judge: large                     # checks what `small` says
members:                         # cheapest and least capable first
  - name: small
    model: openai:Qwen/Qwen2.5-7B-Instruct
    model_kwargs: {base_url: "${VLLM_BASE_URL}"}       # is sent no key; `key_env` would name one
    price: {input_per_mtok: 0.05, output_per_mtok: 0.10}   # what your hardware costs
    tags: [local]
  - name: large
    model: openai:gpt-6.1-sol    # the price is known, the key is in OPENAI_API_KEY
    model_kwargs: {reasoning_effort: low}
    tags: [cloud]
"""
QUERY = (
    "Which river is longer, the Danube or the Rhine, and by how many kilometres? "
    "Answer in one sentence."
)


def main() -> None:
    query = sys.argv[1] if len(sys.argv) > 1 else QUERY
    try:
        graph = create_r2_graph(load_pool(yaml.safe_load(POOL)), budget_usd="0.05")
        result = graph.invoke(query)
    except R2Error as error:  # says what to do: a key is missing, a server is down, …
        sys.exit(f"{type(error).__name__}: {error}")
    for step in result["steps"].values():
        print(f"{step['id']}: {step['prompt']}")
        for attempt in step["attempts"]:
            print(f"  {attempt['member']}: {attempt['output']} ({attempt['reason']})")
    print(result["answer"])
    for name, use in result["usage"].items():
        print(f"  {name}: {use['calls']} calls, ${use['cost_usd']}")
    print(f"  ${result['cost_usd']} in all; {result['local_share']:.0%} of the steps ran at home")
    print(f"  ${result['counterfactual_usd']}: an estimate of the same steps, all on large")


if __name__ == "__main__":
    main()
