"""No key in checkpoints, ledger, logs, traces, exceptions or reprs.

Twelve secrets are put where secrets come from; 200 runs, four fifths of which fail, on a real HTTP
server that says back in every error which key it was sent; then all that was written or shown is
searched for each of them, as it is and in base64. A control shows that the search finds them.

Not covered: prompts in checkpoints and traces, where they belong; logs of HTTP and database
libraries at DEBUG, which hold prompts; what users themselves put into `configurable`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import traceback
from base64 import b64encode
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import httpx
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.schemas import Run
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr
from typing_extensions import TypedDict

from r2graph.errors import ConfigError, R2Error
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.ledger import Ledger
from r2graph.limits import Limits
from r2graph.pool import ModelPool, load_pool
from tests.conftest import Figure
from tests.fakes import FakeChat, member

NAMES = [
    "the provider's key",  # OPENAI_API_KEY
    "the key in key_env",
    "the key of a provider that is not used",
    "a SecretStr in a chat model of the user's",
    "a default header of the user's",
    "a password in the URL of a pool",
    "a key in model_kwargs",
    "a key in a header in model_kwargs",
    "the text of a provider's error",
    "the body of a response",
    "the headers of a response",
    "the prompt",
]
CANARIES = {name: f"CANARY{number:02}x7Qz9LmK4vTb" for number, name in enumerate(NAMES, 1)}
assert len(CANARIES) == 12

RUNS = 200
Mode = Literal["answer", "401", "429", "500", "malformed", "empty", "reset", "exception"]
MODES: list[Mode] = ["answer", "401", "429", "500", "malformed", "empty", "reset", "exception"]
WORLDS = ["invoke", "stream", "ainvoke", "astream", "events"]
# Where a secret could turn up. Whatever else writes to disk or shows something belongs here.
PLACES = ["results", "checkpoints", "ledger", "logs", "spans", "callbacks", "exceptions", "reprs"]
PLACES_OF_PROMPTS = {"results", "checkpoints", "spans", "callbacks"}
OTHERS_LOGGERS = ("openai", "httpx", "httpcore", "aiosqlite")


class Evidence:
    """All that was written and shown, by place."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = defaultdict(list)

    def add(self, place: str, *shown: object) -> None:
        assert place in PLACES
        for each in shown:
            self.texts[place].append(
                each.decode("latin-1") if isinstance(each, bytes) else str(each)
            )

    def add_file(self, place: str, path: Path) -> None:
        """A database, with what lies beside it."""
        for each in path.parent.glob(path.name + "*"):
            self.add(place, each.read_bytes())

    def add_error(self, error: BaseException) -> None:
        self.add("exceptions", *traceback.format_exception(error), repr(error), vars(error))
        if isinstance(error, R2Error):
            self.add("exceptions", pickle.dumps(error))

    def hits(self) -> set[tuple[str, str]]:
        found = set()
        for place, texts in self.texts.items():
            everything = "\n".join(texts)
            for name, canary in CANARIES.items():
                if any(form in everything for form in forms(canary)):
                    found.add((place, name))
        return found


def forms(secret: str) -> list[str]:
    """A text, and its base64 wherever it may begin in what is encoded."""
    encoded = [b64encode(b"x" * shift + secret.encode()).decode()[4:-4] for shift in range(3)]
    return [secret, *encoded]


# Where things are seen.


class Logs(logging.Handler):
    """Every record of every logger, as it would be written."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__(logging.DEBUG)
        self.evidence = evidence
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s %(args)s"))

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if record.name.partition(".")[0] in OTHERS_LOGGERS:
            line = line.replace(CANARIES["the prompt"], "")
        self.evidence.add("logs", line)


class Keeping(BaseTracer):
    """What a tracer such as LangSmith's would send."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__()
        self.evidence = evidence

    def _persist_run(self, run: Run) -> None:
        self.evidence.add("callbacks", _all_of(run))


def _all_of(run: Run) -> str:
    shown = [run.name, run.inputs, run.outputs, run.error, run.extra, run.serialized, run.events]
    return repr([*shown, run.tags, *map(_all_of, run.child_runs)])


class Listening(BaseCallbackHandler):
    """What a callback of the user's is told."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    def on_chat_model_start(self, serialized: Any, messages: Any, **details: Any) -> None:
        self.evidence.add("callbacks", repr((serialized, messages, details)))

    def on_llm_error(self, error: BaseException, **details: Any) -> None:
        self.evidence.add("callbacks", *traceback.format_exception(error), repr(vars(error)))
        self.evidence.add("callbacks", repr(details))

    def on_chain_error(self, error: BaseException, **details: Any) -> None:
        self.evidence.add("callbacks", *traceback.format_exception(error), repr(details))


@contextmanager
def watched(evidence: Evidence) -> Iterator[RunnableConfig]:
    """Logs and spans are kept; the config brings the callbacks."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    root, handler = logging.getLogger(), Logs(evidence)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield RunnableConfig(callbacks=[Keeping(evidence), Listening(evidence)])
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        instrumentor.uninstrument()
        provider.shutdown()
        spans = exporter.get_finished_spans()
        evidence.add("spans", *(span.to_json() for span in spans))


# Where the secrets come from.


class TalkativeServer(ThreadingHTTPServer):
    """Speaks OpenAI's format; its errors say back which key it was sent."""

    daemon_threads = True
    mode: Mode = "answer"
    keys: set[str]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.keys = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none."""


PLAN = {"subtasks": [{"id": "s1", "text": "one"}, {"id": "s2", "text": "two {s1}"}]}


class _Handler(BaseHTTPRequestHandler):
    server: TalkativeServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, else each answer waits 40 ms for an ACK

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        sent = dict(self.headers)
        self.server.keys |= {value for value in sent.values() if "CANARY" in value}
        mode = self.server.mode
        if mode == "reset":
            self.close_connection = True
            self.connection.close()
        elif mode in ("401", "429", "500"):
            told = {"error": {"message": f"you sent {sent}", "code": str(sent), "param": sent}}
            self._send(int(mode), json.dumps(told))
        elif mode == "malformed":
            self._send(200, f'{{"choices": {sent}')
        else:
            plan = "response_format" in body or "tools" in body
            text = "" if mode == "empty" else json.dumps(PLAN) if plan else "fine"
            self._answer(text, stream=bool(body.get("stream")))

    def _answer(self, text: str, *, stream: bool) -> None:
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        said = {"role": "assistant", "content": text}
        head = {"id": "1", "created": 1, "model": "served"}
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if stream:
            chunk = head | {"object": "chat.completion.chunk"}
            chunks = [
                chunk | {"choices": [choice | {"delta": said}]},
                chunk | {"choices": [], "usage": usage},
            ]
            lines = "".join(f"data: {json.dumps(each)}\n\n" for each in chunks)
            self._send(200, lines + "data: [DONE]\n\n", "text/event-stream")
        else:
            whole = head | {"object": "chat.completion", "usage": usage}
            self._send(200, json.dumps(whole | {"choices": [choice | {"message": said}]}))

    def _send(self, status: int, text: str, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture(scope="module")
def server() -> Iterator[TalkativeServer]:
    with TalkativeServer() as made:
        Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield made
        made.shutdown()


class LeakyError(Exception):
    """What the SDK of a careless provider raises."""

    def __init__(self) -> None:
        text = CANARIES["the text of a provider's error"]
        super().__init__(f"your key {text} is wrong")
        self.message = f"your key {text} is wrong"
        self.status_code = 401
        self.response = httpx.Response(
            401,
            headers={"x-echo": CANARIES["the headers of a response"]},
            json={"echo": CANARIES["the body of a response"]},
        )
        self.body = {"echo": CANARIES["the body of a response"]}
        self.add_note(text)
        self.__cause__ = ValueError(text)


PRICE = {"input_per_mtok": "1", "output_per_mtok": "2"}


def pool_of(server: TalkativeServer, mode: Mode) -> ModelPool:
    """Members with a key each, on the server; or one that fails by itself."""
    if mode == "exception":
        return ModelPool(
            name="careless",
            members=(member("m1", FakeChat(answer=lambda _: LeakyError())),),
        )
    own = ChatOpenAI(
        model="own",
        base_url=server.url,
        api_key=SecretStr(CANARIES["a SecretStr in a chat model of the user's"]),
        default_headers={"X-Api-Key": CANARIES["a default header of the user's"]},
        model_kwargs={"extra_headers": {"X-Auth": CANARIES["a default header of the user's"]}},
        max_retries=0,
    )
    members = [
        {"name": "m1", "model": "openai:usual", "price": PRICE},
        {
            "name": "m2",
            "model": "openai:own-server",
            "model_kwargs": {"base_url": server.url},
            "key_env": "MY_SERVER_KEY",
            "price": PRICE,
        },
        {"name": "m3", "model": own, "price": PRICE},
    ]
    return load_pool({"name": "served", "members": members, "decomposer": "m3", "judge": "m2"})


def refused_pools(server: TalkativeServer) -> Iterator[dict[str, Any]]:
    """Pools that hold a secret in clear."""
    password = CANARIES["a password in the URL of a pool"]
    url = server.url.replace("//", f"//user:{password}@")
    header = {"Authorization": f"Bearer {CANARIES['a key in a header in model_kwargs']}"}
    for kwargs in (
        {"base_url": url},
        {"openai_proxy": url},
        {"api_key": CANARIES["a key in model_kwargs"]},
        {"default_headers": header},
        {"base_url": server.url, "model_kwargs": {"extra_headers": header}},
    ):
        member = {"name": "m1", "model": "openai:m", "price": PRICE, "model_kwargs": kwargs}
        yield {"name": "p", "members": [member]}


# The runs.


def shown(graph: R2Graph) -> Iterator[object]:
    pool = graph.defaults.pool
    for each in (graph, pool, graph.defaults, *pool.members, pool.members[0].identity):
        yield repr(each)
        yield str(each)
    yield graph.get_graph().draw_mermaid()
    yield json.dumps([graph.get_input_jsonschema(), graph.get_output_jsonschema()])


STREAM_MODES: Any = ["values", "updates", "messages", "custom", "tasks", "checkpoints", "debug"]


async def run_one(graph: R2Graph, world: str, config: RunnableConfig) -> AsyncIterator[object]:
    query = f"what is {CANARIES['the prompt']}?"
    if world == "invoke":
        yield graph.invoke(query, config)
    elif world == "ainvoke":
        yield await graph.ainvoke(query, config)
    elif world == "stream":
        for chunk in graph.stream(query, config, stream_mode=STREAM_MODES):
            yield chunk
    elif world == "astream":
        async for chunk in graph.astream(query, config, stream_mode=STREAM_MODES):
            yield chunk
    else:
        async for event in graph.astream_events({"query": query}, config, version="v2"):
            yield event


async def make_runs(server: TalkativeServer, evidence: Evidence, folder: Path) -> dict[str, int]:
    """200 runs; returns how many ended how."""
    ends: dict[str, int] = defaultdict(int)
    pools = {mode: pool_of(server, mode) for mode in ("answer", "exception")}
    numbers = count(1)
    path = folder / "checkpoints.sqlite"
    with watched(evidence) as config, Ledger(folder / "ledger.sqlite") as ledger:
        with SqliteSaver.from_conn_string(str(path)) as saver:
            async with AsyncSqliteSaver.from_conn_string(str(path)) as asaver:
                for number in range(RUNS):
                    server.mode = MODES[number // len(WORLDS) % len(MODES)]
                    world = WORLDS[number % len(WORLDS)]
                    graph = create_r2_graph(
                        pools["exception" if server.mode == "exception" else "answer"],
                        checkpointer=saver if world in ("invoke", "stream") else asaver,
                        ledger=ledger,
                        limits=Limits(max_retries=number % 40 == 10),
                    )
                    thread = {"configurable": {"thread_id": str(next(numbers))}}
                    try:
                        async for chunk in run_one(graph, world, {**config, **thread}):
                            evidence.add("results", repr(chunk))
                        ends["answered"] += 1
                    except R2Error as error:
                        evidence.add_error(error)
                        ends[type(error).__name__] += 1
                    if number % 20 == 0:
                        evidence.add("reprs", *shown(graph))
                evidence.add_file("checkpoints", path)
        evidence.add("ledger", *map(repr, ledger.lines()))
        evidence.add_file("ledger", folder / "ledger.sqlite")
    return ends


def test_no_secret_is_written_or_shown_in_200_runs(
    server: TalkativeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Figure,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARIES["the provider's key"])
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("MY_SERVER_KEY", CANARIES["the key in key_env"])
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARIES["the key of a provider that is not used"])
    evidence = Evidence()
    ends = asyncio.run(make_runs(server, evidence, tmp_path))
    assert sum(ends.values()) == RUNS
    assert len(server.keys) == 4, "the server was sent each key that it was to have"
    for given in refused_pools(server):
        with pytest.raises(ConfigError) as refused:
            load_pool(given)
        evidence.add_error(refused.value)
    size = {place: sum(map(len, texts)) for place, texts in evidence.texts.items()}
    figure("secrets: runs that end in", dict(ends))
    assert size.keys() == set(PLACES)
    hits = evidence.hits()
    expected = {(place, "the prompt") for place in PLACES_OF_PROMPTS}
    assert expected <= hits, "the search finds what is there"
    figure(f"secrets: hits of {len(CANARIES)} in {len(PLACES)} places", len(hits - expected))
    assert hits == expected


# The control: a graph, a logger and an error that leak all they can.


class Leak(TypedDict):
    text: str


class LeakingChat(FakeChat):
    """Shows its field in its repr and to tracers."""

    secret: str


def leaking(evidence: Evidence, folder: Path) -> None:
    everything = " ".join(CANARIES.values())
    chat = LeakingChat(answer=lambda _: ValueError(everything), secret=everything)

    def leak(state: Leak) -> Leak:
        logging.getLogger("anybody").debug("sent %s", everything)
        chat.invoke("x")
        return state

    path = folder / "leaky.sqlite"
    with watched(evidence) as config, SqliteSaver.from_conn_string(str(path)) as saver:
        builder = StateGraph(Leak)
        builder.add_node("leak", leak)
        builder.add_edge(START, "leak")
        builder.add_edge("leak", END)
        graph = builder.compile(checkpointer=saver)
        with pytest.raises(ValueError, match="CANARY") as failed:
            graph.invoke({"text": everything}, {**config, "configurable": {"thread_id": "1"}})
        evidence.add_error(failed.value)
        evidence.add("results", graph.get_state({"configurable": {"thread_id": "1"}}))
        evidence.add_file("checkpoints", path)
    with Ledger(folder / "ledger.sqlite") as ledger:
        page = ledger.page("run", "executor", "m1", "s1", ["prompt"])
        page.intend(Decimal(1))
        page.reply(1, Decimal(0), {"text": everything})
        evidence.add_file("ledger", folder / "ledger.sqlite")
    evidence.add("reprs", repr(chat))


def test_the_search_finds_every_secret_in_every_place(tmp_path: Path, figure: Figure) -> None:
    evidence = Evidence()
    leaking(evidence, tmp_path)
    hits = evidence.hits()
    figure("secrets: hits in the control", f"{len(hits)} of {len(PLACES) * len(CANARIES)}")
    assert hits == {(place, name) for place in PLACES for name in CANARIES}


def test_the_search_knows_base64() -> None:
    for name, canary in CANARIES.items():
        for before in ("", "u", "us", "user:"):
            evidence = Evidence()
            evidence.add("logs", b64encode(f"{before}{canary}".encode()))
            assert evidence.hits() == {("logs", name)}
