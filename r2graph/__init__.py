"""R2-Reasoner as a LangGraph graph: each step of a task goes to the cheapest model that can do it.

    from r2graph import create_r2_graph, load_pool

    graph = create_r2_graph(load_pool("lab"), router="lab")
    print(graph.invoke("( 12 + 7 ) * ( 5 - 38 )")["answer"])

All but the errors is imported on first use, so that `import r2graph` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from r2graph.errors import (
    AllocationError,
    BenchmarkFileError,
    CheckpointError,
    ConfigError,
    EmptyQueryError,
    LedgerError,
    LimitExceeded,
    MissingExtraError,
    MissingKeyError,
    ModelCallError,
    ModelFileError,
    NeedsInstructionsError,
    PlanError,
    PoolFileError,
    PromptTooLongError,
    QueryError,
    R2Error,
    RouterFileError,
    RouterMismatchError,
    SandboxUnavailable,
    TraceFileError,
    UnknownModelError,
    UnknownPriceError,
    UnsupportedCallError,
    UnsupportedQueryError,
    WorkerError,
)

if TYPE_CHECKING:
    from r2graph.allocate import Allocator
    from r2graph.chat import ChatR2
    from r2graph.decompose import Decomposer
    from r2graph.graph import create_r2_graph
    from r2graph.ledger import Budget, Ledger
    from r2graph.limits import Limits
    from r2graph.local import ChatLocal
    from r2graph.middleware import R2RouterMiddleware
    from r2graph.outcome_cache import OutcomeCache
    from r2graph.plan import Plan, Subtask
    from r2graph.pool import ModelPool, ModelSpec, load_pool
    from r2graph.pricing import Price, Usage
    from r2graph.router import load_router
    from r2graph.verify import Verifier

__all__ = [
    "AllocationError",
    "Allocator",
    "BenchmarkFileError",
    "Budget",
    "ChatLocal",
    "ChatR2",
    "CheckpointError",
    "ConfigError",
    "Decomposer",
    "EmptyQueryError",
    "Ledger",
    "LedgerError",
    "LimitExceeded",
    "Limits",
    "MissingExtraError",
    "MissingKeyError",
    "ModelCallError",
    "ModelFileError",
    "ModelPool",
    "ModelSpec",
    "NeedsInstructionsError",
    "OutcomeCache",
    "Plan",
    "PlanError",
    "PoolFileError",
    "Price",
    "PromptTooLongError",
    "QueryError",
    "R2Error",
    "R2RouterMiddleware",
    "RouterFileError",
    "RouterMismatchError",
    "SandboxUnavailable",
    "Subtask",
    "TraceFileError",
    "UnknownModelError",
    "UnknownPriceError",
    "UnsupportedCallError",
    "UnsupportedQueryError",
    "Usage",
    "Verifier",
    "WorkerError",
    "create_r2_graph",
    "load_pool",
    "load_router",
]

_LAZY = {
    "Allocator": "allocate",
    "Budget": "ledger",
    "ChatLocal": "local",
    "ChatR2": "chat",
    "Decomposer": "decompose",
    "Ledger": "ledger",
    "Limits": "limits",
    "ModelPool": "pool",
    "ModelSpec": "pool",
    "OutcomeCache": "outcome_cache",
    "Plan": "plan",
    "Price": "pricing",
    "R2RouterMiddleware": "middleware",
    "Subtask": "plan",
    "Usage": "pricing",
    "Verifier": "verify",
    "create_r2_graph": "graph",
    "load_pool": "pool",
    "load_router": "router",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'r2graph' has no attribute {name!r}")
    value = getattr(import_module(f"r2graph.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
