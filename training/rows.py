"""Rows of SFT data in TRL's conversational prompt/completion form."""

from __future__ import annotations

import json
from collections.abc import Sequence

from langchain_core.messages import BaseMessage, convert_to_openai_messages


def row(prompt: Sequence[BaseMessage], completion: str) -> str:
    """One line of the file: the messages that a model is sent, and what it should answer."""
    answer = [{"role": "assistant", "content": completion}]
    messages = convert_to_openai_messages(list(prompt))
    return json.dumps({"prompt": messages, "completion": answer}, ensure_ascii=False)
