"""`r2graph up`: the servers of a pool's members, as commands or running."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r2graph.cli.options import open_pool

if TYPE_CHECKING:
    from rich.console import Console

    from r2graph.fleet import Child
    from r2graph.pool import ModelSpec

POLL_S = 0.25


def up(
    pool: Annotated[str, typer.Argument(help="A named pool, or a YAML file.")],
    router: Annotated[
        str | None, typer.Option(help="A router whose `served` modules want servers as well.")
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="Run them until told to end.")] = False,
    vllm: Annotated[str, typer.Option(help="vLLM's command.", metavar="PATH")] = "vllm",
    logs: Annotated[Path, typer.Option(help="Directory for what they say.")] = Path("vllm-logs"),
    timeout: Annotated[float, typer.Option(help="Seconds in which all must answer.")] = 900,
) -> None:
    """Print the vLLM commands that serve a pool's members on this machine, or run them."""
    from rich.console import Console

    from r2graph.fleet import answers, executable, started
    from r2graph.servers import servers

    specs = [*open_pool(pool).members, *(modules(router) if router else [])]
    wanted = servers(specs)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    served = {name for each in wanted for name in each.members}
    for spec in specs:
        if spec.name not in served:
            console.print(f"# {spec.name}: {_where(spec)}")
    for each in wanted:
        console.print(f"# {', '.join(each.members)}")
        console.print(each.line())
    if not start:
        return
    missing = []
    for each in wanted:
        if answers(each):
            console.print(f"✓ {', '.join(each.members)}: answers at {each.url} already")
        else:
            missing.append(each)
    if not missing:
        return
    command, told = executable(vllm), _Told()
    with started(missing, command, logs) as children:
        good = _watch(children, told, timeout, console)
        if told.yes:
            console.print("stopping")
    if not good:
        raise typer.Exit(1)


class _Told:
    """Whether this process has been told to end. It ends in its own time, or children stay."""

    def __init__(self) -> None:
        self.yes = False
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(each) is not signal.SIG_IGN:  # `nohup`
                signal.signal(each, self._note)

    def _note(self, *_: Any) -> None:
        self.yes = True


def _watch(children: list[Child], told: _Told, timeout_s: float, console: Console) -> bool:
    """Tell who answers and who ends, until told to end; whether all went well."""
    from r2graph.fleet import answers

    began, good = time.monotonic(), True
    alive, waiting = list(children), list(children)
    with console.status("starting") as status:
        while alive and not told.yes:
            seconds = time.monotonic() - began
            for child in [*alive]:
                name = ", ".join(child.server.members)
                if (code := child.process.poll()) is not None:
                    good = False
                    alive.remove(child)
                    console.print(f"✗ {name}: ended with exit code {code}, see {child.log}")
                elif child in waiting and answers(child.server):
                    waiting.remove(child)
                    console.print(f"✓ {name}: answers at {child.server.url} ({seconds:.0f} s)")
            waiting = [child for child in waiting if child in alive]
            if waiting and seconds > timeout_s:
                for child in waiting:
                    name = ", ".join(child.server.members)
                    console.print(f"✗ {name}: no answer in {timeout_s:.0f} s, see {child.log}")
                return False
            names = [name for child in waiting for name in child.server.members]
            wait = f"waiting for {', '.join(names)}" if names else "Ctrl-C stops them"
            status.update(f"{wait} ({seconds:.0f} s)")
            time.sleep(POLL_S)
    return good


def _where(spec: ModelSpec) -> str:
    """How a member is reached that wants no server here."""
    key = ""
    if variable := spec.key_variable:
        key = f", with the key in {variable}{'' if os.environ.get(variable) else ' (not set)'}"
    if spec.provider == "local":
        return "weights are loaded in process"
    if spec.base_url is not None:
        return f"at {spec.base_url}{key}"
    return f"in the cloud{key}"


def modules(router: str | Path) -> list[ModelSpec]:
    """The models of a router's modules."""
    from r2graph.allocate import CheckpointAllocator
    from r2graph.decompose import CheckpointDecomposer
    from r2graph.router import load_router

    loaded = load_router(router)
    parts = loaded.decomposer, loaded.allocator
    return [
        each.model for each in parts if isinstance(each, CheckpointDecomposer | CheckpointAllocator)
    ]
