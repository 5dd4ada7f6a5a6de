"""The benchmarks by name: their questions, always the same ones, and who grades the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from r2graph.benchmarks import mathematics, puzzles, words
from r2graph.benchmarks.formula import require_math
from r2graph.benchmarks.question import Question, text_id
from r2graph.benchmarks.source import Source
from r2graph.errors import BenchmarkFileError, ConfigError, R2Error
from r2graph.lab import benchmarks as lab
from r2graph.sandbox import require_sandbox

SIZE = 200  # default number of questions, as in the paper


@dataclass(frozen=True)
class Benchmark:
    """How its questions are read and their answers graded."""

    read: Callable[[Source], Iterator[Question]]
    right: Callable[[Any, str], bool]
    """Of the gold and what a model answered."""
    require: Callable[[], None] = lambda: None
    """Raises a `ConfigError` if answers could not be graded here."""
    usable: Callable[[Question], bool] = lambda _: True


_CATALOGUE = {
    "p3": Benchmark(puzzles.p3, puzzles.p3_right, require_sandbox, puzzles.runs),
    **{name: Benchmark(words.scan, words.scan_right) for name in words.SCAN_FILES},
    "math": Benchmark(mathematics.math, mathematics.math_right, require_math),
    "champ": Benchmark(mathematics.champ, mathematics.champ_right, require_math),
    "csqa": Benchmark(words.csqa, words.csqa_right),
    "musique": Benchmark(words.musique, words.exact),
    "musique-closed-book": Benchmark(words.musique_closed_book, words.exact),
    "gsm8k": Benchmark(mathematics.gsm8k, mathematics.gsm8k_right),
    "strategyqa": Benchmark(words.strategyqa, words.yes_no_right),
}
NAMES = (*lab.NAMES, *_CATALOGUE)


def load(name: str, *, data: Path | None = None, limit: int | None = None) -> list[Question]:
    """The first `limit` questions of a benchmark, by default 200; a smaller limit is a prefix.

    They come in order of the hash of benchmark and id, and a query that occurs twice counts once.
    `data` holds the files of each benchmark in a folder of its name; without it they come from the
    Hugging Face hub. The lab's benchmarks need neither, and have their own order and default.

    Raises `ConfigError` if the files are not there or answers could not be graded here:
    `BenchmarkFileError`, `MissingExtraError`, `SandboxUnavailable`.
    """
    if name in lab.NAMES:
        tasks = lab.tasks(name, limit)
        return [Question(name, text_id(task.query), task.query, task.answer) for task in tasks]
    if name not in _CATALOGUE:
        raise ConfigError(f"no benchmark is called {name!r}: there are {', '.join(NAMES)}")
    benchmark = _CATALOGUE[name]
    benchmark.require()
    folder = None if data is None else data / name.partition("-")[0]
    try:
        questions = list(benchmark.read(Source(name, folder)))
    except R2Error:
        raise
    except (AttributeError, EOFError, LookupError, OSError, TypeError, ValueError) as error:
        raise BenchmarkFileError(
            f"the files of {name} do not read ({type(error).__name__}): take them as their "
            "authors publish them (docs/benchmarks.md says where they are from)"
        ) from None
    distinct = {question.query: question for question in reversed(questions)}
    ordered = sorted(distinct.values(), key=_place)
    return list(islice(filter(benchmark.usable, ordered), SIZE if limit is None else limit))


def _place(question: Question) -> str:
    return sha256(f"{question.benchmark} {question.id}".encode()).hexdigest()


def grade(question: Question, answer: str | None) -> bool:
    """Whether an answer in free text is right.

    An answer is what its last line `answer: …` says; else what each grader finds in the text. May
    take seconds (p3, math, champ): call it in a thread where others wait.
    """
    if answer is None:
        return False
    if question.benchmark in lab.NAMES:
        return answer.split() == str(question.gold).split()
    return _CATALOGUE[question.benchmark].right(question.gold, answer)


def graded_f1(question: Question, answer: str | None) -> float:
    """The share of right words in an answer to MuSiQue, which is reported besides."""
    benchmark = _CATALOGUE.get(question.benchmark)
    if benchmark is None or benchmark.right is not words.exact:
        raise ConfigError(f"{question.benchmark} has no F1: MuSiQue has")
    gold: Any = question.gold
    return 0.0 if answer is None else words.f1(gold, answer)
