"""Checkpoints are data: nothing that is loaded from one is imported or called.

LangGraph's default serializer builds any class, and calls any function, that a checkpoint names
(langgraph-checkpoint 4.3: `allowed_msgpack_modules=True` unless the environment has
`LANGGRAPH_STRICT_MSGPACK=true`). The state of our graph is plain JSON and LangChain's messages, so
it needs none of this. What a strict serializer blocks comes back as plain data, and what a node
reads of the state is validated (`read_kept`).

A graph made without a checkpointer gets that of the server or of the graph around it: start a
server with `LANGGRAPH_STRICT_MSGPACK=true`, and compile a parent graph with `strict(checkpointer)`.
"""

from __future__ import annotations

import copy

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.base import SerializerCompat, SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Checkpointer

from r2graph.errors import ConfigError


def strict(checkpointer: Checkpointer) -> Checkpointer:
    """The checkpointer on the same storage, with a serializer that never runs code.

    The one given is left as it is. Of a `JsonPlusSerializer` the allow-lists, hooks and pickle go,
    and encryption stays; a serializer that you wrote from scratch is taken as it is. Raises
    `ConfigError` for an untyped one, as `serde=pickle` is.
    """
    if not isinstance(checkpointer, BaseCheckpointSaver):
        return checkpointer
    clone = copy.copy(checkpointer)  # as LangGraph's own `with_allowlist` does it
    clone.serde = _strict(checkpointer.serde)
    return clone


def _strict(serde: SerializerProtocol) -> SerializerProtocol:
    if isinstance(serde, SerializerCompat):
        raise ConfigError(
            f"the checkpointer's serializer {_name(serde.serde)} cannot be made strict: leave "
            "`serde` out, or pass a JsonPlusSerializer"
        )
    clone = copy.copy(serde)
    if isinstance(clone, JsonPlusSerializer):
        # Not `type(clone)()`: what a subclass adds to a serializer is to stay.
        JsonPlusSerializer.__init__(clone, allowed_msgpack_modules=None)
    elif isinstance(clone, EncryptedSerializer):
        clone.serde = _strict(clone.serde)
    return clone


def _name(serde: object) -> str:
    return str(getattr(serde, "__name__", type(serde).__name__))
