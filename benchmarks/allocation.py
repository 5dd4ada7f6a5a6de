"""What choosing models costs: a four-step allocation against one bare forward pass.

    python -m benchmarks.allocation [--router DIRECTORY] [--repeats N]

The allocation is the whole path of a run: prompt, door, chat model, decoding, log-probabilities,
slots. The forward pass reads the same prompt once, in transformers alone. They take turns, on one
torch thread, so that what else the machine does slows both. It slows the allocation more, which
changes threads: on a busy machine look at the CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from time import perf_counter, process_time

import torch

from r2graph import Limits, load_pool, load_router
from r2graph.allocate import AllocateContext
from r2graph.calls import ModelCall
from r2graph.door import Door, drive
from r2graph.lab import language
from r2graph.limits import Meter
from r2graph.local.engine import load

QUERY = "( 12 + 7 ) * ( 5 - 38 ) - -3"
STEPS = language.task(QUERY).plan.subtasks  # four
WARM_UP = 20


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of wall time, and of CPU time of all threads."""
    # Reading the CPU clock can cost a turn on a busy core: it stays outside of the wall time.
    began_cpu = process_time()
    began = perf_counter()
    work()
    ended = perf_counter()
    return (ended - began) * 1_000, (process_time() - began_cpu) * 1_000


def bare_forward(call: ModelCall) -> Callable[[], object]:
    """One forward pass over the prompt of an allocator's call."""
    model, tokenizer = load(Path(call.spec.chat.model), "cpu", "auto")
    turns = [{"role": "user", "content": str(call.messages[0].text)}]
    ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False, return_tensors="pt"
    )

    @torch.inference_mode()
    def forward() -> object:
        return model(ids)

    return forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--router", default="lab")
    parser.add_argument("--repeats", type=int, default=1_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    allocator = load_router(arguments.router).allocator
    context = AllocateContext(load_pool("lab"), QUERY)

    def allocate() -> object:
        return drive(allocator.allocate(STEPS, context), Door(Meter(Limits())))

    forward = bare_forward(next(allocator.allocate(STEPS, context)))
    rows: dict[str, list[tuple[float, float]]] = {"allocation": [], "forward pass": []}
    for _ in range(WARM_UP + arguments.repeats):
        rows["allocation"].append(timed(allocate))
        rows["forward pass"].append(timed(forward))

    print(f"{arguments.repeats} of each; ms     p50     p99  CPU p50")
    medians = {}
    for name, times in rows.items():
        wall, cpu = (quantiles(column, n=100) for column in zip(*times[WARM_UP:], strict=True))
        medians[name] = wall[49], cpu[49]
        print(f"{name:16} {wall[49]:7.2f} {wall[98]:7.2f} {cpu[49]:8.2f}")
    wall, cpu = (
        own / bare for own, bare in zip(medians["allocation"], medians["forward pass"], strict=True)
    )
    print(f"{'multiple':16} {wall:7.2f} {'':7} {cpu:8.2f}")


if __name__ == "__main__":
    main()
