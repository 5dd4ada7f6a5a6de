"""`r2graph up`: the commands it prints are right, and what it starts it stops."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from r2graph.cli import app
from r2graph.errors import ConfigError
from r2graph.fleet import answers, started
from r2graph.pool import ModelPool, load_pool
from r2graph.servers import Server, servers
from tests import serving
from tests.test_router import directory

PRICE = {"input_per_mtok": 1, "output_per_mtok": 2}
UP = [sys.executable, "-c", "from r2graph.cli import app; app()", "up"]


def until(holds: Callable[[], bool]) -> None:
    serving.until(holds, 60)  # Python takes seconds to begin on a busy machine


def member(name: str, url: str | None = None, **more: Any) -> dict[str, Any]:
    settings = {} if url is None else {"model_kwargs": {"base_url": url}}
    return {"name": name, "model": f"openai:org/{name}", "price": PRICE} | settings | more


def at(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


def pool_of(*members: dict[str, Any]) -> ModelPool:
    return load_pool({"name": "mine", "members": members})


def wanted(*members: dict[str, Any]) -> list[Server]:
    return servers(pool_of(*members).members)


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


# What is printed


def r2graph_up(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["up", *arguments])


def test_a_shipped_pool_gets_a_line_a_server_and_a_remark_on_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    done = r2graph_up("hybrid")
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert lines == [
        "vllm serve Qwen/Qwen2.5-1.5B-Instruct --host 127.0.0.1 --port 8001",
        "vllm serve Qwen/Qwen2.5-7B-Instruct --host 127.0.0.1 --port 8002",
    ]
    assert "# gpt-6.1-sol: in the cloud, with the key in OPENAI_API_KEY\n" in done.stdout
    assert "sk-canary" not in done.stdout


def test_weights_and_other_machines_want_no_server_here(tmp_path: Path) -> None:
    local = {"name": "near", "model": "local:near", "price": PRICE}
    members = [local, member("far", "http://gpu-box:8000/v1", key_env="FAR_KEY")]
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump({"name": "mine", "members": members}))
    assert r2graph_up(str(tmp_path / "pool.yaml")).stdout.splitlines() == [
        "# near: weights are loaded in process",
        "# far: at http://gpu-box:8000/v1, with the key in FAR_KEY (not set)",
    ]


def test_a_command_is_quoted_for_the_shell_and_says_what_serve_says() -> None:
    serve = {"model": "/models/my model", "gpus": [1, 3], "args": "--override '{\"a\": 1}'"}
    [server] = wanted(member("m", at(8001), serve=serve))
    setting, *command = shlex.split(server.line())
    assert setting == "CUDA_VISIBLE_DEVICES=1,3"
    assert command == server.command()
    assert command[:3] == ["vllm", "serve", "/models/my model"]
    assert command[7:] == [
        "--served-model-name",
        "org/m",
        "--tensor-parallel-size",
        "2",
        "--override",
        '{"a": 1}',
    ]


def test_members_of_one_model_share_a_server_and_others_may_not() -> None:
    calm = member("calm", at(8001), model="openai:org/m")
    wild = member("wild", "http://localhost:8001/v1", model="openai:org/m")
    [server] = wanted(calm, wild)
    assert server.members == ("calm", "wild")
    with pytest.raises(ConfigError, match=r"'calm' and 'other' .* share port 8001"):
        wanted(calm, member("other", at(8001)))


@pytest.mark.parametrize("url", ["http://127.0.0.1:8001", "https://127.0.0.1:8001/v1"])
def test_a_url_that_vllm_does_not_have_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url of 'm'"):
        wanted(member("m", url))


def test_the_served_modules_of_a_router_get_servers_too(tmp_path: Path) -> None:
    asked = {"model": "openai:planner", "model_kwargs": {"base_url": at(8011)}}
    served = {"decomposer": asked | {"serve": {"model": "./decomposer"}}}
    router = directory(tmp_path, served=served)
    told = r2graph_up("lab", "--router", str(router)).stdout
    weights = shlex.quote(str(router / "decomposer"))
    command = f"vllm serve {weights} --host 127.0.0.1 --port 8011 --served-model-name planner"
    assert f"# mine-decomposer\n{command}\n" in told
    assert "# mine-allocator: weights are loaded in process\n" in told


def test_a_served_module_that_is_set_up_wrong_is_refused(tmp_path: Path) -> None:
    asked = {"model": "openai:planner", "model_kwargs": {"api_key": "sk-canary"}}
    done = r2graph_up("lab", "--router", str(directory(tmp_path, served={"decomposer": asked})))
    assert done.exit_code == 2
    assert "served.decomposer" in done.stderr
    assert "key_env" in done.stderr
    assert "sk-canary" not in done.stderr


def test_without_vllm_it_says_where_vllm_belongs(tmp_path: Path) -> None:
    done = r2graph_up("vllm", "--start", "--vllm", str(tmp_path / "vllm"))
    assert done.exit_code == 2
    assert "environment of its own" in done.stderr
    assert "--vllm" in done.stderr


# What is started


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """An executable that behaves as vLLM's."""
    path = tmp_path / "bin" / "vllm"
    path.parent.mkdir()
    source = (Path(__file__).parent / "fake_vllm.py").read_text()
    path.write_text(f"#!{sys.executable}\n{source}")
    path.chmod(0o755)
    return path


class Up:
    """`r2graph up --start` in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self._told = folder / "told"
        self.logs = folder / "logs"

    @property
    def told(self) -> str:
        return self._told.read_text()

    def pids(self) -> list[int]:
        """Of the servers and their engines, by their own account."""
        said = [json.loads(log.read_text()) for log in self.logs.glob("*.log")]
        return [pid for each in said for pid in (each["server"], each["engine"])]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def up(vllm: Path, *members: dict[str, Any], options: tuple[str, ...] = ()) -> Iterator[Up]:
    folder = vllm.parent.parent
    pool = folder / "pool.yaml"
    pool.write_text(yaml.safe_dump({"name": "mine", "members": members}))
    logs = ["--logs", str(folder / "logs")]
    with (folder / "told").open("wb") as file:
        process = subprocess.Popen(
            [*UP, str(pool), "--start", "--vllm", str(vllm), *logs, *options],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Up(process, folder)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def is_running(pid: int) -> bool:
    """A zombie, which waits for its parent to look at it, does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_servers_are_started_seen_to_answer_and_all_stopped(
    vllm: Path, number: signal.Signals
) -> None:
    one, two = free_ports(2)
    members = [member("a", at(one), serve={"gpus": [3]}), member("b", at(two))]
    with up(vllm, *members) as running:
        until(lambda: running.told.count("✓") == 2)
        assert f"✓ a: answers at {at(one)}" in running.told
        assert '"gpus": "3"' in (running.logs / f"{one}-a.log").read_text()
        pids = running.pids()
        assert len(pids) == 4
        assert all(map(is_running, pids))
        assert running.end(number) == 0
    until(lambda: not any(map(is_running, pids)))


def test_a_server_that_does_not_want_to_end_is_killed(vllm: Path, tmp_path: Path) -> None:
    stubborn = wanted(member("a-stubborn", at(free_ports(1)[0])))
    with started(stubborn, str(vllm), tmp_path, grace_s=0.1) as [child]:
        until(lambda: answers(child.server))
        pids = json.loads(child.log.read_text())
    assert child.process.returncode == -signal.SIGKILL
    until(lambda: not is_running(pids["engine"]))


def test_a_server_that_dies_is_told_of_with_its_log_and_the_others_go_on(vllm: Path) -> None:
    one, two = free_ports(2)
    with up(vllm, member("a-dies", at(one)), member("b", at(two))) as running:
        until(lambda: "✓ b" in running.told and "✗" in running.told)
        found = re.search(r"✗ a-dies: ended with exit code 1, see (\S+)", running.told)
        assert found
        assert Path(found[1]).read_text() == "there is no such model\n"
        assert running.process.poll() is None
        assert running.end() == 1


def test_it_ends_once_all_servers_have_died(vllm: Path) -> None:
    [port] = free_ports(1)
    with up(vllm, member("a-dies", at(port))) as running:
        assert running.process.wait(60) == 1


def test_a_server_that_does_not_list_its_model_in_time_ends_it_all(vllm: Path) -> None:
    one, two = free_ports(2)
    members = member("a-mute", at(one)), member("b", at(two))
    with up(vllm, *members, options=("--timeout", "2")) as running:
        assert running.process.wait(60) == 1
        assert "✗ a-mute: no answer in 2 s, see" in running.told
    assert not any(map(is_running, running.pids()))


def test_a_server_that_answers_already_is_not_started_again(vllm: Path) -> None:
    [port] = free_ports(1)
    there = subprocess.Popen(
        [vllm, "serve", "org/a", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        [server] = wanted(member("a", at(port)))
        until(lambda: answers(server))
        with up(vllm, member("a", at(port))) as running:
            assert running.process.wait(60) == 0
            assert f"✓ a: answers at {at(port)} already" in running.told
        assert not running.logs.exists()
    finally:
        os.killpg(there.pid, signal.SIGKILL)
        there.wait()
