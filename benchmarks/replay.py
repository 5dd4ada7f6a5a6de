"""How fast recorded queries are routed again by a fitted router, and how fast one is fitted.

    python -m benchmarks.replay [--replay NAME] [--data DIRECTORY] [--queries N]

A query is routed as in a run, one at a time: features, chances, choice. No model is asked. The
bar is 200 a second; the tests' excerpts are read unless `--data` names a full copy.
"""

from __future__ import annotations

import argparse
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter, process_time

from r2graph.allocate import AllocateContext
from r2graph.feature_allocator import FeatureAllocator
from r2graph.features import grams, traits
from r2graph.plan import Subtask
from r2graph.pool import load_pool
from r2graph.replay.fit import fit
from r2graph.replay.importers import REPLAYS, load_replay

EXCERPTS = Path(__file__).parent.parent / "tests" / "data" / "replay"
BAR = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--replay", choices=REPLAYS, default="routellm-gsm8k")
    parser.add_argument("--data", type=Path, default=EXCERPTS)
    parser.add_argument("--queries", type=int, default=5_000)
    arguments = parser.parse_args()

    replay = load_replay(arguments.replay, arguments.data)
    began = process_time()
    allocator = FeatureAllocator(fit(replay).model)
    fitting = process_time() - began

    price = {"input_per_mtok": 1, "output_per_mtok": 1}
    members = [{"name": name, "model": "openai:x", "price": price} for name in replay.models]
    pool = load_pool({"name": "replayed", "members": members})
    queries = list(islice(cycle(replay.texts), arguments.queries))

    began, began_cpu = perf_counter(), process_time()
    for query in queries:
        allocator.allocate([Subtask(id="s1", text=query)], AllocateContext(pool, query))
    wall, cpu = perf_counter() - began, process_time() - began_cpu
    began_cpu = process_time()
    for query in queries:
        grams(query), traits(query)
    reading = process_time() - began_cpu

    print(f"fitted on {len(replay)} questions and {len(pool)} members in {fitting:.1f} s of CPU")
    print(f"{'queries':>9} {'a second':>9} {'x bar':>6} {'a CPU second':>13} {'features':>9}")
    a_second = len(queries) / wall
    print(
        f"{len(queries):9,} {a_second:9,.0f} {a_second / BAR:6.1f} {len(queries) / cpu:13,.0f} "
        f"{reading / cpu:9.0%}"
    )


if __name__ == "__main__":
    main()
