"""Reinforcement learning of the allocator where the outcome of every choice is on record.

GRPO learns what a choice is worth by sampling choices and running them. Where every model's answer
to every prompt has been recorded (`training/router_data.py`), what each slot and each check would
have cost is known, and so is the gradient of the policy's expected loss, without sampling (expected
policy gradients, arXiv 1706.05374, in a contextual bandit with full information):

    J = sum over slots a of pi(a) L(a)  +  pi(trust) L(a*, trusted) + (1 - pi(trust)) L(a*, checked)

at each step of a plan, with the answer of SFT as context and a* its slot; what is no answer has a
loss, too. L is the loss of
`training/labels.py`, in dollars with wrong ends priced in, less that of the best choice, over the
mean range of losses at the level. SFT is taught the best choice of each prompt, however sure it
can be of it; J weighs what a lapse of memory costs. Every fact counts by its own outcomes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from training.forward import Logits, new_logits
from training.labels import Labels
from training.outcomes import MODELS
from training.pretrain import pad, schedule
from training.router_data import Question
from training.settings import OutcomeGradient
from training.tokenizer import build

BATCH_TOKENS = 2_048
ROWS_PER_CHUNK = 8_192
NO_CHOICE = 2.0  # the loss of anything but a slot, in mean ranges: worse than any slot
LOG_EVERY = 20


@dataclass(frozen=True)
class Answered:
    """A question with SFT's answer, and the losses of all choices at each of its steps."""

    tokens: tuple[int, ...]
    slots: tuple[int, ...]
    """Where in `tokens` the slots stand."""
    losses: tuple[int, ...]
    """Of each slot the row in `Rows.losses_R2S`."""


class Rows:
    """Answered questions; losses are rows of one table, for many steps are alike."""

    def __init__(self, questions: Sequence[Question], labels: Labels) -> None:
        tokenizer = build()
        pieces = tokenizer.get_vocab()
        self.slots = torch.tensor([pieces[f"▁{model}"] for model in MODELS])
        self.trust, self.end = pieces["▁q1"], pieces["</s>"]
        row: dict[tuple[str, int], int] = {}
        for question in questions:
            for text in question.labelled:
                row.setdefault((text, question.q), len(row))
        self.losses_R2S = _regrets(labels, list(row))
        encode = tokenizer.backend_tokenizer.encode_batch_fast
        prompts = encode([f"<s>{q.prompt}<sep>" for q in questions], add_special_tokens=False)
        answers = encode([f"{q.answer(labels)}</s>" for q in questions], add_special_tokens=False)
        slots = set(self.slots.tolist())
        self.answered = [
            Answered(
                (*prompt.ids, *answer.ids),
                tuple(len(prompt.ids) + i for i, t in enumerate(answer.ids) if t in slots),
                tuple(row[text, question.q] for text in question.labelled),
            )
            for question, prompt, answer in zip(questions, prompts, answers, strict=True)
        ]

    def batches(self, seed: int) -> Iterator[list[Answered]]:
        """An endless reproducible stream of batches of rows of like length."""
        rng = np.random.default_rng(seed)
        while True:
            chunk = [self.answered[i] for i in rng.integers(0, len(self.answered), ROWS_PER_CHUNK)]
            chunk.sort(key=lambda row: len(row.tokens))
            batches: list[list[Answered]] = [[]]
            for row in chunk:
                if (len(batches[-1]) + 1) * len(row.tokens) > BATCH_TOKENS:
                    batches.append([])
                batches[-1].append(row)
            yield from (batches[i] for i in rng.permutation(len(batches)))


def _regrets(labels: Labels, asked: Sequence[tuple[str, int]]) -> Tensor:
    """Losses less the least one, over the mean range at the level: rows x (checked, trusted) x
    slots.
    """
    losses = np.stack([labels.losses(text, q) for text, q in asked])
    regrets = losses - losses.min((1, 2), keepdims=True)
    levels = np.array([q for _, q in asked])
    for q in set(levels):
        regrets[levels == q] /= regrets[levels == q].max((1, 2)).mean()
    return torch.from_numpy(regrets).float()


def expected_loss(logits: Logits, batch: Sequence[Answered], rows: Rows) -> Tensor:
    """J, the mean over the steps of a batch."""
    padded, _ = pad([(np.array(row.tokens), 0) for row in batch])
    width, tokens = padded.shape[1], padded.view(-1)
    at = torch.tensor([r * width + i for r, row in enumerate(batch) for i in row.slots])
    ends = torch.tensor([r * width + len(row.tokens) - 1 for r, row in enumerate(batch)])
    said = logits(padded, torch.cat([at - 1, at, ends - 1]))  # before a slot, a check, the end
    slot_NV, next_NV, end_BV = said.split([len(at), len(at), len(batch)])
    # Whether to trust is decided first, where a slot has just been written; then what comes next.
    slot_NS = _next(slot_NV, tokens[at - 1], rows)[:, rows.slots]
    end_B = _next(end_BV, tokens[ends - 1], rows)[:, rows.end]
    trust_N = next_NV.softmax(-1)[:, rows.trust]
    losses_N2S = rows.losses_R2S[[i for row in batch for i in row.losses]]
    taken_N = (tokens[at][:, None] == rows.slots).int().argmax(1)
    checked_N, trusted_N = losses_N2S[torch.arange(len(at)), :, taken_N].T
    chosen_N = (slot_NS * losses_N2S.amin(1)).sum(1) + (1 - slot_NS.sum(1)) * NO_CHOICE
    judged_N = trust_N * trusted_N + (1 - trust_N) * checked_N
    return (chosen_N + judged_N).mean() + (1 - end_B).mean() * NO_CHOICE


def _next(logits_NV: Tensor, before_N: Tensor, rows: Rows) -> Tensor:
    """Probabilities of what comes next, given that it is not the piece for trust after a slot."""
    after_slot_N = torch.isin(before_N, rows.slots)
    trust_V = torch.arange(logits_NV.shape[1]) == rows.trust
    return logits_NV.masked_fill(after_slot_N[:, None] & trust_V, -torch.inf).softmax(-1)


def train(settings: OutcomeGradient, start: Path, rows: Rows, out: Path, seed: int) -> None:
    """Train the model in `start` and write it to `out`, with `log.json` beside it; resumes."""
    model = LlamaForCausalLM.from_pretrained(start)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    out.mkdir(parents=True, exist_ok=True)
    state_file, first, log = out / "state.pt", 0, []
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first, log = state["step"], state["log"]
    logits, stream, recent = new_logits(model), rows.batches(seed), []
    for _ in range(first):
        next(stream)
    for step in range(first, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, settings.steps)
        loss = expected_loss(logits, next(stream), rows)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        recent.append(loss.detach())
        if (step + 1) % LOG_EVERY == 0:
            log.append({"step": step + 1, "reward": -torch.stack(recent).mean().item()})
            recent = []
        if (step + 1) % settings.save_every == 0:
            state = {
                "step": step + 1,
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "log": log,
            }
            torch.save(state, state_file.with_suffix(".part"))
            state_file.with_suffix(".part").replace(state_file)
    model.save_pretrained(out)
    build().save_pretrained(out)
    (out / "log.json").write_text(json.dumps(log) + "\n")
    state_file.unlink(missing_ok=True)
