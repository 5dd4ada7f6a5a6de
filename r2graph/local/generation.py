"""One request to a local model: what it asks, what it has said so far, and who waits for it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Literal, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]


class Options(BaseModel):
    """What may be set for a model, and again for a single call."""

    model_config = ConfigDict(extra="forbid")

    max_tokens: int | None = Field(default=None, gt=0)
    """Most tokens to generate, hidden ones included; None: as many as the model's context holds."""
    temperature: float = Field(default=0.0, ge=0.0)
    """0 takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Draw from the smallest set of tokens that has this much of the probability."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The answer ends before the first of these."""
    seed: int | None = None
    """With a seed a prompt gets the same answer again, whatever else is in its batch."""
    logprobs: bool = False
    """Return each token's log-probability under the model, before temperature and top_p."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """How many of the likeliest tokens to return beside each token; implies `logprobs`."""
    timeout: float | None = Field(default=None, gt=0.0)
    """Seconds that a call may take, waiting for its turn included; then `TimeoutError`."""


class TokenLogprob(TypedDict):
    """A token and its log-probability, in OpenAI's form."""

    token: str
    logprob: float
    top_logprobs: NotRequired[list[TokenLogprob]]


@dataclass(frozen=True)
class Vocabulary:
    """What a request has to know of the tokenizer."""

    ends: frozenset[int]
    """The tokens that end an answer."""
    text: Callable[[list[int]], str]
    """The text of some tokens, without special ones."""
    name: Callable[[int], str]
    """The text of one token, special or not."""


@dataclass(frozen=True)
class Piece:
    """What has become visible since the last piece."""

    text: str
    logprobs: list[TokenLogprob]


@dataclass(frozen=True)
class Completion:
    """A finished answer; `output_tokens` and `logprobs` count hidden special tokens and the end."""

    text: str
    prompt_tokens: int
    output_tokens: int
    finish_reason: FinishReason
    logprobs: list[TokenLogprob]
    cpu_s: float
    """CPU time of the decoding thread; that of a batch is shared equally."""


class Generation:
    """One request, from its prompt to its completion.

    The decoding thread calls `accept` and `fail`. Anyone may cancel `future` at any time: the
    request then leaves its batch at the next step.
    """

    def __init__(
        self,
        prompt: list[int],
        limit: int,
        options: Options,
        vocabulary: Vocabulary,
        on_piece: Callable[[Piece], None] | None = None,
    ) -> None:
        self.prompt = prompt
        self.limit = limit
        self.options = options
        self.random = random.Random(options.seed)
        self.top_logprobs = options.top_logprobs or 0
        self.wants_logprobs = options.logprobs or self.top_logprobs > 0
        self.future: Future[Completion] = Future()
        self._vocabulary = vocabulary
        self._on_piece = on_piece
        self._deadline = time.monotonic() + options.timeout if options.timeout else None
        self.cpu_s = 0.0
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._sent_characters = self._sent_logprobs = 0

    def active(self) -> bool:
        """Whether somebody still waits for more."""
        if self._deadline and time.monotonic() > self._deadline:
            self.fail(TimeoutError(f"the local model did not finish in {self.options.timeout} s"))
        return not self.future.done()

    def accept(self, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> None:
        """Add the next token; the last one completes the future."""
        self._tokens.append(token)
        if self.wants_logprobs:
            self._logprobs.append(self._named(token, logprob, top[: self.top_logprobs]))
        finish: FinishReason | None = None
        if token in self._vocabulary.ends:
            finish = "stop"
        elif len(self._tokens) == self.limit:
            finish = "length"
        elif not self.options.stop and self._on_piece is None:
            return  # nobody looks at the text before it is complete
        text = self._vocabulary.text(self._tokens)
        if cuts := [at for stop in self.options.stop if (at := text.find(stop)) >= 0]:
            text, finish = text[: min(cuts)], "stop"
        self._send(text if finish else settled(text, self.options.stop), last=finish is not None)
        if finish and self._claim():
            counts = len(self.prompt), len(self._tokens)
            self.future.set_result(Completion(text, *counts, finish, self._logprobs, self.cpu_s))

    def fail(self, error: Exception) -> None:
        """End without an answer, unless the request has ended already."""
        if self._claim():
            self.future.set_exception(error)

    def _claim(self) -> bool:
        """Whether the outcome is still open; from here on it cannot be cancelled."""
        return not self.future.done() and self.future.set_running_or_notify_cancel()

    def _send(self, text: str, *, last: bool) -> None:
        fresh = self._logprobs[self._sent_logprobs :]
        if self._on_piece and (len(text) > self._sent_characters or (last and fresh)):
            self._on_piece(Piece(text[self._sent_characters :], fresh))
            self._sent_characters, self._sent_logprobs = len(text), len(self._logprobs)

    def _named(self, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> TokenLogprob:
        name = self._vocabulary.name
        return {
            "token": name(token),
            "logprob": logprob,
            "top_logprobs": [{"token": name(other), "logprob": value} for other, value in top],
        }


def settled(text: str, stop: Sequence[str]) -> str:
    """The part of an unfinished text that no later token can take back.

    Held back are a character of which some bytes are missing, and what may become a stop sequence.
    """
    text = text.rstrip("�")
    held = [n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
    return text[: len(text) - max(held, default=0)]
