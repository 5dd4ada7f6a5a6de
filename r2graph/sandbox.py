"""Code that a model wrote runs here, in a sandbox that isolates, or not at all.

Bubblewrap gives the code a file system that holds nothing but shared libraries and Python, all of
it read-only, and no network, no environment, no /proc, /dev or /tmp. A system call filter forbids
new processes and threads, sockets and whatever would step around a limit; resource limits bound
memory and CPU time; the parent bounds output and wall time and then kills the process group.

Answers to programming puzzles (P3) are judged in a process that never sees the model's code: that
runs in another, out of which comes text, and only a literal counts.

Not covered: bugs of the kernel, timing channels, and puzzles that run their answer as code
themselves (`eval(quine) == quine`), which are refused.
"""

from __future__ import annotations

import ast
import asyncio
import marshal
import os
import platform
import resource
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOSYS, EPERM
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from r2graph.errors import ConfigError, SandboxUnavailable

MAX_LITERAL_CHARS = 100_000  # 0.3 s to read at worst
MAX_LITERAL_DEPTH = 50
START_S = 60.0  # how long a busy machine may take before the code begins
NOBODY = 65534
Ending = Literal["value", "error", "time", "output"]


class SandboxLimits(BaseModel):
    """What code in the sandbox may use; it is always one process of one thread."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wall_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Seconds from the first line of the code on; the start of the sandbox is not counted."""
    cpu_s: Annotated[int, Field(gt=0)] = 5
    """Seconds of CPU time."""
    memory_bytes: Annotated[int, Field(ge=64 * 2**20)] = 512 * 2**20
    """Address space; Python itself takes about 20 MiB of it."""
    output_bytes: Annotated[int, Field(gt=0)] = 200_000
    """What it may print, and as much again for its value."""


DEFAULTS = SandboxLimits()


@dataclass(frozen=True)
class Outcome:
    """How code ended: with a value, or by an error or a crash, its time or its output."""

    ending: Ending
    value: str | None
    """The value as text. The code can have forged it: read it with `ast.literal_eval` only."""
    output: str
    """What it printed, as far as it was read."""


def check_answer(
    sat: str, answer: str, *, limits: SandboxLimits = DEFAULTS, bwrap: str = "bwrap"
) -> bool:
    """Whether `sat`, the source of a trusted function, is `True` of a model's answer.

    An answer is a literal, an expression, or a program that defines `sol`, whose parameters have
    defaults. Its value has exact builtin types, those of the first parameter of `sat` if annotated.

    Raises `SandboxUnavailable`, and `ConfigError` for a `sat` that does not run.
    """
    _require_puzzle(sat)
    read = _literal(answer)
    if read is None:
        value = run(answer, limits=limits, bwrap=bwrap).value
        read = None if value is None else _literal(value)
    if read is None:
        return False
    verdict = _sandboxed(_JUDGE, (sat, read[0]), limits, bwrap).value
    if verdict == "unreadable":
        raise ConfigError("the puzzle's `sat` does not run here: leave the puzzle out")
    return verdict == "True"


async def acheck_answer(
    sat: str, answer: str, *, limits: SandboxLimits = DEFAULTS, bwrap: str = "bwrap"
) -> bool:
    """`check_answer` in a thread; if cancelled, the thread ends at the wall limit."""
    return await asyncio.to_thread(check_answer, sat, answer, limits=limits, bwrap=bwrap)


def run(code: str, *, limits: SandboxLimits = DEFAULTS, bwrap: str = "bwrap") -> Outcome:
    """Run untrusted Python: an expression, or a program whose value is that of `sol()`.

    Raises `SandboxUnavailable` if there is no sandbox; the code has not run then.
    """
    return _sandboxed(_EVALUATE, code.encode(errors="replace").decode(), limits, bwrap)


@cache
def require_sandbox(bwrap: str = "bwrap") -> None:
    """Raise `SandboxUnavailable` now rather than at the first answer."""
    run("1", bwrap=bwrap)


def _require_puzzle(sat: str) -> None:
    """Refuse a puzzle that hands its answer to Python: there a model would write the verdict."""
    try:
        with _PARSING:
            tree = ast.parse(sat)
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError):
        raise ConfigError("the puzzle is no Python: leave it out") from None
    if names & {"eval", "exec", "compile", "__import__"}:
        raise ConfigError("the puzzle runs its answer as code: leave it out")


_PARSING = Lock()  # threads share a depth that the parser checks (python/cpython#106905)


def _literal(text: str) -> tuple[Any] | None:
    """The value of a literal, in a tuple as it may be `None`; `None` for any other text."""
    if len(text) > MAX_LITERAL_CHARS:
        return None
    try:
        with _PARSING:
            value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None  # the last two are how the parser refuses what is too deep
    return (value,) if _plain(value, MAX_LITERAL_DEPTH) else None


def _plain(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        return depth > 0 and all(_plain(each, depth - 1) for each in value)
    return value is None or type(value) in (bool, int, float, str)


def _sandboxed(program: str, task: Any, limits: SandboxLimits, bwrap: str) -> Outcome:
    """Run one of the programs below on a task; its value comes back over a private descriptor."""
    sent = marshal.dumps((_rlimits(limits), NOBODY, task))
    try:
        ending, value, output, code = _listen(_start(program, sent, bwrap), limits)
    except OSError as error:
        raise SandboxUnavailable(f"it did not start: {error.strerror}") from None
    if not value.startswith(b"\0"):  # the first thing `_START` says once all limits hold
        said = output.decode(errors="replace").strip().rpartition("\n")[2]
        raise SandboxUnavailable(f"it did not start: {said[:200] or 'it said nothing'}")
    if ending == "value" and (code != 0 or value == b"\0"):
        ending = "error"
    text = value[1:].decode(errors="replace") if ending == "value" else None
    return Outcome(ending, text, output.decode(errors="replace"))


def _start(program: str, sent: bytes, bwrap: str) -> subprocess.Popen[bytes]:
    path = shutil.which(bwrap)
    if path is None:
        raise SandboxUnavailable("bubblewrap is not installed")
    with _memory_file(sent) as stdin, _memory_file(_system_call_filter()) as seccomp:
        options = [*_namespaces(), "--seccomp", str(seccomp), *_mounts()]
        return subprocess.Popen(
            [path, *options, *_python(), _START + program],
            stdin=stdin,
            stdout=subprocess.PIPE,  # the descriptor of the value: `_START` moves it away from 1
            stderr=subprocess.PIPE,
            pass_fds=[seccomp],
            env={},
            bufsize=0,
            start_new_session=True,
        )


def _listen(
    process: subprocess.Popen[bytes], limits: SandboxLimits
) -> tuple[Ending, bytes, bytes, int]:
    """Read until the process has ended or reached a limit; nothing of its group is left then."""
    assert process.stdout is not None
    assert process.stderr is not None
    heard = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    value, output = heard
    ending: Ending = "value"
    with process.stdout, process.stderr, _ear(process, *heard) as ear:
        deadline = time.monotonic() + START_S
        while ear.get_map() and ending == "value":
            left = deadline - time.monotonic()
            if left <= 0:
                ending = "time"
            for key, _ in ear.select(max(0, left)):
                chunk = os.read(key.fd, 65_536) if key.fd in heard else b""
                if not chunk:
                    ear.unregister(key.fd)
                    continue
                if key.fd == value and not heard[value]:  # the code begins
                    deadline = time.monotonic() + limits.wall_s
                heard[key.fd] += chunk
                if len(heard[key.fd]) > limits.output_bytes:
                    ending = "output"
    return ending, heard[value], heard[output][: limits.output_bytes], process.returncode


@contextmanager
def _ear(process: subprocess.Popen[bytes], *pipes: int) -> Iterator[selectors.BaseSelector]:
    """Hears of the pipes and of the end of a process, whose whole group is dead afterwards."""
    try:
        exit_ = os.pidfd_open(process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                for descriptor in (*pipes, exit_):
                    selector.register(descriptor, selectors.EVENT_READ)
                yield selector
        finally:
            os.close(exit_)
    finally:
        # Not reaped before this, so the number of the group is still its own. Bubblewrap's death
        # takes the process namespace with it (--die-with-parent), should anything have left it.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    """A descriptor at the start of a file that is nowhere; a pipe could fill up."""
    descriptor = os.memfd_create("r2graph")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _namespaces() -> list[str]:
    """Everything apart from the host.

    Started by root, bubblewrap makes the mounts as root, and `_START` becomes an unprivileged user
    before the code begins: that user could not have mounted a Python below root's home.
    """
    user = ["--unshare-user"]
    if os.getuid() == 0:
        user = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return [*user, *["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]]


@cache
def _mounts() -> list[str]:
    """Libraries and Python, and nothing that can be written to: files would be memory."""
    base = Path(sys.base_prefix)
    python, own = Path(_python()[0]), [str(base / "lib"), str(base / "lib64")]
    # Bubblewrap would make missing parents for root's eyes only.
    parents = dict.fromkeys(["/usr", *(str(each) for each in reversed(python.parents))])
    mounts = [part for each in parents if each != "/" for part in ("--dir", each)]
    for each in dict.fromkeys(["/lib", "/lib64", "/usr/lib", "/usr/lib64", *own]):
        mounts += ["--ro-bind-try", each, each]
    mounts += ["--ro-bind", str(python), str(python), "--remount-ro", "/", "--chdir", "/"]
    return [*mounts, "--die-with-parent", "--"]


def _python() -> list[str]:
    """The Python that is running, without site-packages and the environment."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    options = ["-I", "-S", "-X", "utf8", "-X", "int_max_str_digits=0", "-c"]
    return [str(Path(sys.base_prefix) / "bin" / name), *options]


def _rlimits(limits: SandboxLimits) -> dict[int, int]:
    return {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CPU: limits.cpu_s,
        resource.RLIMIT_FSIZE: 0,  # files of memory (memfd) do not count as address space
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_NPROC: 1,  # the filter's understudy: it counts all processes of a user
        resource.RLIMIT_CORE: 1,  # with 0 the kernel still feeds a dump to a crash handler
    }


@cache
def _system_call_filter() -> bytes:
    """A program for seccomp: `_FORBIDDEN` calls fail, and so do all newer than 2019."""
    machine = platform.machine()
    if machine not in _MACHINES:
        raise SandboxUnavailable(f"no system call filter for {machine}")
    column, architecture = _MACHINES[machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    kill, fail, allow = 0x80000000, 0x00050000, 0x7FFF0000
    program = [
        (load, 0, 0, 4),  # the architecture: 32-bit calls have other numbers
        (equal, 1, 0, architecture),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # the number of the call
        (at_least, 0, 1, 424),  # the same on all architectures from here on; clone3, io_uring, …
        (give, 0, 0, fail | ENOSYS),
    ]
    for numbers in _FORBIDDEN.values():
        program += [(equal, 0, 1, numbers[column]), (give, 0, 0, fail | EPERM)]
    program.append((give, 0, 0, allow))
    return b"".join(struct.pack("=HBBI", *each) for each in program)


_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_NONE = 0xFFFFFFFF  # a call that an architecture does not have
_FORBIDDEN = {  # x86_64, aarch64
    "clone": (56, 220),
    "fork": (57, _NONE),
    "vfork": (58, _NONE),
    "socket": (41, 198),  # a network namespace does not stop AF_VSOCK
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "shmget": (29, 194),  # memory that is no address space while it is detached
    "msgget": (68, 186),
    "semget": (64, 190),
    "add_key": (248, 217),  # keyrings are inherited
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "syslog": (103, 116),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
}

_START = """
import marshal, os, resource, sys
limits, nobody, task = marshal.load(sys.stdin.buffer)
for which, amount in limits.items():
    hard = resource.getrlimit(which)[1]
    amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(which, (amount, amount))
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(nobody, nobody, nobody)
    os.setresuid(nobody, nobody, nobody)
result = open(os.dup(1), "wb", buffering=0)
os.dup2(2, 1)
result.write(bytes(1))
space = {"__name__": "puzzle", "List": list, "Dict": dict, "Set": set, "Tuple": tuple}
"""

_EVALUATE = """
def literal(value):
    kind = type(value)
    if value is None or kind in (bool, str):
        return repr(value)
    if kind is int:
        return hex(value)  # Python reads decimals of 4,300 digits at most
    if kind is float and value == value:
        return repr(value).replace("inf", "1e999")
    if kind is dict:
        return "{" + "".join(literal(k) + ":" + literal(v) + "," for k, v in value.items()) + "}"
    inside = "".join(literal(each) + "," for each in value)
    if kind is set and not value:
        return "set()"
    return {list: "[%s]", tuple: "(%s)", set: "{%s}"}[kind] % inside
try:
    code = compile(task.strip(), "answer", "eval")
except SyntaxError:
    code = None
if code:
    value = eval(code, space)
else:
    exec(task, space)
    value = space["sol"]()
text = literal(value).encode()
while text:
    text = text[result.write(text):]
"""

_JUDGE = """
def fits(value, kind):
    outer = getattr(kind, "__origin__", kind)
    if outer in (list, set) and type(value) is outer:
        return all(fits(each, *kind.__args__) for each in value if hasattr(kind, "__args__"))
    return outer not in (bool, int, float, str, list, tuple, dict, set) or type(value) is outer
source, value = task
try:
    exec(source, space)
    kind = space["sat"].__annotations__.get(space["sat"].__code__.co_varnames[0])
except Exception:
    verdict = "unreadable"
else:
    verdict = str(fits(value, kind) and space["sat"](value) is True)
result.write(verdict.encode())
"""
