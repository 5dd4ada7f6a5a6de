"""The training loss of a Llama model, written out as one function that `torch.compile` can fuse.

At the lab's sizes what surrounds the matrix products is most of the time; besides, logits are
computed only where there is a label.
Covered: Llama blocks without grouped heads, biases or dropout, rows padded on the right.
`tests/test_training.py` holds it to the loss of transformers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name
from transformers import LlamaForCausalLM

Logits = Callable[[Tensor, Tensor], Tensor]
"""Logits of `(tokens, places)`: rows x length, and places in them when flattened."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Mean cross-entropy of `(tokens, labels)`, each rows x length; label -100 counts for nothing."""


def new_logits(model: LlamaForCausalLM) -> Logits:
    """The logits as a function of tokens and places, compiled where there is a compiler."""
    run = torch.compile(logits, dynamic=True) if shutil.which("g++") else logits
    return lambda tokens, places: run(model, tokens, places, *rotations(model, tokens))


def new_loss(model: LlamaForCausalLM) -> Loss:
    """The loss as a function of a batch."""
    run = new_logits(model)

    def loss(tokens: Tensor, labels: Tensor) -> Tensor:
        following = F.pad(labels[:, 1:], (0, 1), value=-100).reshape(-1)
        places = (following >= 0).nonzero()[:, 0]
        return F.cross_entropy(run(tokens, places), following[places])

    return loss


def rotations(model: LlamaForCausalLM, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding, length x head size."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    angles = torch.outer(positions.float(), model.model.rotary_emb.inv_freq)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def logits(
    model: LlamaForCausalLM, tokens: Tensor, places: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """Logits at some places of the flattened batch."""
    core, config = model.model, model.config
    heads, eps = config.num_attention_heads, config.rms_norm_eps
    rows, length = tokens.shape

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)

    x = F.embedding(tokens, core.embed_tokens.weight)
    for layer in core.layers:
        attention, mlp = layer.self_attn, layer.mlp
        h = norm(x, layer.input_layernorm.weight)
        joint = torch.cat(
            [p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        )
        q, k, v = F.linear(h, joint).view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k = q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(mixed.transpose(1, 2).reshape(rows, length, -1), attention.o_proj.weight)
        h = norm(x, layer.post_attention_layernorm.weight)
        both = F.linear(h, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        gate, up = both.chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, mlp.down_proj.weight)
    x = x.view(rows * length, -1)[places]
    return F.linear(norm(x, core.norm.weight), model.lm_head.weight)


def _turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
