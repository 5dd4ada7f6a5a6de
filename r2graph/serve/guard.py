"""Who may come in, and what may go out: hosts, the key, the size of a body, no tracebacks."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import ip_address

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r2graph.errors import ConfigError
from r2graph.serve.metrics import Metrics
from r2graph.serve.refusals import Refusal, unforeseen
from r2graph.serve.runs import where

KEY_VARIABLE = "R2GRAPH_API_KEY"
BODY_TIMEOUT_S = 30.0
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": _CSP,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

log = logging.getLogger("r2graph.serve")


def read_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """The server's key, if one is set; raises `ConfigError` for one that no client could send."""
    key = environment.get(KEY_VARIABLE)
    if key is not None:
        check_key(key)
    return key


def check_key(key: str) -> None:
    """Raise `ConfigError` for a key that is blank or cannot stand in a header."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"the key must be printable ASCII without spaces: set {KEY_VARIABLE} anew, or unset it"
        )


def check_binding(host: str, key: str | None) -> None:
    """Raise `ConfigError` unless the address is this machine's own or there is a key."""
    if key is None and not _is_loopback(host):
        raise ConfigError(
            f"without a key anyone who reaches {host} could spend your money: set {KEY_VARIABLE}, "
            "or listen on 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Middleware around all routes.

    Without a key only requests for this machine by its own names are answered, or a page from
    elsewhere could reach the server by a name that resolves to it.
    """

    def __init__(
        self, app: ASGIApp, *, key: str | None, open_paths: frozenset[str], metrics: Metrics
    ) -> None:
        self._app = app
        self._digest = None if key is None else _digest(key)
        self._open_paths = open_paths
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_started = False

        async def sending(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, receive, sending)
        except Refusal as refused:
            self._metrics.refused(refused.code)
            if not is_started:
                await refused.response()(scope, receive, sending)
        except Exception as error:  # noqa: BLE001 - a server would log it with its text
            log.error("%s: %s", scope["path"][:100], where(error))
            self._metrics.refused("internal")
            if not is_started:
                await unforeseen().response()(scope, receive, sending)

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._digest is None:
            if _without_port(headers.get("host", "")) not in _LOOPBACK_HOSTS:
                raise Refusal(403, "ask for this server as localhost or 127.0.0.1", "wrong_host")
        elif scope["path"] not in self._open_paths:
            kind, _, key = headers.get("authorization", "").partition(" ")
            given = _digest(key.strip())
            if kind.lower() != "bearer" or not hmac.compare_digest(given, self._digest):
                raise Refusal(
                    401,
                    "the key is missing or wrong: send it as `Authorization: Bearer KEY`",
                    "invalid_api_key",
                    kind="authentication_error",
                )


def _digest(key: str) -> bytes:
    """Of one length for all keys, so that comparing takes as long for all."""
    return sha256(key.encode()).digest()


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The JSON of a request; raises `Refusal` if there is too much of it, or too slowly.

    A page from elsewhere can send a form unasked, but not this content type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "the content type must be application/json", "wrong_content_type")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise Refusal(413, f"the body has more than {max_bytes} bytes", "too_large")
    except TimeoutError:
        raise Refusal(408, "the body took too long to come", "slow_body") from None
    return bytes(body)
