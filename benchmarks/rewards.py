"""How much quicker allocations are rewarded when the outcome cache knows every reply.

    python -m benchmarks.rewards [--batches N] [--prompts N] [--generations N]

A batch is a step of GRPO: completions that the router's own allocator samples at temperature 1, of
prompts made from training queries. Each is rewarded in four ways that take turns, so that what else
the machine does slows all of them. Replies are the pool's (live) or come from an outcome cache that
another run has filled. Of completions that say the same the run is made again or remembered: as in
training, within a batch and from the batches before. The models are loaded before.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch

from r2graph import ModelPool, OutcomeCache, load_pool, load_router
from r2graph.plan import Plan
from r2graph.pool import ModelSpec
from r2graph.router import Router
from training.graph_rewards import AllocatorReward
from training.planned import planned
from training.rewards import Rollout
from training.rl_data import Row, allocator_rows, tasks
from training.rollouts import Given, Rollouts, rollout

QUERIES = {"scan": 20, "arith": 200, "geo": 250}  # in the shares of training/configs/lab.yaml
SEED = 1
MAX_TOKENS = 24  # of a completion

Batch = Mapping[str, Sequence[Any]]


class Forgetful(Rollouts):
    """Makes every run that it is asked for; the reference once for each plan."""

    async def run(self, wanted: Sequence[Given], plans: Sequence[Plan]) -> list[Rollout | None]:
        strongest = [
            self.strongest(given.query, plan, given.gold)
            for given, plan in zip(wanted, plans, strict=True)
        ]
        distinct = list(dict.fromkeys(strongest))
        ended = await self.make([*wanted, *distinct])
        reference = dict(zip(distinct, ended[len(wanted) :], strict=True))
        return [
            rollout(own, reference[given])
            for own, given in zip(ended[: len(wanted)], strongest, strict=True)
        ]


def batch(prompts: Sequence[Row], allocator: ModelSpec, generations: int) -> Batch:
    """What the reward is called with: a group of completions of each prompt, and its columns."""
    group = [row for row in prompts for _ in range(generations)]

    async def sampled() -> list[str]:
        options = {"temperature": 1.0, "max_tokens": MAX_TOKENS}
        calls = (
            allocator.chat.ainvoke(row["prompt"], **options, seed=seed)
            for seed, row in enumerate(group)
        )
        return [str(message.text) for message in await asyncio.gather(*calls)]

    said = [[{"role": "assistant", "content": text}] for text in asyncio.run(sampled())]
    columns = {name: [row[name] for row in group] for name in ("query", "plan", "gold", "level")}
    return columns | {"completions": said}


def rates(rollouts: Rollouts, completions: Batch) -> tuple[float, float]:
    """Rewards a second of wall time, and a second of CPU time of all threads."""
    reward = AllocatorReward(rollouts)
    began, began_cpu = perf_counter(), process_time()
    rewards = asyncio.run(reward(**completions))
    wall, cpu = perf_counter() - began, process_time() - began_cpu
    if None in rewards:
        raise RuntimeError("a model of the pool failed")
    return len(rewards) / wall, len(rewards) / cpu


def measure(
    pool: ModelPool, router: Router, batches: Sequence[Batch], file: Path
) -> dict[str, list[tuple[float, float]]]:
    with OutcomeCache(file) as filled:
        filling = Rollouts(pool, router, filled)
        for each in batches:
            rates(filling, each)
    with OutcomeCache(file) as one, OutcomeCache(file) as other:
        ways = {
            "live": Forgetful(pool, router, None),
            "live, remembered": Rollouts(pool, router, None),
            "cached": Forgetful(pool, router, one),
            "cached, remembered": Rollouts(pool, router, other),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for each in batches:
            for name, rollouts in ways.items():
                found[name].append(rates(rollouts, each))
    return found


def compared(own: Sequence[float], live: Sequence[float]) -> tuple[float, float]:
    """The median of some rates, and that of their multiples of the live ones."""
    return median(own), median(a / b for a, b in zip(own, live, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--router", default="lab")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=16, help="of a batch")
    parser.add_argument("--generations", type=int, default=16, help="completions of a prompt")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    pool, router = load_pool("lab"), load_router(arguments.router)
    n = arguments.prompts
    with TemporaryDirectory() as folder:
        with OutcomeCache(Path(folder) / "plans") as plans:
            prompts = allocator_rows(planned(pool, router, tasks(QUERIES, SEED), plans), SEED)
        batches = [
            batch(prompts[i * n : (i + 1) * n], router.allocator.model, arguments.generations)
            for i in range(arguments.batches)
        ]
        found = measure(pool, router, batches, Path(folder) / "outcomes")

    size = n * arguments.generations
    print(f"{len(batches)} batches of {size}; medians  a second  x live   a CPU second  x live")
    for name, each in found.items():
        columns = zip(*each, strict=True), zip(*found["live"], strict=True)
        (wall, more), (cpu, more_cpu) = map(compared, *columns)
        print(f"{name:27} {wall:8.0f} {more:7.1f} {cpu:14.0f} {more_cpu:7.1f}")


if __name__ == "__main__":
    main()
