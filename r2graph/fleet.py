"""Servers as child processes: started together, seen to answer, and stopped to the last one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from r2graph.errors import ConfigError
from r2graph.servers import Server

GRACE_S = 15.0  # between being asked to end and being killed
ANSWER_S = 2.0
MAX_LIST_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Child:
    """A server that was started here; it leads a process group of its own."""

    server: Server
    process: subprocess.Popen[bytes]
    log: Path


def answers(server: Server) -> bool:
    """Whether the models of the server are listed at its URL, by whomever."""
    connection = HTTPConnection(server.host, server.port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/v1/models")
        listed = json.loads(connection.getresponse().read(MAX_LIST_BYTES))
        return {each["id"] for each in listed["data"]} >= set(server.names)
    except (OSError, HTTPException, ValueError, LookupError, TypeError):
        return False
    finally:
        connection.close()


def executable(vllm: str) -> str:
    """The path of vLLM's command; raises `ConfigError` if there is none."""
    if (path := shutil.which(vllm)) is None:
        raise ConfigError(
            f"there is no command {vllm!r}: vLLM wants an environment of its own, install it there "
            "(`pip install vllm`) and say where its command is, with --vllm PATH"
        )
    return path


@contextmanager
def started(
    servers: Sequence[Server], vllm: str, logs: Path, *, grace_s: float = GRACE_S
) -> Iterator[list[Child]]:
    """Start servers, what they say going to files in `logs`; all are stopped at the end."""
    logs.mkdir(parents=True, exist_ok=True)
    children: list[Child] = []
    try:
        for server in servers:
            children.append(_start(server, vllm, logs))  # noqa: PERF401 - those before a failure
        yield children
    finally:
        _stop(children, grace_s)


def _start(server: Server, vllm: str, logs: Path) -> Child:
    log = logs / f"{server.port}-{re.sub(r'[^A-Za-z0-9.-]+', '-', server.members[0])}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            server.command(vllm),
            env=os.environ | server.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C is for us alone
        )
    return Child(server, process, log)


def _stop(children: Sequence[Child], grace_s: float) -> None:
    """Ask all groups to end, then kill what is left of them: vLLM's engines are processes too."""
    for child in children:
        _signal(child, signal.SIGTERM)
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(grace_s)
        _signal(child, signal.SIGKILL)
        child.process.wait()


def _signal(child: Child, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.process.pid, number)
