"""What a module starts from: its shape, its size and its tokenizer, as far as they are known here.

Nothing is loaded but the tokenizer, and nothing is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from r2graph import ModelPool
from training.dry_run.memory import WIDE, Shape, shape_of
from training.rl_data import Row

TOKENIZER = "tokenizer_config.json"
CHARS_A_TOKEN = 3  # a low guess for English, where there is no tokenizer


@dataclass(frozen=True)
class Weights:
    """A model, as a hub id or a directory."""

    source: str

    @cached_property
    def shape(self) -> Shape | None:
        return shape_of(self.source)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, if it is on this machine, else `None`."""
        folder = self._folder()
        if folder is None:
            return None
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    def _folder(self) -> Path | None:
        """Where the tokenizer lies: the directory, or the hub's cache. Given a hub id itself,
        transformers may ask the hub in spite of `local_files_only`.
        """
        if (Path(self.source) / TOKENIZER).is_file():
            return Path(self.source)
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(self.source, TOKENIZER)
        except HFValidationError:  # a directory that is not there
            return None
        return Path(found).parent if isinstance(found, str) else None

    @property
    def bytes(self) -> float:
        """Of its files; of a hub id, those that fine-tuning will write, in float32."""
        files = stored_bytes(Path(self.source))
        return files or (WIDE * self.shape.parameters if self.shape else 0)

    def tokens(self, text: str) -> int:
        """Tokens of a text; a guess without a tokenizer."""
        if self.tokenizer is None:
            return len(text) // CHARS_A_TOKEN + 1
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def rendered(self, row: Row) -> str:
        """The prompt as the model reads it; without a tokenizer, the message alone."""
        if self.tokenizer is None:
            return str(row["prompt"][-1]["content"])
        rendered = self.tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True
        )
        return str(rendered)


def stored_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def resident_bytes(pool: ModelPool) -> int:
    """Of the members that every process of a run loads for itself."""
    models = [spec.model for spec in pool.members if isinstance(spec.model, str)]
    return sum(
        stored_bytes(Path(model.removeprefix("local:")))
        for model in models
        if model.startswith("local:")
    )
