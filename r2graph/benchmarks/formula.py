r"""Whether two formulas are equal, by the library `math-verify`, in a process of its own.

The formulas are read as LaTeX only: that is a grammar, while SymPy's own reader runs its input as
Python. But a short formula can take for ever (`9^{9^{9}}`), inside one operation that no signal
handler interrupts. So a worker process with limits of CPU time and memory compares, which the
system ends; such an answer is wrong, and the next one gets a new worker.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

from r2graph.errors import ConfigError, MissingExtraError

MAX_CHARS = 1_000  # of a formula
WORKER = Path(__file__).with_name("formula_worker.py")


def require_math() -> None:
    """Raise `MissingExtraError` now rather than at the first answer."""
    if find_spec("math_verify") is None:
        raise MissingExtraError("the grader of formulas", "eval")


def equal(gold: Sequence[str], said: str) -> bool:
    """Whether a formula equals one of `gold`; each in LaTeX or as one types it (`sqrt(x)/2`).

    May take seconds: the worker's start, and all its CPU time for a hostile formula.
    """
    if len(said) > MAX_CHARS:
        return False
    answer, right = latex(said), [latex(each) for each in gold]
    if any(_squeezed(each) == _squeezed(answer) for each in right):
        return True
    return bool(answer) and _worker.equal(right, answer)


class _Worker:
    """At most one process, started when needed; threads take turns."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = Lock()

    def equal(self, gold: list[str], answer: str) -> bool:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._close()
                self._process = _started()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            verdict = ""
            try:
                self._process.stdin.write(json.dumps([gold, answer]) + "\n")
                self._process.stdin.flush()
                verdict = self._process.stdout.readline()
            finally:
                if not verdict:  # it has reached a limit, or its verdict would be read later
                    self._close()
            return verdict == "True\n"

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_worker = _Worker()
atexit.register(_worker.close)


def _started() -> subprocess.Popen[str]:
    require_math()
    process = subprocess.Popen(
        [sys.executable, "-P", str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},  # and no keys
        text=True,
        start_new_session=True,  # the user's Ctrl-C is not for it
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        process.communicate()
        raise ConfigError("the grader of formulas does not start: install math-verify anew")
    return process


_SIGNS = str.maketrans({"−": "-", "–": "-", "·": "*", "×": "*", "π": r"\pi ", "∞": r"\infty "})
_DELIMITERS = re.compile(r"\\[\[\]()]|\\[,;!]|\\displaystyle|(?<!\\)\$")
_CALL = re.compile(r"(?<![\\A-Za-z])(sqrt|C)\(|([\^_])\(")
_TYPED = {
    "sqrt": r"\sqrt{{{}}}",
    "C": r"\binom{{{}}}{{{}}}",
    "^": "^{{{}}}",
    "_": "_{{{}}}",
}


def latex(text: str) -> str:
    """A formula without delimiters, what one types (`sqrt(x)`, `C(n, 2)`, `2^(n+1)`) in LaTeX."""
    text = _DELIMITERS.sub("", text.translate(_SIGNS)).replace("**", "^")
    text = re.sub(r"(?<!\\)\bsum_", r"\\sum_", text)
    return re.sub(r"([\^_])(-?\d\d+|-\d)", r"\1{\2}", _typed(text)).strip().rstrip(".")


def _typed(text: str) -> str:
    """Calls with their arguments, from the last to the first, so that inner ones come first."""
    for call in reversed(list(_CALL.finditer(text))):
        name, end = call[1] or call[2], _end(text, call.end())
        arguments = text[call.end() : end].split(",") if name == "C" else [text[call.end() : end]]
        if end < len(text) and len(arguments) == (2 if name == "C" else 1):
            arguments = [each.strip() for each in arguments]
            text = text[: call.start()] + _TYPED[name].format(*arguments) + text[end + 1 :]
    return text


def _end(text: str, start: int) -> int:
    """Where the parenthesis that was opened before `start` is closed; the text's end if nowhere."""
    depth = 1
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return len(text)


def _squeezed(text: str) -> str:
    text = text.replace(r"\left", "").replace(r"\right", "").replace(r"\dfrac", r"\frac")
    return "".join(text.split())
