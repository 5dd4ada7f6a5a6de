"""Several `r2graph serve` on one PostgreSQL ledger: they share money, and what they know is down.

Three real processes, started together, for they take their time. The tests run in this order: the
last one spends the budget of all of them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import httpx
import pytest

from r2graph.ledger import Ledger
from tests.postgres import new_schema, postgres_server
from tests.serving import until

__all__ = ["postgres_server"]  # a fixture

BUDGET = Decimal("0.05")
IN, OUT = 10, 1000  # tokens of each answer
ANSWER_USD = Decimal(IN + OUT) / 10**6
FORM = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}


@dataclass
class Upstream:
    """A provider of two models at a dollar for a million tokens; it counts, and keeps its books."""

    asked: Counter[str] = field(default_factory=Counter)
    down: set[str] = field(default_factory=set)
    delay_s: float = 0.0
    owed: Decimal = Decimal(0)
    lock: Lock = field(default_factory=Lock)
    url: str = ""

    def answer(self, model: str) -> bool:
        """Whether the model answers, which costs something."""
        with self.lock:
            self.asked[model] += 1
        time.sleep(self.delay_s)
        with self.lock:
            if model in self.down:
                return False
            self.owed += ANSWER_USD
            return True


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    provider = Upstream()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            model = json.loads(self.rfile.read(int(self.headers["content-length"])))["model"]
            answers = provider.answer(model)
            message = {"role": "assistant", "content": '{"word": "so"}'}
            usage = {"prompt_tokens": IN, "completion_tokens": OUT, "total_tokens": IN + OUT}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            told = {"id": "1", "object": "chat.completion", "created": 0, "model": model}
            body = json.dumps(told | {"choices": [choice], "usage": usage}).encode()
            self.send_response(200 if answers else 503)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            """Whoever asked was killed."""

    server = Server(("127.0.0.1", 0), Handler)
    provider.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield provider
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Replica:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    url: str = ""

    def ask(self, word: str, model: str = "mine") -> httpx.Response:
        """One call that is not split: the first member that can, and the next one if it cannot."""
        form = {"type": "json_schema", "json_schema": {"name": "said", "schema": FORM}}
        messages = [{"role": "user", "content": word}]
        body = {"model": model, "messages": messages, "response_format": form}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)

    def leaves_alone(self, model: str, member: str) -> bool:
        told = httpx.get(f"{self.url}/metrics").text
        return f'r2graph_breaker_open{{member="{member}",model="{model}"}} 1.0' in told


@pytest.fixture(scope="module")
def source(postgres_server: str) -> str:
    return new_schema(postgres_server)


@pytest.fixture(scope="module")
def replicas(
    source: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Replica]]:
    folder = tmp_path_factory.mktemp("replicas")
    options = ["--port", "0"]
    for name in ("mine", "yours"):
        price = {"input_per_mtok": 1, "output_per_mtok": 1}
        about = {"model_kwargs": {"base_url": upstream.url}, "price": price}
        members = [{"name": each, "model": f"openai:{each}", **about} for each in ("m1", "m2")]
        (folder / f"{name}.yaml").write_text(json.dumps({"name": name, "members": members}))
        options += ["--pool", str(folder / f"{name}.yaml")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("R2GRAPH")}
    environment |= {"R2GRAPH_LEDGER": source, "R2GRAPH_POOL_BUDGET": str(BUDGET)}
    code = "from r2graph.cli import app; app()"
    with ExitStack() as stack:
        started = [
            Replica(
                stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", code, "serve", *options],
                        env=environment,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        text=True,
                    )
                )
            )
            for _ in range(3)
        ]
        for each in started:
            stack.callback(each.process.kill)
        for each in started:
            assert each.process.stdout is not None
            told = each.process.stdout.readline()
            assert re.fullmatch(r"r2graph serves mine, yours, without a key: http://\S+\n", told)
            each.url = told.split()[-1]
            until(lambda url=each.url: is_up(url))  # type: ignore[misc]
        yield started


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        return False


def test_what_one_replica_finds_down_the_other_leaves_alone(
    replicas: list[Replica], upstream: Upstream
) -> None:
    finder, other, _ = replicas
    upstream.down = {"m1"}
    try:
        while not finder.leaves_alone("mine", "m1"):
            assert finder.ask("find").is_success  # m2 takes its place
        found = upstream.asked["m1"]
        assert 5 <= found <= 7
        assert all(other.ask(f"spare {n}").is_success for n in range(5))
        assert upstream.asked["m1"] == found
        assert other.leaves_alone("mine", "m1")
        # The same members in another pool, of which nobody has told it anything: it has to ask.
        assert other.ask("control", model="yours").is_success
        assert upstream.asked["m1"] > found
    finally:
        upstream.down = set()


def test_after_a_replica_is_killed_clients_go_to_another_and_all_that_is_owed_is_on_record(
    replicas: list[Replica], upstream: Upstream, source: str
) -> None:
    _, other, killed = replicas
    words = [f"kill {n}" for n in range(6)]
    before = upstream.asked.total()
    upstream.delay_s = 1.0
    try:
        with ThreadPoolExecutor(len(words)) as clients:
            asked = [clients.submit(killed.ask, word, "yours") for word in words]
            until(lambda: upstream.asked.total() == before + len(words))
            killed.process.kill()
            for each in asked:
                with pytest.raises(httpx.TransportError):
                    each.result()
        upstream.delay_s = 0.0
        assert all(other.ask(word, "yours").is_success for word in words)
    finally:
        upstream.delay_s = 0.0
    with Ledger(source) as ledger:
        until(lambda: sum(map(ledger.is_in_doubt, ledger.lines())) == len(words))
        recorded = sum(line.usd for line in ledger.lines())
    assert upstream.owed <= recorded <= BUDGET


def test_replicas_together_spend_no_more_than_the_budget(
    replicas: list[Replica], upstream: Upstream, source: str
) -> None:
    pair = replicas[:2]
    upstream.delay_s = 0.02

    def ask(number: int) -> int:
        return pair[number % 2].ask(f"spend {number}").status_code

    with ThreadPoolExecutor(16) as clients:
        ends = Counter(clients.map(ask, range(100)))
    assert set(ends) == {200, 402}
    assert pair[0].ask("spend").status_code == pair[1].ask("spend").status_code == 402
    with Ledger(source) as ledger:
        recorded = sum(line.usd for line in ledger.lines())
    assert upstream.owed <= recorded <= BUDGET
    assert recorded > BUDGET - 2 * ANSWER_USD  # and no less: what was reserved is given back
