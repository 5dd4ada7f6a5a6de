"""What tracers may see of a call: not how the chat model was set up, nor what a failed one said.

LangChain tells every callback with which headers a chat model was made, and hands it the provider's
error, which may say which key was sent, before the error is ours to replace. So one handler of ours
comes before all others and takes out of what they share what may hold a key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager, Callbacks
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import ensure_config

from r2graph.errors import R2Error
from r2graph.pool import SECRET_SETTING

TAKEN_OUT = "r2graph does not show what the provider said"


class Scrubber(BaseCallbackHandler):
    """Empties what the handlers after it are told."""

    run_inline = True  # before others are told, in async runs too

    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        invocation_params: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Take out how the model was made, and mask headers and keys of the request."""
        if serialized:
            serialized.pop("repr", None)  # of a class that LangChain cannot serialize
            serialized["kwargs"] = {}
        if invocation_params:
            invocation_params |= _masked(invocation_params)

    def on_llm_error(
        self, error: BaseException, *, response: LLMResult | None = None, **_: Any
    ) -> None:
        """Scrub the error, and the body and headers that LangChain took from it."""
        scrub(error)
        for generations in response.generations if response else []:
            for generation in generations:
                generation.generation_info = None
                if isinstance(generation, ChatGeneration):
                    metadata = generation.message.response_metadata
                    kept = {key: metadata[key] for key in metadata if key == "status_code"}
                    generation.message.response_metadata = kept


_SCRUBBER = Scrubber()


def _masked(settings: dict[str, Any]) -> dict[str, Any]:
    """A copy without secrets: what is in the settings themselves is still to be sent."""
    return {
        name: "***"
        if SECRET_SETTING.search(name) or "headers" in name
        else _masked(value)
        if isinstance(value, dict)
        else value
        for name, value in settings.items()
    }


def scrub(error: BaseException) -> None:
    """Take the texts out of an error and of those that led to it; an `R2Error` has none."""
    for each in _chain(error):
        if isinstance(each, R2Error):
            continue
        each.args = (TAKEN_OUT,)
        for name, value in vars(each).items():
            if isinstance(value, str | bytes | dict | list | tuple):
                vars(each)[name] = None if name != "__notes__" else []


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    left, seen = [error], set[int]()
    while left:
        if (each := left.pop()) is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            left += [each.__cause__, each.__context__]
            left += each.exceptions if isinstance(each, BaseExceptionGroup) else ()


def scrubbing() -> Callbacks:
    """The callbacks that a call would have here, after the one that scrubs errors."""
    callbacks = ensure_config().get("callbacks")
    if not isinstance(callbacks, BaseCallbackManager):
        return [_SCRUBBER, *(callbacks or [])]
    manager = callbacks.copy()
    manager.handlers.insert(0, _SCRUBBER)
    manager.inheritable_handlers.insert(0, _SCRUBBER)
    return manager
