"""Many requests in one batch: requests join and leave at any step, and never see each other.

Covered: decoder-only transformers whose `forward` takes an attention mask, position ids and a
key-value cache. Not covered: recurrent and encoder-decoder models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from r2graph.local.generation import Generation

GREEDY_BELOW = 1e-4  # colder than this, the likeliest token is drawn anyway, and logits overflow


class Batch:
    """The requests in flight, and one key-value cache for them all.

    Rows are padded on the left: the newest token of every row is in the last column, and its
    position is the number of real tokens before it. `mask` [rows, columns] is 1 for real tokens,
    `tokens` [rows] are those that the model has not read yet.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.rows: list[Generation] = []
        self.cache = DynamicCache()
        self.mask = self.tokens = torch.empty(0)

    def join(self, rows: list[Generation]) -> None:
        """Read the prompts of new rows and give each its first token."""
        width = max(len(row.prompt) for row in rows)
        gaps = [width - len(row.prompt) for row in rows]
        ids = self._tensor([[0] * gap + row.prompt for gap, row in zip(gaps, rows, strict=True)])
        mask = self._tensor([[0] * gap + [1] * (width - gap) for gap in gaps])
        cache = DynamicCache()
        tokens = self._forward(rows, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        if self.rows:
            for new, old in zip(cache.layers, self.cache.layers, strict=True):
                new.keys = stack(old.keys, new.keys, dim=-2)
                new.values = stack(old.values, new.values, dim=-2)
            mask, tokens = stack(self.mask, mask, dim=-1), torch.cat([self.tokens, tokens])
        self.rows, self.cache, self.mask, self.tokens = [*self.rows, *rows], cache, mask, tokens
        self._leave()

    def step(self) -> None:
        """Give every row one more token."""
        self.mask = pad(self.mask, (0, 1), value=1)
        positions = self.mask.sum(-1, keepdim=True) - 1
        ids = self.tokens[:, None]
        self.tokens = self._forward(self.rows, ids, self.mask, positions, self.cache)
        self._leave()

    def _forward(
        self,
        rows: list[Generation],
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: DynamicCache,
    ) -> Tensor:
        """Run the model on new columns, hand each row its next token, and return them [rows]."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1].float()
        tokens = choose(logits, rows)
        scores = score(logits, tokens, rows)
        for row, token, (logprob, top) in zip(rows, tokens.tolist(), scores, strict=True):
            row.accept(token, logprob, top)
        return tokens

    def _leave(self) -> None:
        """Drop the rows that nobody waits for, and the columns that only they used."""
        stay = [i for i, row in enumerate(self.rows) if row.active()]
        if len(stay) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in stay]
        if not stay:
            self.cache = DynamicCache()
            return
        index = self._tensor(stay)
        mask = self.mask[index]
        unused = int(mask.argmax(-1).min())
        self.mask, self.tokens = mask[:, unused:], self.tokens[index]
        for layer in self.cache.layers:
            layer.keys = layer.keys[index, :, unused:]
            layer.values = layer.values[index, :, unused:]

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self.model.device)


def stack(above: Tensor, below: Tensor, dim: int) -> Tensor:
    """Join two batches that are padded on the left along `dim` (negative) into one."""
    width = max(above.shape[dim], below.shape[dim])
    skip = [0, 0] * (-dim - 1)
    return torch.cat([pad(t, [*skip, width - t.shape[dim], 0]) for t in (above, below)])


def choose(logits: Tensor, rows: list[Generation]) -> Tensor:
    """The next token of each row: the likeliest, or one drawn as its options say."""
    tokens = logits.argmax(-1)
    warm = [i for i, row in enumerate(rows) if row.options.temperature > GREEDY_BELOW]
    if warm:
        tokens[warm] = draw(logits[warm], [rows[i] for i in warm])
    return tokens


def draw(logits: Tensor, rows: list[Generation]) -> Tensor:
    """Draw by temperature and top_p; each row brings its own random numbers."""
    options = [(row.options.temperature, row.options.top_p, row.random.random()) for row in rows]
    temperature, top_p, point = torch.tensor(options, device=logits.device).T[..., None]
    probabilities, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    mass = probabilities.cumsum(-1)
    nucleus = mass - probabilities < top_p  # never empty: nothing comes before the likeliest
    total = (mass * nucleus).amax(-1, keepdim=True)
    return order.gather(-1, (mass < point * total).sum(-1, keepdim=True))[:, 0]


Score = tuple[float, list[tuple[int, float]]]


def score(logits: Tensor, tokens: Tensor, rows: list[Generation]) -> list[Score]:
    """Of each row: the log-probability of its token, and the likeliest tokens with theirs."""
    if not any(row.wants_logprobs for row in rows):
        return [(0.0, [])] * len(rows)
    logprobs = logits.log_softmax(-1)
    chosen: list[float] = logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
    widest = max(row.options.top_logprobs for row in rows)
    top = logprobs.topk(min(widest, logprobs.shape[-1]))
    tops = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        (value, list(zip(*pair, strict=True))) for value, pair in zip(chosen, tops, strict=True)
    ]
