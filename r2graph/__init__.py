"""R2-Reasoner as a LangGraph graph: each step of a task goes to the cheapest model that can do it.

    from r2graph import create_r2_graph, load_pool

    graph = create_r2_graph(load_pool("lab"), router="lab")
    print(graph.invoke("( 12 + 7 ) * ( 5 - 38 )")["answer"])

A name is imported when it is first used, so that `import r2graph` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r2graph.allocate import Allocator as Allocator
    from r2graph.decompose import Decomposer as Decomposer
    from r2graph.errors import AllocationError as AllocationError
    from r2graph.errors import ConfigError as ConfigError
    from r2graph.errors import LimitExceeded as LimitExceeded
    from r2graph.errors import ModelCallError as ModelCallError
    from r2graph.errors import PlanError as PlanError
    from r2graph.errors import QueryError as QueryError
    from r2graph.errors import R2Error as R2Error
    from r2graph.graph import create_r2_graph as create_r2_graph
    from r2graph.limits import Limits as Limits
    from r2graph.local import ChatLocal as ChatLocal
    from r2graph.pool import ModelPool as ModelPool
    from r2graph.pool import ModelSpec as ModelSpec
    from r2graph.pool import load_pool as load_pool
    from r2graph.router import load_router as load_router
    from r2graph.verify import Verifier as Verifier

_MODULES = {
    "allocate": ("Allocator",),
    "decompose": ("Decomposer",),
    "errors": (
        "AllocationError",
        "ConfigError",
        "LimitExceeded",
        "ModelCallError",
        "PlanError",
        "QueryError",
        "R2Error",
    ),
    "graph": ("create_r2_graph",),
    "limits": ("Limits",),
    "local": ("ChatLocal",),
    "pool": ("ModelPool", "ModelSpec", "load_pool"),
    "router": ("load_router",),
    "verify": ("Verifier",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'r2graph' has no attribute {name!r}")
    value = getattr(import_module(f"r2graph.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
