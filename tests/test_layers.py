"""The layout tells the story: imports run one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "r2graph"
# A module imports, at its top or inside a function, only from those before it.
LAYERS = [
    "errors",
    "spread",
    "sandbox",
    "plan",
    "local",
    "lab",
    "benchmarks",
    "pricing",
    "pool",
    "servers",
    "fleet",
    "limits",
    "breaker",
    "sqlite_file",
    "ledger",
    "outcome_cache",
    "response",
    "scrub",
    "calls",
    "request",
    "attempt",
    "door",
    "decompose",
    "allocate",
    "explore",
    "verify",
    "features",
    "feature_allocator",
    "router",
    "state",
    "checkpoints",
    "bill",
    "turn",
    "steps",
    "dataflow",
    "nodes",
    "review",
    "tool",
    "graph",
    "whole",
    "chat_call",
    "message",
    "watch",
    "chat",
    "trajectory",
    "relay",
    "agent_bill",
    "middleware",
    "trace",
    "replay",
    "evaluation",
    "calibrate",
    "serve",
    "cli",
]


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if layer(path) != "__init__"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_earlier_layers(path: Path) -> None:
    allowed = LAYERS[: LAYERS.index(layer(path)) + 1]
    for name in imports(path):
        root, *rest = name.split(".")
        assert root not in {"training", "graphs", "benchmarks", "tests"}, name
        if root == "r2graph" and rest:
            assert rest[0] in allowed, f"{name} belongs to a later layer"
