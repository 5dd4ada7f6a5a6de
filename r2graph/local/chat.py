"""ChatLocal: a LangChain chat model over a local causal language model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    UsageMetadata,
    convert_to_openai_messages,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from r2graph.errors import ConfigError, MissingExtraError, QueryError
from r2graph.local.files import state
from r2graph.local.generation import Completion, Options, Piece, TokenLogprob

if TYPE_CHECKING:
    from r2graph.local.engine import Engine


class ChatLocal(BaseChatModel, Options):  # type: ignore[misc] # pydantic's plugin, at model_construct
    """A chat model that runs here: `ChatLocal(model="path/to/directory").invoke("…")`.

    The directory is in Hugging Face format: `config.json`, safetensors weights, a tokenizer with a
    chat template. It is read on the first call, or by `load`, without running code of its own, and
    held once for all instances with the same `model`, `device`, `dtype` and `max_batch`; concurrent
    calls, from threads and event loops alike, share its batch. Fields of `Options` may be given
    again with a call, and so may `model`. Not supported: tools, images, top_k, penalties.

    Usage counts every generated token, hidden special tokens and the end included. So do the
    log-probabilities, in OpenAI's form in `response_metadata["logprobs"]`; the text has neither.
    `response_metadata["cpu_s"]` is the CPU time of an answer, that of a batch in equal shares.
    The number of torch threads is left to the user: on shared cores set `OMP_NUM_THREADS=1`.

    Raises `ModelFileError` for a directory that does not read, `PromptTooLongError` for a prompt
    that fills the context, `TimeoutError` after `timeout`, `MissingExtraError` without torch.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    """Path of the model directory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` keeps the type in which the weights are stored."""
    max_batch: int = Field(default=64, gt=0)
    """Most calls to decode at once; others wait for a free place."""
    streaming: bool = False
    """Stream inside `invoke` as well, for the sake of callbacks."""

    _engines: dict[str, Engine] = PrivateAttr(default_factory=dict)

    @property
    def _llm_type(self) -> str:
        return "r2graph-local"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What LangChain's caches and traces must not confuse."""
        engine = self._engines.get(self.model)
        files = engine.files if engine else state(Path(self.model))
        own = {"model": self.model, "device": self.device, "dtype": self.dtype, "files": files}
        return own | {name: getattr(self, name) for name in Options.model_fields}

    def load(self) -> None:
        """Import torch and read the directory, if this has not been done; raises as calls do."""
        self._engine(self.model)

    async def aload(self) -> None:
        """As `load`, on a thread."""
        await self._aengine(self.model)

    def get_token_ids(self, text: str) -> list[int]:
        """The model's own tokens of a text, without its chat template."""
        return self._engine(self.model).token_ids(text)

    async def agenerate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """As LangChain's, which asks on the loop what the files are: a thread reads them first."""
        if "model" not in kwargs:
            await self.aload()
        return await super().agenerate(*args, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine = self._engine(kwargs.pop("model", self.model))
        future = engine.submit(plain(messages), self._options(stop, kwargs))
        try:
            return result(future.result(), engine.name)
        finally:
            future.cancel()  # of use when the wait was interrupted

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine = await self._aengine(kwargs.pop("model", self.model))
        future = engine.submit(plain(messages), self._options(stop, kwargs))
        # A cancelled wait cancels the future behind it.
        return result(await asyncio.wrap_future(future), engine.name)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        engine = self._engine(kwargs.pop("model", self.model))
        pieces: SimpleQueue[Piece | None] = SimpleQueue()
        future = engine.submit(plain(messages), self._options(stop, kwargs), pieces.put)
        future.add_done_callback(lambda _: pieces.put(None))
        try:
            while piece := pieces.get():
                yield chunk(piece)
            yield last_chunk(future.result(), engine.name)
        finally:
            future.cancel()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        engine = await self._aengine(kwargs.pop("model", self.model))
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(piece: Piece | None) -> None:
            with suppress(RuntimeError):  # the loop has closed, nobody listens
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        future = engine.submit(plain(messages), self._options(stop, kwargs), put)
        future.add_done_callback(lambda _: put(None))
        try:
            while piece := await pieces.get():
                yield chunk(piece)
            yield last_chunk(future.result(), engine.name)
        finally:
            future.cancel()

    def _options(self, stop: list[str] | None, given: dict[str, Any]) -> Options:
        """This model's options, with those of one call in their place."""
        given.pop("stream", None)  # LangChain's own, it has been acted upon
        options = {name: getattr(self, name) for name in Options.model_fields} | given
        try:
            return Options(**options | ({"stop": stop} if stop else {}))
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ConfigError(
                f"{type(self).__name__} cannot be called so: {'; '.join(faults)}"
            ) from None

    def _engine(self, model: str) -> Engine:
        if model not in self._engines:
            try:
                from r2graph.local.engine import open_engine
            except ModuleNotFoundError as error:
                raise MissingExtraError("ChatLocal", "local") from error
            self._engines[model] = open_engine(model, self.device, self.dtype, self.max_batch)
        return self._engines[model]

    async def _aengine(self, model: str) -> Engine:
        if model not in self._engines:  # loading takes seconds: not on the event loop
            await asyncio.to_thread(self._engine, model)
        return self._engines[model]


def plain(messages: list[BaseMessage]) -> list[dict[str, str]]:
    """Roles and texts, as chat templates take them."""
    turns = convert_to_openai_messages(messages, text_format="string")
    if not all(isinstance(turn["content"], str) for turn in turns):
        raise QueryError("a local model reads text only: leave images and files out")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def result(completion: Completion, model_name: str) -> ChatResult:
    message = AIMessage(
        completion.text,
        usage_metadata=usage(completion),
        response_metadata=ending(completion, model_name) | logprobs(completion.logprobs),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def chunk(piece: Piece) -> ChatGenerationChunk:
    message = AIMessageChunk(content=piece.text, response_metadata=logprobs(piece.logprobs))
    return ChatGenerationChunk(message=message)


def last_chunk(completion: Completion, model_name: str) -> ChatGenerationChunk:
    message = AIMessageChunk(
        content="",
        usage_metadata=usage(completion),
        response_metadata=ending(completion, model_name),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def usage(completion: Completion) -> UsageMetadata:
    tokens_in, tokens_out = completion.prompt_tokens, completion.output_tokens
    return UsageMetadata(
        input_tokens=tokens_in, output_tokens=tokens_out, total_tokens=tokens_in + tokens_out
    )


def ending(completion: Completion, model_name: str) -> dict[str, Any]:
    return {
        "model_name": model_name,
        "finish_reason": completion.finish_reason,
        "cpu_s": completion.cpu_s,
    }


def logprobs(content: list[TokenLogprob]) -> dict[str, Any]:
    """OpenAI's form; nothing where nothing was asked."""
    return {"logprobs": {"content": content}} if content else {}
