"""The vLLM servers that a pool wants on this machine, and the commands that start them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from r2graph.errors import ConfigError
from r2graph.pool import ModelSpec

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Server:
    """vLLM with one model."""

    members: tuple[str, ...]
    """Who is asked through it."""
    url: str
    model: str
    """Id on Hugging Face's hub, or a directory."""
    names: tuple[str, ...]
    """What its clients call the model."""
    gpus: tuple[int, ...] = ()
    args: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        return "::1" if urlsplit(self.url).hostname == "::1" else "127.0.0.1"

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80

    @property
    def environment(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.gpus))} if self.gpus else {}

    def command(self, vllm: str = "vllm") -> list[str]:
        command = [vllm, "serve", self.model, "--host", self.host, "--port", str(self.port)]
        if self.names != (self.model,):
            command += ["--served-model-name", *self.names]
        if len(self.gpus) > 1:
            command += ["--tensor-parallel-size", str(len(self.gpus))]
        return [*command, *self.args]

    def line(self) -> str:
        """Environment and command, for a shell."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.command())])


def server(spec: ModelSpec) -> Server | None:
    """The server of a member that is asked by URL."""
    if spec.base_url is None or not isinstance(spec.model, str):
        return None
    name = spec.model.partition(":")[2]
    model, args = spec.serve.model or name, tuple(shlex.split(spec.serve.args))
    return Server((spec.name,), spec.base_url, model, (name,), spec.serve.gpus, args)


def servers(specs: Iterable[ModelSpec]) -> list[Server]:
    """Those on loopback, in the members' order; members of one model may share one.

    Raises `ConfigError` where different models would have to, and for a URL that vLLM has not.
    """
    found: dict[int, Server] = {}
    for each in filter(None, map(server, specs)):
        url = urlsplit(each.url)
        if url.hostname not in LOOPBACK:
            continue
        if url.scheme != "http" or url.path.rstrip("/") != "/v1":
            raise ConfigError(
                f"the base_url of {each.members[0]!r} is not vLLM's: that is http://HOST:PORT/v1"
            )
        found[each.port] = _shared(found[each.port], each) if each.port in found else each
    return list(found.values())


def _shared(one: Server, other: Server) -> Server:
    if (one.model, one.gpus, one.args) != (other.model, other.gpus, other.args):
        raise ConfigError(
            f"members {one.members[0]!r} and {other.members[0]!r} differ in model or `serve` and "
            f"share port {one.port}: a vLLM server has one model, so give each its own `base_url`"
        )
    names = tuple(dict.fromkeys(one.names + other.names))
    return replace(one, members=one.members + other.members, names=names)
