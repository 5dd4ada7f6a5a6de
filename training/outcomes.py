"""What each model says to each prompt, asked once and kept: search and labels run on recorded
outcomes of the real pool.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import track

from r2graph.local.engine import Engine, open_engine
from r2graph.local.generation import Options

MODELS = tuple(f"m{i}" for i in range(1, 10))  # slot 1 to slot 9


@dataclass(frozen=True)
class Outcome:
    """A model's greedy answer to a prompt, the mean probability of its tokens, and the tokens that
    it is billed for.
    """

    model: str
    prompt: str
    text: str
    confidence: float
    tokens: int


class Outcomes:
    """Outcomes by `(model, prompt)`, appended to a JSON-lines file as they come in."""

    def __init__(self, pool: Path, file: Path) -> None:
        self._pool = pool
        self._file = file
        self._engines: dict[str, Engine] = {}
        self._known: dict[tuple[str, str], Outcome] = {}
        if file.exists():
            for line in file.read_text().splitlines():
                outcome = Outcome(**json.loads(line))
                self._known[outcome.model, outcome.prompt] = outcome
        self.hits = self.misses = 0

    def get(self, model: str, prompt: str) -> Outcome:
        return self.get_all(model, [prompt])[0]

    def get_all(self, model: str, prompts: Sequence[str]) -> list[Outcome]:
        """The outcomes for `prompts`; those not yet known are asked together."""
        missing = [p for p in dict.fromkeys(prompts) if (model, p) not in self._known]
        self.misses += len(missing)
        self.hits += len(prompts) - len(missing)
        if missing:
            self._ask(model, missing)
        return [self._known[model, prompt] for prompt in prompts]

    def _ask(self, model: str, prompts: Sequence[str]) -> None:
        if model not in self._engines:
            self._engines[model] = open_engine(str(self._pool / model), "auto", "float32", 128)
        options = Options(logprobs=True, max_tokens=64)
        futures = [
            self._engines[model].submit([{"role": "user", "content": prompt}], options)
            for prompt in prompts
        ]
        with self._file.open("a") as file:
            for prompt, future in zip(prompts, futures, strict=True):
                answer = future.result()
                mean = sum(t["logprob"] for t in answer.logprobs) / len(answer.logprobs)
                tokens = answer.prompt_tokens + answer.output_tokens
                outcome = Outcome(model, prompt, answer.text, math.exp(mean), tokens)
                self._known[model, prompt] = outcome
                file.write(json.dumps(asdict(outcome)) + "\n")

    def fill(self, prompts: Iterable[str]) -> None:
        """Ask every model every prompt: the outcome matrix."""
        wanted = list(dict.fromkeys(prompts))
        for model in track(MODELS, description=f"outcomes of {len(wanted):,} prompts"):
            self.get_all(model, wanted)


def prices(pool: Path) -> list[float]:
    """Dollars a token, by slot: one per million tokens for each million parameters."""
    cards = [json.loads((pool / model / "training.json").read_text()) for model in MODELS]
    return [card["parameters"] / 1e12 for card in cards]
