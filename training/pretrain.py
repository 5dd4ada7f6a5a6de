"""Train one of the lab's models from scratch, of the pool or of the router (resumable; CPU or GPU).

    python -m training.pretrain --model m9 --corpus runs/lab/corpus.npz --out runs/lab/m9
    python -m training.pretrain --model planner --corpus runs/lab/planner.npz \\
        --out runs/lab/router/decomposer

One recipe for all sizes: Llama blocks, tied embeddings, Muon on the matrices of the blocks and
AdamW on the rest (measured: loss .92 against 1.18 for AdamW alone after 600 steps of m6), warm-up
and linear decay, loss on completions only, batches of rows of like length. Only size and number of
steps differ, so capability follows capacity. The same seed gives the same rows in the same order
whatever the size and however often the run was interrupted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from training.corpus import ALLOCATIONS, MIXTURE, PLANS
from training.forward import new_loss
from training.tokenizer import SIZE, build

ROWS_PER_CHUNK = 8_192  # rows sorted by length together before they are cut into batches


@dataclass(frozen=True)
class Size:
    """Shape and schedule of one model: widths, layers, heads, steps, peak learning rate."""

    width: int
    feed_forward: int
    layers: int
    heads: int
    steps: int
    learning_rate: float
    batch_tokens: int = 2_048


SIZES = {
    "m1": Size(8, 16, 1, 2, 8_000, 1e-2),
    "m2": Size(16, 24, 1, 2, 10_000, 1e-2),
    "m3": Size(24, 48, 1, 2, 10_000, 8e-3),
    "m4": Size(32, 64, 2, 1, 18_000, 6e-3),
    "m5": Size(48, 96, 2, 2, 72_000, 6e-3),
    "m6": Size(64, 128, 2, 2, 66_000, 5e-3),
    "m7": Size(64, 192, 3, 2, 15_000, 5e-3),
    "m8": Size(96, 256, 3, 3, 8_500, 4e-3),
    "m9": Size(128, 384, 4, 4, 16_500, 3e-3),
    "unseen": Size(40, 80, 2, 2, 30_000, 6e-3),  # of no pool: see `training/unseen.py`
    "planner": Size(16, 48, 3, 2, 70_000, 1e-2),
    "allocator": Size(16, 48, 3, 2, 45_000, 1e-2),
}
MIXTURES = {"planner": PLANS, "allocator": ALLOCATIONS}  # of the others: that of the pool


def new_model(size: Size, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SIZE,
            hidden_size=size.width,
            intermediate_size=size.feed_forward,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000.0},
            initializer_range=0.02 if size.width > 64 else size.width**-0.5 / 2,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=4,
        )
    )


class Rows:
    """The tokenised corpus; `batches(seed)` is an endless reproducible stream of padded batches."""

    def __init__(self, path: Path, mixture: dict[tuple[str, str], float]) -> None:
        with np.load(path) as data:
            self.buckets = []
            for (family, form), share in mixture.items():
                name = f"{family}-{form}"
                length = data[f"{name}-length"].astype(np.int64)
                start = np.concatenate([[0], np.cumsum(length)[:-1]])
                self.buckets.append(
                    (share, data[f"{name}-tokens"], start, length, data[f"{name}-prompt"])
                )

    def batches(self, seed: int, batch_tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs `(tokens, labels)` of shape rows x length, about `batch_tokens` tokens each."""
        rng = np.random.default_rng(seed)
        while True:
            chunk: list[tuple[np.ndarray, int]] = []
            for share, tokens, start, length, prompt in self.buckets:
                chunk += [
                    (tokens[start[row] : start[row] + length[row]], int(prompt[row]))
                    for row in rng.integers(0, len(start), round(share * ROWS_PER_CHUNK))
                ]
            chunk.sort(key=lambda row: len(row[0]))
            batches: list[list[tuple[np.ndarray, int]]] = [[]]
            for row in chunk:
                if (len(batches[-1]) + 1) * len(row[0]) > batch_tokens:
                    batches.append([])
                batches[-1].append(row)
            for index in rng.permutation(len(batches)):
                yield pad(batches[index])


def pad(rows: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of rows, each with the length of its prompt; padded on the right."""
    longest = -(-max(len(tokens) for tokens, _ in rows) // 4) * 4  # few shapes to compile for
    inputs = np.zeros((len(rows), longest), dtype=np.int64)
    labels = np.full((len(rows), longest), -100, dtype=np.int64)
    for i, (tokens, prompt) in enumerate(rows):
        inputs[i, : len(tokens)] = tokens
        labels[i, prompt : len(tokens)] = tokens[prompt:]
    return torch.from_numpy(inputs), torch.from_numpy(labels)


def new_optimisers(model: LlamaForCausalLM, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(inner, lr=peak, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=peak, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int) -> float:
    """Factor on the peak learning rate: 3 % warm-up, then linear to zero."""
    warm = max(1, steps * 3 // 100)
    return min(1.0, (step + 1) / warm) * (1 - step / steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SIZES, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="override the size's number of steps")
    parser.add_argument("--learning-rate", type=float, help="override the size's peak")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=500)
    arguments = parser.parse_args()

    size = SIZES[arguments.model]
    steps = arguments.steps or size.steps
    peak = arguments.learning_rate or size.learning_rate
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = new_model(size, arguments.seed).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    optimisers = new_optimisers(model, peak)
    state_file = arguments.out / "state.pt"
    first = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first = state["step"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{arguments.model}: {parameters:,} parameters, steps {first} to {steps}", flush=True)

    loss_of = new_loss(model)
    mixture = MIXTURES.get(arguments.model, MIXTURE)
    stream = Rows(arguments.corpus, mixture).batches(arguments.seed, size.batch_tokens)
    for _ in range(first):
        next(stream)
    began, losses, tokens_seen = time.monotonic(), [], 0
    for step in range(first, steps):
        tokens, labels = (t.to(device) for t in next(stream))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = peak * schedule(step, steps)
        loss = loss_of(tokens, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        tokens_seen += tokens.numel()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - began
            mean = torch.stack(losses).mean().item()
            print(
                f"{arguments.model} step {step + 1}/{steps} loss {mean:.4f} "
                f"{tokens_seen / seconds:,.0f} tokens/s {seconds:,.0f} s",
                flush=True,
            )
            losses = []
        if (step + 1) % arguments.save_every == 0 or step + 1 == steps:
            state = {
                "step": step + 1,
                "model": model.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            }
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
    model.save_pretrained(arguments.out)
    build().save_pretrained(arguments.out)
    card = {
        "model": arguments.model,
        "parameters": parameters,
        "steps": steps,
        "seed": arguments.seed,
    }
    (arguments.out / "training.json").write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
