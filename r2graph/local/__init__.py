"""A LangChain chat model over a local causal language model: small, batched, without a server.

`generation` says what one request asks and gets, `decoding` runs many of them in one batch,
`chat` is the chat model. Only `decoding` imports torch and transformers, on the first call.
"""

from r2graph.local.chat import ChatLocal

__all__ = ["ChatLocal"]
