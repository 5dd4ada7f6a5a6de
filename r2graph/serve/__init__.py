"""An HTTP server for graphs: OpenAI's chat API, a page to watch a run on, metrics.

from r2graph.serve import create_app

app = create_app(create_r2_graph("lab", router="lab"))   # any ASGI server runs it
"""

from __future__ import annotations

from r2graph.errors import MissingExtraError

try:
    from r2graph.serve.app import create_app
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"fastapi", "prometheus_client", "starlette"}:
        raise
    raise MissingExtraError("the server", "serve") from None

__all__ = ["create_app"]
