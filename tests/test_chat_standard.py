"""LangChain's own suites for chat models, wherever `ChatR2` claims the feature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from r2graph import load_pool
from r2graph.chat import ChatR2
from tests.chat_fakes import openai_server

STANDARD = {"max_tokens": 100, "timeout": 60, "stop": []}  # of LangChain's, what there is


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with openai_server() as url:
        yield url


class TestUnit(ChatModelUnitTests):
    """As a newcomer makes it: a shipped pool by its name."""

    @property
    def chat_model_class(self) -> type[ChatR2]:
        return ChatR2

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "lab"}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return STANDARD


class TestIntegration(ChatModelIntegrationTests):
    """Two members on a server that answers in the form it is asked for, tools and schemas too."""

    url: ClassVar[str]

    @pytest.fixture(autouse=True)
    def _served(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        type(self).url = server
        monkeypatch.setenv("VLLM_BASE_URL", server)  # for the pool that calls may name instead

    @property
    def chat_model_class(self) -> type[ChatR2]:
        return ChatR2

    @property
    def chat_model_params(self) -> dict[str, Any]:
        members = [
            {
                "name": name,
                "model": f"openai:{name}",
                "model_kwargs": {"base_url": self.url},
                "price": {"input_per_mtok": price, "output_per_mtok": price},
            }
            for name, price in (("small", "0.1"), ("large", "1"))
        ]
        return {"model": load_pool({"name": "served", "members": members})}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return STANDARD

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "vllm"
