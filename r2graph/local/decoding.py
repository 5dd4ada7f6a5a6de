"""Many requests in one batch: requests join and leave at any step, and never see each other.

Covered: decoder-only transformers whose `forward` takes an attention mask, position ids and a
key-value cache. Not covered: recurrent and encoder-decoder models.
"""

from __future__ import annotations

import time
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from r2graph.local.generation import Generation

GREEDY_BELOW = 1e-4  # colder than this, the likeliest token is drawn anyway, and logits overflow


class Batch:
    """The requests in flight, and one key-value cache for them all.

    Rows are padded on the left, so that the newest token of each is in the last column. `gaps` has
    the number of columns before each row's first token, `tokens` what the model has yet to read.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.rows: list[Generation] = []
        self.gaps: list[int] = []
        self.tokens: list[int] = []
        self.cache = DynamicCache()

    def join(self, rows: list[Generation]) -> None:
        """Read the prompts of new rows and give each its first token."""
        width = max(len(row.prompt) for row in rows)
        gaps = [width - len(row.prompt) for row in rows]
        ids = [[0] * gap + row.prompt for gap, row in zip(gaps, rows, strict=True)]
        cache = DynamicCache()
        self.tokens += self._forward(rows, ids, gaps, cache)
        if self.rows:
            longest = max(width, self.cache.get_seq_length())
            self.gaps = [gap + longest - self.cache.get_seq_length() for gap in self.gaps]
            gaps = [gap + longest - width for gap in gaps]
            for new, old in zip(layers(cache), layers(self.cache), strict=True):
                new.keys = stack(old.keys, new.keys)
                new.values = stack(old.values, new.values)
        self.rows += rows
        self.gaps += gaps
        self.cache = cache
        self._leave()

    def step(self) -> None:
        """Give every row one more token."""
        ids = [[token] for token in self.tokens]
        self.tokens = self._forward(self.rows, ids, self.gaps, self.cache)
        self._leave()

    def _forward(
        self, rows: list[Generation], ids: list[list[int]], gaps: list[int], cache: DynamicCache
    ) -> list[int]:
        """Run the model on new columns; each row gets its next token, which is returned too."""
        began = time.thread_time()
        read, width = cache.get_seq_length(), cache.get_seq_length() + len(ids[0])
        positions = [[max(column - gap, 0) for column in range(read, width)] for gap in gaps]
        output = self.model(
            input_ids=torch.tensor(ids, device=self.device),
            attention_mask=self._mask(gaps, width) if any(gaps) else None,
            position_ids=torch.tensor(positions, device=self.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1].float()
        chosen = choose(logits, rows)
        tokens: list[int] = chosen.tolist()
        scores = score(logits, chosen, rows)
        share_s = (time.thread_time() - began) / len(rows)
        for row, token, (logprob, top) in zip(rows, tokens, scores, strict=True):
            row.cpu_s += share_s
            row.accept(token, logprob, top)
        return tokens

    def _mask(self, gaps: list[int], width: int) -> Tensor:
        columns = torch.arange(width, device=self.device)
        return columns >= torch.tensor(gaps, device=self.device)[:, None]

    def _leave(self) -> None:
        """Drop the rows that nobody waits for, and the columns that only they used."""
        stay = [i for i, row in enumerate(self.rows) if row.active()]
        if len(stay) == len(self.rows):
            return
        unused = min((self.gaps[i] for i in stay), default=0)
        self.rows = [self.rows[i] for i in stay]
        self.gaps = [self.gaps[i] - unused for i in stay]
        self.tokens = [self.tokens[i] for i in stay]
        for layer in layers(self.cache):
            layer.keys = layer.keys[stay, :, unused:]
            layer.values = layer.values[stay, :, unused:]


class KeyValues(Protocol):
    """What a batch rearranges in a layer of the cache: [rows, heads, columns, size] each."""

    keys: Tensor
    values: Tensor


def layers(cache: DynamicCache) -> list[KeyValues]:
    return cast(list[KeyValues], cache.layers)


def stack(above: Tensor, below: Tensor) -> Tensor:
    """Keys or values of two batches in one, padded on the left."""
    columns = max(above.shape[-2], below.shape[-2])
    return torch.cat([pad(t, (0, 0, columns - t.shape[-2], 0)) for t in (above, below)])


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
    settings = torch.tensor(options, dtype=logits.dtype, device=logits.device)
    temperature, top_p, point = settings.T[..., None]
    probabilities, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    mass = probabilities.cumsum(-1)
    nucleus = mass - probabilities < top_p  # never empty: nothing comes before the likeliest
    total = (mass * nucleus).amax(-1, keepdim=True)
    drawn: Tensor = order.gather(-1, (mass < point * total).sum(-1, keepdim=True))
    return drawn[:, 0]


Score = tuple[float, list[tuple[int, float]]]


def score(logits: Tensor, tokens: Tensor, rows: list[Generation]) -> list[Score]:
    """Of each row: the log-probability of its token, and the likeliest tokens with theirs."""
    if not any(row.wants_logprobs for row in rows):
        return [(0.0, [])] * len(rows)
    logprobs = logits.log_softmax(-1)
    chosen: list[float] = logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
    widest = max(row.top_logprobs for row in rows)
    top = logprobs.topk(min(widest, logprobs.shape[-1]))
    tops = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        (value, list(zip(*pair, strict=True))) for value, pair in zip(chosen, tops, strict=True)
    ]
