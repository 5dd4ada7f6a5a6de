"""Compares formulas for `formula.py`, line by line; the system ends it at its limits.

It is run as a file, so that a worker takes no memory for the rest of r2graph.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
from contextlib import suppress

CPU_S = 3.0  # a comparison
MEMORY_BYTES = 2**30


def main() -> None:
    from math_verify import (  # type: ignore[import-untyped]
        LatexExtractionConfig,
        parse,
        verify,
    )

    def parsed(formula: str) -> list[object]:
        found: list[object] = parse(f"${formula}$", [LatexExtractionConfig()], parsing_timeout=None)
        return found

    logging.disable()  # the library logs what it compares
    with suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print("ready", flush=True)  # noqa: T201 - `formula.py` waits for it
    for line in sys.stdin:
        gold, answer = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_S)  # kills: its signal has no handler
        said = parsed(answer)
        right = any(verify(parsed(each), said, timeout_seconds=None) for each in gold)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(right, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
