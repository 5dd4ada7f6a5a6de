"""How much memory a phase of GRPO is likely to take, from a model's shape alone.

Bytes of a process, for P parameters of which A are trained, B completions of T tokens at once, C
completions a step, L layers of width h, and a vocabulary of V:

    weights      4 P              TRL loads float32, whatever the file holds
    gradients    4 A
    optimiser    8 A              both moments of AdamW; with weights and gradients the 16 bytes a
                                  parameter of ZeRO (arXiv 1910.02054, section 3.1)
    reference    4 P              with `beta`, unless adapters can be switched off instead
    activations  34 B T h L       16-bit, nothing recomputed, no attention matrix kept
                                  (arXiv 2205.05198, equation 1 without its term 5 a s / h)
    logits       2 * 4 B T_c V    of the completions' T_c tokens, and their gradient
    cache        2 * 4 C T L h_kv keys and values (arXiv 2309.06180, section 3), where vLLM does not
                                  sample; a colocated vLLM takes its share of the card instead
    router       what its files hold: rollouts ask the frozen allocator

Sampling and learning take turns, so of cache and activations with logits the larger counts. It is
an estimate: allocators, kernels and fragments come on top, and the 34 bytes are those of GPT's
feed-forward layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2graph.errors import ConfigError
from training.settings import Phase

GB = 1e9
WIDE = 4  # bytes of a float32
COLOCATED_SHARE = 0.3  # of the card: TRL's `vllm_gpu_memory_utilization`


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's kind."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feedforward: int
    vocabulary: int
    context: int
    tied: bool
    """Whether the output layer is the embedding."""
    biased: bool
    """Whether queries, keys and values have a bias, as Qwen2's do."""
    head: int

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head

    @property
    def parameters(self) -> int:
        queries = self.heads * self.head
        attention = self.hidden * (2 * queries + 2 * self.kv_width)
        attention += self.biased * (queries + 2 * self.kv_width)
        layer = attention + 3 * self.hidden * self.feedforward + 2 * self.hidden
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return embeddings + self.layers * layer + self.hidden

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA where PEFT puts it by default: the query and value projections."""
        queries = self.hidden + self.heads * self.head
        values = self.hidden + self.kv_width
        return self.layers * rank * (queries + values)


def _qwen(hidden: int, layers: int, heads: int, kv_heads: int, feedforward: int) -> Shape:
    small = hidden <= 2048
    return Shape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        feedforward=feedforward,
        vocabulary=151_936 if small else 152_064,
        context=32_768,
        tied=small,
        biased=True,
        head=hidden // heads,
    )


# From the config.json of each model.
KNOWN = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen(896, 24, 14, 2, 4_864),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen(1_536, 28, 12, 2, 8_960),
    "Qwen/Qwen2.5-3B-Instruct": _qwen(2_048, 36, 16, 2, 11_008),
    "Qwen/Qwen2.5-7B-Instruct": _qwen(3_584, 28, 28, 4, 18_944),
    "Qwen/Qwen2.5-14B-Instruct": _qwen(5_120, 48, 40, 8, 13_824),
    "Qwen/Qwen2.5-32B-Instruct": _qwen(5_120, 64, 40, 8, 27_648),
    "Qwen/Qwen2.5-72B-Instruct": _qwen(8_192, 80, 64, 8, 29_568),
}


def shape_of(model: str) -> Shape | None:
    """The shape of a hub id in `KNOWN`, or of a directory; `None` for kinds that are not Llama's.

    Raises `ConfigError` for a directory whose config.json does not read.
    """
    if model in KNOWN:
        return KNOWN[model]
    file = Path(model) / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text())
        return _shape(config) if config["model_type"] in ("llama", "qwen2") else None
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{file} is not the configuration of a model") from None


def _shape(config: Mapping[str, Any]) -> Shape:
    heads = config["num_attention_heads"]
    return Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        feedforward=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
        tied=config["tie_word_embeddings"],
        biased=config["model_type"] == "qwen2",
        head=config.get("head_dim") or config["hidden_size"] // heads,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of one process."""

    state: Mapping[str, float]
    """Weights and what is kept for each: FSDP and ZeRO-3 split it among the processes."""
    rest: Mapping[str, float]

    @property
    def parts(self) -> dict[str, float]:
        return {**self.state, **self.rest}

    def total(self, shards: int = 1) -> float:
        return sum(self.state.values()) / shards + sum(self.rest.values())


def fine_tuning(shape: Shape, batch: int, tokens: int) -> Memory:
    """What a process of `training.sft` takes: all weights are trained, the loss sees all tokens."""
    size = WIDE * shape.parameters
    state = {"weights": size, "gradients": size, "optimiser": 2 * size}
    return Memory(state, _learning(shape, batch, tokens, tokens))


def _learning(shape: Shape, batch: int, tokens: int, scored: int) -> dict[str, float]:
    return {
        "activations": 34 * batch * tokens * shape.hidden * shape.layers,
        "logits": 2 * WIDE * batch * scored * shape.vocabulary,
    }


def estimate(
    shape: Shape,
    phase: Phase,
    *,
    processes: int,
    prompt_tokens: int,
    router_bytes: float,
    card_bytes: float,
) -> Memory:
    """What a process of a phase takes; the formula is at the top of this file."""
    parameters = shape.parameters
    trained = shape.adapters(phase.lora.rank) if phase.lora else parameters
    state = {
        "weights": WIDE * (parameters + (trained if phase.lora else 0)),
        "gradients": WIDE * trained,
        "optimiser": 2 * WIDE * trained,
    }
    if phase.beta and not phase.lora:
        state["reference"] = WIDE * parameters
    tokens = prompt_tokens + phase.max_completion_tokens
    at_once = phase.batch(processes)
    learning = _learning(shape, at_once, tokens, phase.max_completion_tokens)
    cache = 2 * WIDE * at_once * phase.accumulate * tokens * shape.layers * shape.kv_width
    sampling = {"cache": cache if phase.vllm == "off" else 0}
    rest: dict[str, float] = max((learning, sampling), key=lambda part: sum(part.values()))
    if phase.vllm == "colocate":
        rest["vLLM"] = COLOCATED_SHARE * card_bytes
    rest["router"] = router_bytes
    return Memory(state, rest)
