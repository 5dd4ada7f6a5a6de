"""P3, Python Programming Puzzles: find an input for which a function `sat` returns `True`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from r2graph.benchmarks.question import Question, stated
from r2graph.benchmarks.source import Source
from r2graph.errors import ConfigError, SandboxUnavailable
from r2graph.sandbox import check_answer

QUERY = """\
Find a value for the first argument of this Python function such that it returns True. The other
arguments keep their defaults.

```python
{}
```

Answer with the value as a Python literal in a last line `answer: …`, or end with one ```python
block that defines a function `sol()` which returns the value. It may use the standard library and
has five seconds."""


def p3(source: Source) -> Iterator[Question]:
    """The puzzles of the test split."""
    test = set(source.json("split.json")["test"])
    for puzzle in source.json("puzzles.json"):
        if puzzle["name"].partition(":")[0] in test:
            sat = puzzle["sat"]
            yield Question(source.benchmark, puzzle["name"], QUERY.format(sat), sat)


def runs(question: Question) -> bool:
    """Whether the sandbox can judge answers: not those to a puzzle that runs its answer as code."""
    try:
        check_answer(str(question.gold), "None")
    except SandboxUnavailable:
        raise
    except ConfigError:
        return False
    return True


_BLOCK = re.compile(r"^[ \t]*```(?:python|py)?[ \t]*\n(.*?)^[ \t]*```", re.M | re.S)


def p3_right(sat: str, answer: str) -> bool:
    """What `sat` says, in the sandbox, of the last block of code, else of the stated answer, else
    of the whole text.
    """
    blocks = _BLOCK.findall(answer)
    return check_answer(sat, blocks[-1] if blocks else stated(answer) or answer)
