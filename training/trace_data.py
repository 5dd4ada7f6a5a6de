"""Traces become SFT data (R2-Reasoner, stage 1): the best of the plans that were tried, and the
cheapest allocation that was right.

    python -m training.trace_data --traces runs/traces.jsonl --out runs/traces-data

Writes `decomposer.jsonl` and `allocator.jsonl` in TRL's conversational prompt/completion form.

- Decomposer: rejection sampling. Of a query's plans the right one of the lowest composite score
  (`training/rejection.py`).
- Allocator: of a query's right runs of the same plan at the same quality level the cheapest; the
  label of a step is the slot of the member whose output was accepted.

Queries without a right run give nothing, and are counted.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from langchain_core.messages import HumanMessage

from r2graph.allocate import quality_level, slots_prompt, slots_text
from r2graph.decompose import plan_prompt
from r2graph.plan import Plan, render_text
from r2graph.pool import N_SLOTS
from r2graph.trace import Trace, TracedStep, read_traces
from training.rejection import Sample, select
from training.rows import row


def by_query(traces: Iterable[Trace]) -> dict[str, list[Trace]]:
    """Graded traces that got as far as a plan, by query."""
    groups: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        if trace.plan is not None and trace.right is not None:
            groups[trace.query].append(trace)
    return groups


def decomposer_rows(groups: dict[str, list[Trace]]) -> Iterator[str]:
    """A row for each query of which some plan was right."""
    for query, traces in groups.items():
        best = select([_sample(trace) for trace in traces])
        if best is not None:
            yield row([HumanMessage(plan_prompt(query))], render_text(best.plan))


def _sample(trace: Trace) -> Sample:
    assert trace.plan is not None
    return Sample(trace.plan, bool(trace.right), _pool_cost(trace))


def _pool_cost(trace: Trace) -> Decimal:
    overhead = Decimal(trace.router_cost_usd) + Decimal(trace.verifier_cost_usd)
    return Decimal(trace.cost_usd) - overhead


def allocator_rows(groups: dict[str, list[Trace]]) -> Iterator[str]:
    """A row for each plan and quality level, and one for each step asked about again."""
    for traces in groups.values():
        alike: dict[tuple[Plan, int], list[Trace]] = defaultdict(list)
        for trace in traces:
            if trace.right and trace.plan is not None:
                alike[trace.plan, quality_level(trace.quality)].append(trace)
        for (_, level), right in alike.items():
            yield from _allocation(min(right, key=_pool_cost), level)


def _allocation(trace: Trace, level: int) -> Iterator[str]:
    accepted = [_accepted(step) for step in trace.steps]
    if None in accepted:
        return
    slots = [
        (_slot(trace, member), step.choice.check)
        for step, member in zip(trace.steps, accepted, strict=True)
        if member
    ]
    texts = [step.text for step in trace.steps]
    yield row([HumanMessage(slots_prompt(texts, level))], slots_text(slots))
    for step, slot in zip(trace.steps, slots, strict=True):
        if step.prompt != step.text:
            yield row([HumanMessage(slots_prompt([step.prompt], level))], slots_text([slot]))


def _accepted(step: TracedStep) -> str | None:
    """The member whose output passed, or was at least not rejected; `None` if there is none."""
    passed = [a.member for a in step.attempts if a.output is not None and a.ok is not False]
    return passed[-1] if passed else None


def _slot(trace: Trace, member: str) -> int:
    """The slot of a member, ranks being spread evenly as in `slot_to_member`."""
    gaps = max(1, len(trace.members) - 1)
    return 1 + round(trace.members.index(member) * (N_SLOTS - 1) / gaps)


def write(path: Path, rows: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    groups = by_query(read_traces(arguments.traces))
    plans, allocations = list(decomposer_rows(groups)), list(allocator_rows(groups))
    write(arguments.out / "decomposer.jsonl", plans)
    write(arguments.out / "allocator.jsonl", allocations)
    print(
        f"{len(groups):,} queries, {len(plans):,} with a right plan; "
        f"{len(plans):,} rows for the decomposer, {len(allocations):,} for the allocator"
    )


if __name__ == "__main__":
    main()
