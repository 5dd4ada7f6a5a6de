"""Loading a checkpoint, a router or a pool file never runs code, and tampered state is refused.

Covered: what LangGraph's serializers and savers read, in memory and in SQLite; what transformers
reads of a router's folder; YAML. Each poison would make a file when it runs. Not covered: whoever
writes to a checkpoint can still change *data* within its form, such as delete lines of the bill.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import ormsgpack
import pytest
import yaml
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.base import CipherProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver

from r2graph.checkpoints import strict
from r2graph.errors import CheckpointError, ConfigError, PlanError, R2Error
from r2graph.graph import R2Graph, create_r2_graph
from r2graph.lab import benchmarks
from r2graph.pool import load_pool
from r2graph.router import load_router
from tests.conftest import Figure
from tests.fakes import Planned, echo, pool_of

THREAD: RunnableConfig = {"configurable": {"thread_id": "1"}}
ROUTER = Path(benchmarks.__file__).parent / "artefacts" / "router-sft"

# The codes of `langgraph.checkpoint.serde.jsonplus`, which a checkpoint's bytes name.
ONE, MANY, NAMED, METHOD, PYDANTIC_1, PYDANTIC_2 = 0, 1, 2, 3, 4, 5


class OnLoad:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def ext(code: int, *content: object) -> ormsgpack.Ext:
    return ormsgpack.Ext(code, ormsgpack.packb(content))


@dataclass(frozen=True)
class Poison:
    """A value that runs code when it is read, given a command and the file that it makes."""

    where: str
    """A channel's name, `write` (of a task), `send` or `metadata`."""
    make: Callable[[str, str], object]
    encoding: str = "msgpack"

    def typed(self, command: str, file: str) -> tuple[str, bytes]:
        value = self.make(command, file)
        if self.encoding == "pickle":
            return "pickle", pickle.dumps(value)
        if self.encoding == "json":
            return "json", json.dumps(value).encode()
        return JsonPlusSerializer().dumps_typed(value)


def _shell(command: str) -> dict[str, object]:
    return {"args": command, "shell": True}


SYSTEM = ["os", "system"]
POISONS = {
    "os.system": Poison("plan", lambda command, _: ext(ONE, "os", "system", command)),
    "eval": Poison(
        "query", lambda _, file: ext(ONE, "builtins", "eval", f"open({file!r}, 'w').close()")
    ),
    "exec": Poison(
        "answer", lambda _, file: ext(MANY, "builtins", "exec", [f"open({file!r}, 'w').close()"])
    ),
    "os.mkdir": Poison("steps", lambda _, file: {"s1": ext(MANY, "os", "mkdir", [file])}),
    "subprocess.run": Poison(
        "progress", lambda command, _: ext(NAMED, "subprocess", "run", _shell(command))
    ),
    "a pydantic v1 model": Poison(
        "bill", lambda command, _: [ext(PYDANTIC_1, "subprocess", "run", _shell(command))]
    ),
    "a pydantic v2 model inside a message": Poison(
        "messages",
        lambda command, _: [
            ext(
                PYDANTIC_2,
                "langchain_core.messages.human",
                "HumanMessage",
                {"content": ext(PYDANTIC_2, "subprocess", "call", _shell(command), "")},
                "model_validate_json",
            )
        ],
    ),
    "a task's result": Poison("write", lambda command, _: ext(ONE, "os", "system", command)),
    "the argument of a Send": Poison(
        "send",
        lambda command, _: [
            ext(MANY, "langgraph.types", "Send", ["verify", ext(ONE, "os", "system", command)])
        ],
    ),
    "metadata": Poison("metadata", lambda command, _: {"x": ext(ONE, "os", "system", command)}),
    "a JSON constructor": Poison(
        "allocation",
        lambda command, _: {"lc": 2, "type": "constructor", "id": SYSTEM, "args": [command]},
        "json",
    ),
    "a pickle": Poison("write", lambda command, _: OnLoad(command), "pickle"),
}
assert len(POISONS) == 12


def permissive() -> JsonPlusSerializer:
    """The worst that a user can set."""
    return JsonPlusSerializer(
        pickle_fallback=True, allowed_json_modules=True, allowed_msgpack_modules=True
    )


def graph_of(saver: BaseCheckpointSaver[Any]) -> R2Graph:
    return create_r2_graph(
        pool_of(echo()), decomposer=Planned("s1: a\ns2: b {s1}"), checkpointer=saver
    )


def interrupted(saver: BaseCheckpointSaver[Any]) -> None:
    """A run that stands before its last node."""
    graph_of(saver).invoke("q", THREAD, interrupt_before=["verify"])


def poisoned_memory(saver: InMemorySaver, poison: Poison, command: str, file: str) -> None:
    typed = poison.typed(command, file)
    interrupted(saver)
    if poison.where in ("write", "send"):
        channel = "__return__" if poison.where == "write" else "__pregel_tasks"
        for checkpoint in saver.storage["1"][""]:
            saver.writes[("1", "", checkpoint)][("t", 0)] = ("t", channel, typed, "")
    elif poison.where == "metadata":
        for checkpoint, (value, _, parent) in saver.storage["1"][""].items():
            saver.storage["1"][""][checkpoint] = (value, typed, parent)
    else:
        for key in saver.blobs:
            if key[2] == poison.where:
                saver.blobs[key] = typed


def poisoned_sqlite(saver: SqliteSaver, poison: Poison, command: str, file: str) -> None:
    encoding, content = poison.typed(command, file)
    interrupted(saver)
    if poison.where in ("write", "send"):
        channel = "__return__" if poison.where == "write" else "__pregel_tasks"
        saver.conn.execute(
            "INSERT INTO writes"
            " (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, value)"
            " SELECT thread_id, checkpoint_ns, checkpoint_id, 't', 0, ?, ?, ? FROM checkpoints",
            (channel, encoding, content),
        )
        return
    rows = saver.conn.execute("SELECT checkpoint_id, type, checkpoint FROM checkpoints").fetchall()
    for row, kind, blob in rows:
        # SQLite's metadata is JSON that no hook reads, so the poison lies in the values.
        channel = "plan" if poison.where == "metadata" else poison.where
        checkpoint = saver.serde.loads_typed((kind, blob))
        if channel not in checkpoint["channel_values"]:
            continue
        checkpoint["channel_values"][channel] = poison.make(command, file)
        if encoding == "json":
            checkpoint["channel_values"].pop("messages")
            new = (encoding, json.dumps(checkpoint).encode())
        else:
            new = saver.serde.dumps_typed(checkpoint)
        saver.conn.execute(
            "UPDATE checkpoints SET type = ?, checkpoint = ? WHERE checkpoint_id = ?", (*new, row)
        )


@pytest.fixture(params=["memory", "sqlite"])
def saver(request: pytest.FixtureRequest) -> Iterator[BaseCheckpointSaver[Any]]:
    if request.param == "memory":
        yield InMemorySaver()
    else:
        with SqliteSaver.from_conn_string(":memory:") as made:
            yield made


def poison_all(saver: Any, poison: Poison, file: Path) -> None:
    plant = poisoned_sqlite if isinstance(saver, SqliteSaver) else poisoned_memory
    plant(saver, poison, f"touch {file}", str(file))


def load(read: Callable[[], object]) -> None:
    """Read, and let the reader refuse what it is given."""
    with suppress(R2Error, NotImplementedError, ValueError, TypeError, KeyError, AttributeError):
        read()


def load_all(graph: R2Graph) -> None:
    load(lambda: graph.get_state(THREAD))
    load(lambda: list(graph.get_state_history(THREAD)))
    load(lambda: graph.invoke(None, THREAD))
    load(lambda: graph.invoke("again", THREAD))


@pytest.mark.parametrize("name", POISONS)
def test_a_poisoned_checkpoint_runs_nothing(
    name: str,
    saver: BaseCheckpointSaver[Any],
    tmp_path: Path,
    figure: Figure,
) -> None:
    file = tmp_path / "executed"
    poison_all(saver, POISONS[name], file)
    executions = 0
    for serde in (JsonPlusSerializer(), permissive(), encrypted(permissive())):
        saver.serde = serde
        load_all(graph_of(saver))
        executions += file.exists()
    figure(f"poisoned checkpoints, {name}: executions in 12 loads", executions)
    assert executions == 0


@pytest.mark.filterwarnings("ignore")
def test_the_poisons_work_where_nothing_is_strict(tmp_path: Path, figure: Figure) -> None:
    """The control: with the savers as LangGraph makes them, or as careless as can be."""
    executed: dict[str, set[str]] = {}
    for label, serde in (("default", JsonPlusSerializer()), ("permissive", permissive())):
        executed[label] = set()
        for number, (name, poison) in enumerate(POISONS.items()):
            careless = InMemorySaver()
            file = tmp_path / f"{label}-{number}"
            poison_all(careless, poison, file)
            careless.serde = serde
            load(lambda saver=careless: list(saver.list(THREAD)))  # type: ignore[misc]
            if file.exists():
                executed[label].add(name)
    figure(
        "poisoned checkpoints: executions in the control",
        "; ".join(f"{label}: {len(names)} of 12" for label, names in executed.items()),
    )
    assert executed["permissive"] == POISONS.keys()
    assert executed["default"] == POISONS.keys() - {"a JSON constructor", "a pickle"}


class Xor(CipherProtocol):
    """No cipher, but it changes the bytes."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "xor", bytes(byte ^ 1 for byte in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        return bytes(byte ^ 1 for byte in ciphertext)


def encrypted(inner: JsonPlusSerializer) -> EncryptedSerializer:
    return EncryptedSerializer(Xor(), inner)


class Counting(JsonPlusSerializer):
    """A user's own, which counts what it writes."""

    written = 0

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.written += 1
        return super().dumps_typed(obj)


def test_messages_load_as_messages() -> None:
    for serde in (None, permissive(), encrypted(permissive()), Counting()):
        graph = graph_of(InMemorySaver(serde=serde))
        result = graph.invoke("q", THREAD)
        found = graph.get_state(THREAD).values
        assert [type(message) for message in found["messages"]] == [HumanMessage, AIMessage]
        assert found["steps"] == result["steps"]


def test_encryption_and_a_users_own_serializer_stay() -> None:
    graph = graph_of(saver := InMemorySaver(serde=encrypted(permissive())))
    graph.invoke("q", THREAD)
    assert {kind for kind, _ in saver.blobs.values()} <= {"msgpack+xor", "null+xor", "empty"}
    graph = graph_of(InMemorySaver(serde=Counting()))
    graph.invoke("q", THREAD)
    checkpointer = graph.checkpointer
    assert isinstance(checkpointer, InMemorySaver)
    assert isinstance(checkpointer.serde, Counting)
    assert checkpointer.serde.written > 0


def test_the_users_checkpointer_is_left_as_it_is() -> None:
    saver = InMemorySaver(serde=(serde := permissive()))
    graph = graph_of(saver)
    graph.invoke("q", THREAD)
    assert saver.serde is serde
    assert serde.pickle_fallback
    assert saver.get_tuple(THREAD) is not None, "both write to the same storage"
    assert graph.checkpointer is not saver
    assert [strict(given) for given in (None, True, False)] == [None, True, False]


def test_pickle_as_a_serializer_is_refused() -> None:
    with pytest.raises(ConfigError, match="pickle"):
        graph_of(InMemorySaver(serde=pickle))  # type: ignore[arg-type]


SERVED = """
import logging, warnings
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.event_hooks import register_serde_event_listener
from r2graph.graph import create_r2_graph
from tests.fakes import Planned, echo, pool_of

warnings.simplefilter("error")
events, records = [], []
register_serde_event_listener(events.append)
logging.getLogger("langgraph").addHandler(handler := logging.Handler())
handler.emit = records.append
graph = create_r2_graph(pool_of(echo()), decomposer=Planned("s1: a\\ns2: b {s1}"))
graph.checkpointer = InMemorySaver()  # as a server does, after the graph was made
thread = {"configurable": {"thread_id": "1"}}
graph.invoke("q", thread, interrupt_before=["verify"])
result = graph.invoke(None, thread)
found = graph.get_state(thread).values
assert list(graph.get_state_history(thread))
assert isinstance(found["messages"][-1], AIMessage)
assert all(found[key] == result[key] for key in result), "the state did not come back as it was"
print(f"{len(events)} blocked, {len(records)} warnings")
"""


def test_a_servers_strict_checkpointer_gives_the_state_back_unchanged(figure: Figure) -> None:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", SERVED],
        cwd=root,
        env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    figure("strict msgpack", done.stdout.strip())
    assert done.stdout == "0 blocked, 0 warnings\n", done.stderr


# Whoever can write to a checkpoint can write data, too.


def tampered(channel: str, edit: Callable[[Any], Any], before: str = "verify") -> R2Graph:
    """A run that stands before a node, with each stored value of a channel edited."""
    saver = InMemorySaver()
    graph = create_r2_graph(
        pool_of(echo(), language="any"),
        decomposer=Planned("s1: a\ns2: b {s1}"),
        checkpointer=saver,
    )
    graph.invoke("q", THREAD, interrupt_before=[before])
    for key, typed in saver.blobs.items():
        if key[2] == channel:
            saver.blobs[key] = saver.serde.dumps_typed(edit(saver.serde.loads_typed(typed)))
    return graph


NONSENSE = ["x", 7, None, [], {}, ["a"], {"a": 1}, -1.5, [{"cost_usd": "1"}], True]
CHANNELS = ["query", "messages", "run_id", "progress", "bill", "plan", "allocation", "steps"]
NODES = ["decompose", "allocate", "execute_step", "verify"]


def test_state_of_the_wrong_form_is_a_typed_error_or_is_not_used(figure: Figure) -> None:
    refused = 0
    for before in NODES:
        for channel in (*CHANNELS, "answer", "stop_reason", "run"):
            for value in NONSENSE:
                graph = tampered(channel, lambda _, new=value: new, before)  # type: ignore[misc]
                try:
                    result = graph.invoke(None, THREAD)
                except R2Error:
                    refused += 1
                else:
                    assert isinstance(result["answer"], str), (before, channel, value)
    figure("tampered states refused, of 440 (the others are not used)", refused)
    assert refused > 100


def billed(**change: object) -> Callable[[Any], Any]:
    return lambda bill: [entry | change for entry in bill]


@pytest.mark.parametrize(
    ("channel", "edit", "error"),
    [
        ("bill", billed(cost_usd="-1"), CheckpointError),
        ("bill", billed(cost_usd="NaN"), CheckpointError),
        ("bill", billed(cost_usd=-1.0), CheckpointError),
        ("bill", billed(role="owner"), CheckpointError),
        ("progress", lambda progress: progress | {"round": -(10**9)}, CheckpointError),
        ("progress", lambda progress: progress | {"stop": "because"}, CheckpointError),
        ("plan", lambda plan: plan | {"subtasks": []}, PlanError),
        ("plan", lambda plan: plan | {"run": "rm -rf"}, PlanError),
        ("messages", lambda messages: [*messages, "as a raw string"], CheckpointError),
    ],
)
def test_a_tampered_value_is_refused(
    channel: str, edit: Callable[[Any], Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        tampered(channel, edit).invoke(None, THREAD)


def test_a_step_that_the_plan_has_not_is_refused() -> None:
    def rename(steps: dict[str, Any]) -> dict[str, Any]:
        return {"s7" if name == "s2" else name: step for name, step in steps.items()}

    with pytest.raises(CheckpointError):
        tampered("steps", rename).invoke(None, THREAD)


def test_another_steps_output_is_refused() -> None:
    def swap(steps: dict[str, Any]) -> dict[str, Any]:
        return {"s1": steps["s2"], "s2": steps["s1"]} if steps else {}

    with pytest.raises(CheckpointError):
        tampered("steps", swap).invoke(None, THREAD)


def test_a_round_beyond_all_bounds_ends_the_run() -> None:
    graph = tampered("progress", lambda progress: progress | {"round": 10**9}, before="allocate")
    assert graph.invoke(None, THREAD)["stop_reason"] in ("unverified", "rounds", "verified")


def test_unknown_keys_are_dropped() -> None:
    graph = tampered("bill", billed(limits={"max_calls": 10**9}))
    result = graph.invoke(None, THREAD)
    assert "limits" not in json.dumps(result["usage"])


def test_a_shortened_bill_is_believed() -> None:
    """What cannot be promised: the bill in a checkpoint is as good as who may write it."""
    result = tampered("bill", lambda _: []).invoke(None, THREAD)
    assert result["usage"] == {}


# Routers and pools.


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def poisoned_router(folder: Path, file: Path) -> Path:
    """A router that works, with poison beside all of its files."""
    copytree(ROUTER, folder)
    for module in ("decomposer", "allocator"):
        home = folder / module
        for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "model.pt"):
            (home / name).write_bytes(pickle.dumps(Touch(file)))
        code = f"open({str(file)!r}, 'w').close()\n"
        for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py"):
            (home / name).write_text(code + "class Evil: pass\n")
        config = json.loads((home / "config.json").read_text())
        config |= {
            "trust_remote_code": True,
            "auto_map": {
                "AutoConfig": "configuration_evil.Evil",
                "AutoModelForCausalLM": "modeling_evil.Evil",
            },
        }
        (home / "config.json").write_text(json.dumps(config))
        (home / "custom_generate").mkdir()
        (home / "custom_generate" / "generate.py").write_text(code)
    return folder


def test_a_poisoned_router_runs_nothing(tmp_path: Path, figure: Figure) -> None:
    file = tmp_path / "executed"
    folder = poisoned_router(tmp_path / "router", file)
    graph = create_r2_graph(pool_of(echo(), language="lab"), router=folder)
    load(lambda: graph.invoke("jump twice"))
    figure("executions of a poisoned router", int(file.exists()))
    assert not file.exists()
    # The control: the same file, read as PyTorch reads a pickle.
    pickle.loads((folder / "decomposer" / "pytorch_model.bin").read_bytes())
    assert file.exists()


def test_a_router_of_pickles_alone_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "executed"
    folder = poisoned_router(tmp_path / "router", file)
    for weights in folder.rglob("*.safetensors"):
        weights.write_bytes(pickle.dumps(Touch(file)))
    graph = create_r2_graph(pool_of(echo(), language="lab"), router=folder)
    load(lambda: graph.invoke("jump twice"))
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ConfigError):
        load_router(folder)
    assert not file.exists()


TAGS = {
    "apply": "!!python/object/apply:os.system ['touch {file}']",
    "new": "!!python/object/new:subprocess.check_call [['touch', '{file}']]",
    "name": "!!python/name:os.system",
    "module": "!!python/module:antigravity",
    "object": "!!python/object:pathlib.Path {{}}",
}


@pytest.mark.parametrize("tag", TAGS)
def test_a_poisoned_yaml_file_runs_nothing(tag: str, tmp_path: Path) -> None:
    file = tmp_path / "executed"
    value = TAGS[tag].format(file=file)
    pool = tmp_path / "pool.yaml"
    pool.write_text(f"name: p\nmembers:\n  - name: m\n    model: {value}\n")
    with pytest.raises(ConfigError):
        load_pool(pool)
    (tmp_path / "router.yaml").write_text(f"name: {value}\n")
    with pytest.raises(ConfigError):
        load_router(tmp_path)
    assert not file.exists()
    if tag in ("apply", "new"):  # the control
        yaml.unsafe_load(value)
        assert file.exists()


@pytest.mark.parametrize("kwargs", [{"trust_remote_code": True}, {"x": {"trust_remote_code": "1"}}])
def test_a_pool_never_trusts_remote_code(kwargs: dict[str, Any]) -> None:
    member = {"name": "m", "model": "local:m", "model_kwargs": kwargs}
    price = {"price": {"input_per_mtok": 1, "output_per_mtok": 1}}
    with pytest.raises(ConfigError, match="never runs code"):
        load_pool({"name": "p", "members": [member | price]})
