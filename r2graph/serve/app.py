"""The app: its routes, and what each does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from langchain_core.messages import HumanMessage
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from r2graph.graph import R2Graph
from r2graph.serve.gate import Gate
from r2graph.serve.guard import Guard, check_key, read_body
from r2graph.serve.metrics import Metrics
from r2graph.serve.openai_api import (
    Chunks,
    about,
    completion,
    headers,
    read_chat,
    read_run,
    sse,
)
from r2graph.serve.refusals import Refusal
from r2graph.serve.runs import Order, Pulse, Result, Running, Runs
from r2graph.serve.served import Served

MAX_RUNS = 16
MAX_WAITING = 64
MAX_WAIT_S = 30.0
MAX_BODY_BYTES = 2**20
KEEP_ALIVE = ": still at it\n\n"  # a comment, which clients skip
_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}


def create_app(
    graphs: R2Graph | Mapping[str, R2Graph],
    *,
    key: str | None = None,
    max_runs: int = MAX_RUNS,
    max_waiting: int = MAX_WAITING,
    max_wait_s: float = MAX_WAIT_S,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """An ASGI app that serves graphs as OpenAI's chat models, with a page, metrics and health.

    A graph by itself goes by the name of its pool. `key` is what clients must send; without one
    only requests for `localhost` or `127.0.0.1` are answered. `max_runs` run at once, `max_waiting`
    more wait for at most `max_wait_s` seconds, others get a 429. Raises `ConfigError`.
    """
    if key is not None:
        check_key(key)
    served = Served(graphs)
    gate = Gate(max_runs, max_waiting, max_wait_s)
    metrics = Metrics(served, gate)
    app = FastAPI(title="r2graph", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, key=key, open_paths=frozenset({"/healthz", *_FILES}), metrics=metrics)
    app.add_exception_handler(HTTPException, _not_routed)
    runs = Runs(gate, metrics)
    _add_chat(app, served, runs, max_body_bytes)
    _add_watching(app, served, runs, max_body_bytes)
    _add_models(app, served)
    _add_operations(app, metrics)
    return app


def _add_chat(app: FastAPI, served: Served, runs: Runs, max_body_bytes: int) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def complete(request: Request) -> Response:
        asked = read_chat(await read_body(request, max_body_bytes))
        choice = served.choose(asked.model, asked.quality, asked.budget_usd)
        order = Order(choice, asked.said, asked.bound)
        running = runs.start(order, request.receive)
        if not asked.stream:
            return await _whole(running, asked.model)
        options = asked.stream_options
        include_usage = options is not None and options.include_usage
        chunks = Chunks(asked.model, order.run_id, include_usage=include_usage)
        return await _stream(running, order, _completion_events(running, chunks), runs)


async def _whole(running: Running, model: str) -> Response:
    async for item in running.items():
        if isinstance(item, Result):
            return JSONResponse(completion(model, item.output), headers=headers(item.output))
    return _gone()


async def _completion_events(running: Running, chunks: Chunks) -> AsyncIterator[str]:
    yield chunks.begin()
    async for item in running.items():
        match item:
            case Pulse():
                yield KEEP_ALIVE
            case Result():
                yield chunks.end(item.output)


def _add_watching(app: FastAPI, served: Served, runs: Runs, max_body_bytes: int) -> None:
    @app.post("/runs", response_model=None)
    async def watch(request: Request) -> Response:
        """A run as the page shows it: all events of the graph, then the bill."""
        asked = read_run(await read_body(request, max_body_bytes))
        choice = served.choose(asked.model, asked.quality, asked.budget_usd)
        order = Order(choice, [HumanMessage(asked.query)])
        running = runs.start(order, request.receive)
        return await _stream(running, order, _watched_events(running), runs, once_asked=True)


async def _watched_events(running: Running) -> AsyncIterator[str]:
    async for item in running.items():
        match item:
            case Pulse():
                yield KEEP_ALIVE
            case Result():
                usage = item.output["usage"]
                told = about(item.output) | {"usage": usage, "seconds": round(item.seconds, 3)}
                yield sse({"event": "result", "answer": item.output["answer"]} | told)
            case _:
                yield sse(item)


async def _stream(
    running: Running,
    order: Order,
    events: AsyncIterator[str],
    runs: Runs,
    *,
    once_asked: bool = False,
) -> Response:
    """A streamed response, once the run has got so far that it is likely to have an answer.

    What fails before is an error with a status of its own; after it, an event.
    """
    try:
        if not await running.ready(once_asked=once_asked):
            return _gone()
    except BaseException:
        await running.stop()
        raise
    return StreamingResponse(
        _told(events, runs), media_type="text/event-stream", headers={"x-r2-run-id": order.run_id}
    )


async def _told(events: AsyncIterator[str], runs: Runs) -> AsyncIterator[str]:
    try:
        async for event in events:
            yield event
    except Refusal as refused:
        runs.refused(refused.code)
        yield sse(refused.body)


def _gone() -> Response:
    return Response(status_code=499)  # nobody will read it


def _add_models(app: FastAPI, served: Served) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": served.models()}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        return served.model(model)


def _add_operations(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_model=None)
    async def told() -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    for path, (name, kind) in _FILES.items():
        app.add_api_route(path, _file(name, kind), response_model=None)


def _file(name: str, kind: str) -> Any:
    content = (_PAGE / name).read_bytes()

    async def file() -> Response:
        return Response(content, media_type=kind)

    return file


async def _not_routed(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
    return Refusal(status, "there is nothing here by that path and method", code).response()
