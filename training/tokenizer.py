"""The lab's tokenizer: 256 pieces, shared by the nine models and the router.

Closed-class words, references and operators are pieces of their own; names are spelled with letters
and a few frequent letter groups. Numbers are digits. The pieces `<0>` to `<9>`, `<->` and `<|>` are
*hidden scratch*: special tokens, generated and billed but not shown, with which a model writes a
number last digit first before it writes it as people do, and the partial products of a long
multiplication before that. Sums are learned far faster that way, and any server that skips special
tokens shows the plain number.
"""

from __future__ import annotations

import re

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from r2graph.lab import geo, scan

SIZE = 256
SCRATCH = [f"<{c}>" for c in "0123456789-|"]
SPECIAL = ["<pad>", "<unk>", "<s>", "<sep>", "</s>", *SCRATCH]
CHARACTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'-.,?()+*:{}\n"
STEPS = range(1, 9)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<s>{{ message.content }}<sep>"
    "{% elif message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}</s>{% endgeneration %}"
    "{% endif %}{% endfor %}"
)


def closed_class() -> list[str]:
    """Words, references and operators that are one piece each."""
    forms = [*geo.ATTRIBUTES.values(), *geo.PAIRS.values(), "where is whose with yes no and after"]
    words = set(re.findall(r"[A-Za-z]+", " ".join([*forms, *geo.KEYS, *geo.ATTRIBUTES])))
    words |= set(" ".join([*scan.PHRASES, *scan.PHRASES.values(), *scan.TIMES]).split())
    words |= {"plan:", "think:", "->", *(f"m{i}" for i in range(1, 10))}
    words |= {*(f"q{i}" for i in range(1, 11)), "s1:"}
    pieces = [f"▁{word}" for word in sorted(words)]
    pieces += [piece for i in STEPS for piece in (f"\ns{i}:", f"▁{{s{i}}}", f"{{s{i}}}")]
    return [*pieces, "\nanswer:", "▁+▁", "▁-▁", "▁*▁", "(▁", "▁)"]


def letter_groups(taken: set[str], room: int) -> list[str]:
    """The letter groups that shorten the names of the geo family most (byte-pair merges, cities by
    population).
    """
    facts = geo.facts()
    weights = [facts.city_weights[0]]
    weights += [b - a for a, b in zip(facts.city_weights, facts.city_weights[1:], strict=False)]
    names = []
    for city, population in zip(facts.cities, weights, strict=True):
        names += [city, facts.country_of[city]] * (1 + population // 1_000_000)
    names += [
        value
        for c in facts.countries.values()
        for key, value in c.items()
        if key in ("name", "capital", "continent")
    ]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(
        names, trainers.BpeTrainer(vocab_size=4 * SIZE, show_progress=False, limit_alphabet=200)
    )
    merged = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    groups = [p for p, _ in merged if len(p) > 1 and p not in taken and set(p) <= set(CHARACTERS)]
    return groups[:room]


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, ready to be saved beside a model."""
    pieces = [*SPECIAL, *CHARACTERS, *closed_class()]
    pieces += letter_groups(set(pieces), SIZE - len(pieces))
    # Equal scores: the segmentation with the fewest pieces wins.
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=1))
    core.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<sep>", *SCRATCH],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
