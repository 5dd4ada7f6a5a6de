"""The commands that start the servers which a training run calls; nothing is started here."""

from __future__ import annotations

import shlex
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from r2graph import ModelPool
from r2graph.servers import Server, server
from training.dry_run.memory import shape_of
from training.settings import Phase

FOR_WEIGHTS = 0.7  # of a card: vLLM takes 0.9 of it, and keys and values want room too
FIRST_PORT = 8001  # of members that share a URL


def pool_servers(pool: ModelPool, card_bytes: float) -> list[str]:
    """A line for each member that you serve yourself, and one for each URL that several share."""
    served: dict[str, list[Server]] = defaultdict(list)
    for spec in pool.members:
        if spec.is_local and (wanted := server(spec)) is not None:
            served[wanted.url].append(wanted)
    lines, port = [], FIRST_PORT
    for url, sharing in served.items():
        own = sharing[0].port
        if len(sharing) == 1:
            lines.append(line(sharing[0], card_bytes))
            continue
        for each in sharing:
            port += port == own
            lines.append(line(replace(each, url=f"http://127.0.0.1:{port}/v1"), card_bytes))
            port += 1
        lines.append(
            f"# a vLLM server has one model: at {url} the pool wants a gateway that goes by name"
        )
    return lines


def line(server: Server, card_bytes: float) -> str:
    """The server's command, with the model on as many cards as its 16-bit weights need."""
    cards = 1 if server.gpus else _cards(server.model, card_bytes)
    split = ("--tensor-parallel-size", str(cards)) if cards > 1 else ()
    return replace(server, args=(*split, *server.args)).line()


def _cards(model: str, card_bytes: float) -> int:
    shape, cards = shape_of(model), 1
    while shape and 2 * shape.parameters > cards * FOR_WEIGHTS * card_bytes:
        cards *= 2  # heads are to be dealt out evenly
    return cards


def policy_server(phase: Phase, module: Path, processes: int) -> str:
    """vLLM for the policy, on the cards after those of the processes; TRL sends it new weights over
    NCCL after each step.
    """
    at = urlsplit(phase.vllm_url)
    cards = ",".join(str(processes + n) for n in range(phase.vllm_cards))
    return (
        f"CUDA_VISIBLE_DEVICES={cards} trl vllm-serve --model {shlex.quote(str(module))} "
        f"--host {at.hostname} --port {at.port or 80} "
        f"--tensor_parallel_size {phase.vllm_cards} --dtype bfloat16"
    )
