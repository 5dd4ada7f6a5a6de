"""A loaded model directory, and the one thread that decodes for everyone who uses it."""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, cast

import torch
from jinja2 import TemplateError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from r2graph.errors import (
    ConfigError,
    EmptyQueryError,
    ModelFileError,
    PromptTooLongError,
    QueryError,
)
from r2graph.local.decoding import Batch
from r2graph.local.files import state
from r2graph.local.generation import Completion, Generation, Options, Piece, Vocabulary

DEFAULT_CONTEXT = 4096  # for models that do not say how many tokens they hold
SWEEP_S = 0.05  # between two looks at who in the queue has given up

Queue = SimpleQueue[Generation | None]  # None: nobody is left who could ask


class Engine:
    """One model in memory, shared by threads and event loops alike.

    Its thread starts with the first request and ends when nobody holds the engine any more.
    """

    def __init__(self, folder: Path, device: str, dtype: str, max_batch: int) -> None:
        self.name = folder.name
        self.files = state(folder)
        self._origin = (str(folder), device, dtype, max_batch)
        self._model, self._tokenizer = load(folder, device, dtype)
        self._vocabulary = read_vocabulary(self._model, self._tokenizer)
        config = self._model.config
        self._context: int = getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT
        self._queue: Queue = SimpleQueue()
        self._starting = threading.Lock()
        self._encoding = threading.Lock()  # sanitizing switches the tokenizer's mode for a moment
        self._prompt([{"role": "user", "content": "?"}])  # compile the template here and now
        self._threads: list[threading.Thread] = []
        weakref.finalize(self, close, self._queue, self._threads)

    def __reduce__(self) -> tuple[Callable[..., Engine], tuple[Any, ...]]:
        """A copy, or another process, opens the directory for itself."""
        return open_engine, self._origin

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text, without a chat template around it."""
        with self._encoding:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def submit(
        self,
        messages: list[dict[str, str]],
        options: Options,
        on_piece: Callable[[Piece], None] | None = None,
    ) -> Future[Completion]:
        """Queue a request; cancelling its future takes it out of the queue or out of the batch.

        `on_piece` is called on the decoding thread, for the last time before the future completes.
        """
        prompt = self._prompt(messages)
        room = self._context - len(prompt)
        if room < 1:
            raise PromptTooLongError(len(prompt), self._context)
        limit = min(options.max_tokens or room, room)
        generation = Generation(prompt, limit, options, self._vocabulary, on_piece)
        self._queue.put(generation)
        self._start()
        return generation.future

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        try:
            with self._encoding:
                ids = self._tokenizer.apply_chat_template(
                    messages,
                    add_generation_prompt=True,
                    return_dict=False,
                    sanitize_control_tokens=True,  # text that spells an end of turn stays text
                )
        except (TemplateError, ValueError) as error:
            raise QueryError("the model's chat template cannot take these messages") from error
        if not ids:
            raise EmptyQueryError
        return cast(list[int], ids)

    def _start(self) -> None:
        with self._starting:
            if not any(thread.is_alive() for thread in self._threads):  # a fork leaves a dead one
                work = (self._model, self._queue, self._origin[-1])
                thread = threading.Thread(
                    target=serve, args=work, name="r2graph-local", daemon=True
                )
                self._threads[:] = [thread]
                thread.start()


def close(queue: Queue, threads: list[threading.Thread]) -> None:
    """End an engine's thread and see it end: torch aborts the process if it exits under a step."""
    queue.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(timeout=10)


@torch.inference_mode()
def serve(model: PreTrainedModel, queue: Queue, max_batch: int) -> None:
    """Decode for whoever waits; holds no engine, so that one without users can be collected."""
    batch = Batch(model)
    waiting: deque[Generation] = deque()
    swept = 0.0
    while None not in (arrived := take(queue, block=not (batch.rows or waiting))):
        waiting.extend(row for row in arrived if row)
        if time.monotonic() - swept > SWEEP_S:  # at each step it would be slow for long queues
            waiting = deque(row for row in waiting if row.active())
            swept = time.monotonic()
        joining = first(waiting, max_batch - len(batch.rows))
        try:
            if joining:
                batch.join(joining)
            if batch.rows:
                batch.step()
        except Exception as error:  # noqa: BLE001 - a broken batch must not end the thread
            for row in {*batch.rows, *joining}:
                row.fail(error)
            batch = Batch(model)


def first(waiting: deque[Generation], n: int) -> list[Generation]:
    """Take the next `n` requests that somebody still waits for out of the queue."""
    rows: list[Generation] = []
    while waiting and len(rows) < n:
        row = waiting.popleft()
        if row.active():
            rows.append(row)
    return rows


def take(queue: Queue, *, block: bool) -> list[Generation | None]:
    """Everything in the queue; with `block`, at least one."""
    arrived = [queue.get()] if block else []
    with suppress(Empty):
        while True:
            arrived.append(queue.get_nowait())
    return arrived


_ENGINES: weakref.WeakValueDictionary[Any, Engine] = weakref.WeakValueDictionary()
_OPENING = threading.Lock()


def open_engine(folder: str, device: str, dtype: str, max_batch: int) -> Engine:
    """The engine of a directory: one for all who ask for it, a new one once its files change."""
    path = Path(folder).expanduser().resolve()
    if not (path / "config.json").is_file():
        raise ModelFileError(f"{folder}: not a model directory, it has no config.json")
    files = state(path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device: use device='auto' or 'cpu'")
    key = (path, files, device, dtype, max_batch)
    with _OPENING:  # transformers sets process-wide defaults while it loads
        engine = _ENGINES.get(key)
        if engine is None:
            engine = _ENGINES[key] = Engine(path, device, dtype, max_batch)
        return engine


def load(folder: Path, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a directory in Hugging Face format; runs no code from it and opens no connection."""
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
            read: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **safe
            )
        model, report = read
    except Exception as error:  # half a dozen parsers raise what they like
        reason = type(error).__name__
        raise ModelFileError(
            f"{folder}: not a readable causal language model ({reason})"
        ) from error
    if report["missing_keys"]:
        raise ModelFileError(f"{folder}: weights are missing, the rest would be random")
    if tokenizer.chat_template is None:
        raise ModelFileError(f"{folder}: the tokenizer has no chat template")
    return model.eval().to(device), tokenizer


def read_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """What requests need of the tokenizer; answers end at its end token or the model's own."""
    stated = model.generation_config.eos_token_id
    ends = {*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id}
    decode = cast(Callable[..., str], tokenizer.decode)
    exact = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return Vocabulary(
        ends=frozenset(ends - {None}),
        text=functools.partial(decode, **exact),
        name=functools.cache(lambda token: decode([token])),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bar that transformers shows for each model."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
