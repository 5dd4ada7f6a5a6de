"""Language models of a few thousand parameters, in the directory format that ChatLocal reads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<eos>", "<system>", "<user>", "<assistant>", "<scratch>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and a few special ones."""
    pieces = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=TEMPLATE,
    )


def tiny_model(
    *, layers: int = 2, width: int = 16, heads: int = 2, context: int = 128
) -> LlamaForCausalLM:
    """A random model; seed torch to get the same one again."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(SPECIAL) + 256,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=context,
            initializer_range=0.5,  # far from uniform, so that a mistake changes tokens
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def write_babbler(folder: Path, *, seed: int = 0, **shape: int) -> Path:
    """A random model, `shape` as of `tiny_model`, that says no special token and so never ends."""
    torch.manual_seed(seed)
    model = tiny_model(**shape)
    with torch.no_grad():
        model.lm_head.weight[: len(SPECIAL)] = 0  # some other token always has a positive score
    return save(model, folder)


def write_parrot(folder: Path, says: str, *, context: int = 128) -> Path:
    """A model that answers everything with `says`, then ends; no token may occur in it twice."""
    script = tiny_tokenizer().encode(f"<assistant>{says}<eos>", add_special_tokens=False)
    assert len(set(script)) == len(script), "each token decides the next one"
    torch.manual_seed(0)
    model = tiny_model(layers=1, width=32, context=context)
    embeddings = torch.nn.functional.normalize(model.model.embed_tokens.weight.detach(), dim=-1)
    with torch.no_grad():
        for layer in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            layer.weight.zero_()  # it adds nothing: what comes out is the last token
        model.model.embed_tokens.weight.copy_(embeddings)
        model.lm_head.weight.zero_()
        for token, following in pairwise(script):
            model.lm_head.weight[following] = 10 * embeddings[token]
    return save(model, folder)


def save(model: LlamaForCausalLM, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
