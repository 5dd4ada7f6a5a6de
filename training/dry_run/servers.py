"""The commands that start the servers which a training run calls; nothing is started here."""

from __future__ import annotations

import shlex
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit

from r2graph import ModelPool
from training.dry_run.memory import shape_of
from training.settings import Phase

FOR_WEIGHTS = 0.7  # of a card: vLLM takes 0.9 of it, and keys and values want room too
FIRST_PORT = 8001  # of members that share a URL


def pool_servers(pool: ModelPool, card_bytes: float) -> list[str]:
    """A line for each member that you serve yourself, and one for each URL that several share."""
    served: dict[str, list[str]] = defaultdict(list)
    for spec in pool.members:
        url = spec.model_kwargs.get("base_url")
        if spec.is_local and url and isinstance(spec.model, str):
            served[str(url)].append(spec.model.partition(":")[2])
    lines, port = [], FIRST_PORT
    for url, models in served.items():
        own = urlsplit(url).port or 80
        if len(models) == 1:
            lines.append(serve(models[0], own, card_bytes))
            continue
        for model in models:
            port += port == own
            lines.append(serve(model, port, card_bytes))
            port += 1
        lines.append(
            f"# a vLLM server has one model: at {url} the pool wants a gateway that goes by name"
        )
    return lines


def serve(model: str, port: int, card_bytes: float) -> str:
    """vLLM with one model, on as many cards as its 16-bit weights need."""
    cards = _cards(model, card_bytes)
    split = f" --tensor-parallel-size {cards}" if cards > 1 else ""
    return f"vllm serve {shlex.quote(model)} --host 127.0.0.1 --port {port}{split}"


def _cards(model: str, card_bytes: float) -> int:
    shape, cards = shape_of(model), 1
    while shape and 2 * shape.parameters > cards * FOR_WEIGHTS * card_bytes:
        cards *= 2  # heads are to be dealt out evenly
    return cards


def policy_server(phase: Phase, module: Path) -> str:
    """vLLM for the policy, to which TRL sends new weights over NCCL after each step."""
    port = urlsplit(phase.vllm_url).port or 80
    return f"trl vllm-serve --model {shlex.quote(str(module))} --port {port}"
