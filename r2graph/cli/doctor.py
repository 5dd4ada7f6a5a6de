"""`r2graph doctor`: what is installed, what is set, and what is missing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import NamedTuple

import typer

LAB = Path(__file__).parents[1] / "lab" / "artefacts"


class Finding(NamedTuple):
    """One line; `ok` is `None` for what is good to know but may be as it is."""

    what: str
    state: str
    ok: bool | None = None


def doctor() -> None:
    """Say what is installed, set and missing; never shows a key."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    findings = list(examine())
    for what, state, ok in findings:
        mark = {True: "✓", False: "✗", None: "·"}[ok]
        console.print(f"{mark} {what}: {state}", soft_wrap=True)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    yield Finding("python", platform.python_version(), sys.version_info >= (3, 11))
    try:
        yield Finding("r2graph", version("r2graph"), ok=True)
    except PackageNotFoundError:
        yield Finding("r2graph", "run from its sources, not installed")
    else:
        yield from packages()
    yield from threads()
    yield from lab()
    yield from keys()


def packages() -> Iterator[Finding]:
    """The packages that r2graph needs, and for each extra whether it is complete."""
    for name in _required(None):
        found = _version(name)
        yield Finding(name, found or "missing", found is not None)
    for extra in metadata("r2graph").get_all("Provides-Extra") or []:
        names = [name for name in _required(extra) if name != "r2graph"]
        if not names or extra == "all":
            continue  # made of other extras
        missing = [name for name in names if _version(name) is None]
        state = ", ".join(f"{name} {_version(name) or 'missing'}" for name in names)
        yield Finding(f"extra {extra}", state, None if missing else True)


def _required(extra: str | None) -> list[str]:
    """Names of the packages that the package itself, or one of its extras, asks for."""
    from packaging.requirements import Requirement

    wanted = []
    for line in requires("r2graph") or []:
        requirement = Requirement(line)
        conditional = requirement.marker is not None and "extra" in str(requirement.marker)
        if conditional != (extra is not None):
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""}):
            wanted.append(requirement.name)
    return wanted


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def threads() -> Iterator[Finding]:
    """On shared cores torch's default of a thread a core makes small models ten times slower."""
    try:
        import torch
    except ModuleNotFoundError:
        return
    state = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    if "OMP_NUM_THREADS" not in os.environ:
        state += "; on shared cores set OMP_NUM_THREADS=1"
    yield Finding("torch threads", state)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    yield Finding("cuda device", device)


def lab() -> Iterator[Finding]:
    """The models and the router that come with the package."""
    from r2graph.errors import R2Error
    from r2graph.pool import load_pool
    from r2graph.router import load_router

    models = [spec.name for spec in load_pool("lab").members]
    missing = [name for name in models if not any((LAB / name).glob("*.safetensors"))]
    state = f"missing: {', '.join(missing)}" if missing else f"{len(models)} are there"
    yield Finding("lab models", state, not missing)
    try:
        card = load_router("lab").card
    except R2Error as error:
        yield Finding("lab router", str(error), ok=False)
    else:
        yield Finding("lab router", f"{card.name}, trained with {card.trained_with}", ok=True)


def keys() -> Iterator[Finding]:
    """Whether a key is set, and never which one."""
    from r2graph.pool import KEY_VARIABLES

    for variable in sorted(KEY_VARIABLES.values()):
        yield Finding(variable, "set" if os.environ.get(variable) else "not set")
