"""What a lab query is: its text, the right answer, the oracle plan and what each step of that plan
should say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from r2graph.plan import Plan, fill


@dataclass(frozen=True)
class Task:
    """A query with its gold answer, oracle plan and the kind of each oracle subtask (for the
    capability table).
    """

    family: str
    query: str
    answer: str
    plan: Plan
    outputs: Mapping[str, str]
    kinds: Mapping[str, str]

    def steps(self) -> list[tuple[str, str, str]]:
        """`(kind, prompt with references filled, right output)` of each oracle step, in order."""
        return [
            (self.kinds[s.id], fill(s.text, self.outputs), self.outputs[s.id])
            for s in self.plan.subtasks
        ]


def is_test(query: str) -> bool:
    """Whether a generated query belongs to the test split: a fifth of all queries, by hash, so no
    list is needed.
    """
    return sha256(query.encode()).digest()[0] < 52
