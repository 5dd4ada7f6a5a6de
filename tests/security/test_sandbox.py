"""What a model wrote as an answer to a puzzle can neither get out of the sandbox nor be let off."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from textwrap import dedent, indent

import pytest
from pydantic import ValidationError

from r2graph.errors import ConfigError, SandboxUnavailable
from r2graph.sandbox import (
    Outcome,
    SandboxLimits,
    acheck_answer,
    check_answer,
    require_sandbox,
    run,
)
from tests.conftest import Figure

MEBI = 2**20
SHORT = SandboxLimits(wall_s=0.7, cpu_s=1, memory_bytes=256 * MEBI, output_bytes=50_000)
OURS = "marshal.load(sys.stdin.buffer)"  # on the command line of each sandbox
NEVER = "def sat(x):\n    return x == 1 and x == 2"
IMPORTS = "import ctypes, gc, os, resource, signal, socket, subprocess, sys, threading, time\n"

# Bodies of `sol`. FILE holds the secret in FOLDER, PORT and NAME are where the host listens, PID is
# the host's process and FD a descriptor that it has open. `libc` returns what a C function does.
# Those in WITHOUT are also run without the sandbox, where they must get through.
LEAKS = {
    "read the canary": "return open(FILE).read()",
    "read it by the root of another process": "return open(f'/proc/{PID}/root{FILE}').read()",
    "read it by its own root": "return open('/proc/self/root' + FILE).read()",
    "climb out of the working directory": "return open('../' * 30 + FILE).read()",
    "follow a symbolic link": """
        os.symlink(FILE, FOLDER + '/link') if os.path.isdir(FOLDER) else os.symlink(FILE, '/link')
        return open(FOLDER + '/link').read()
    """,
    "read an inherited descriptor": """
        for each in (FD, *range(3, 64)):
            try: found = os.pread(each, 100, 0).decode()
            except OSError: continue
            if 'secret' in found: return found
    """,
    "read the environment": "return str(os.environ)",
    "read the memory of the host": """
        for line in open(f'/proc/{PID}/maps'):
            if '[heap]' in line:
                start, end = (int(each, 16) for each in line.split()[0].split('-'))
                with open(f'/proc/{PID}/mem', 'rb', 0) as memory:
                    memory.seek(start)
                    found = memory.read(end - start)
                    return found[found.index(b'R2GRAPH_CANARY='):][:99]
    """,
    "mount the disk of the host": """
        libc('mount', FOLDER.encode(), b'/usr', None, 4096, None)
        return open('/usr/canary').read()
    """,
}
CLAIMS = {  # they say True where they got through
    "read the host's users": "return 'root:' in open('/etc/passwd').read()",
    "read the environment of the host": "return 'PATH=' in open(f'/proc/{PID}/environ').read()",
    "read the checkout": "return 'def' in open(CHECKOUT).read()",
    "write to Python's own library": """
        open(os.path.join(os.path.dirname(os.__file__), 'canary.py'), 'w')
        return True
    """,
    "make the file systems writable": "return libc('mount', None, b'/', None, 32 | 1, None) == 0",
    "leave by chroot": "return libc('chroot', b'/usr') == 0",
    "open a VM socket": "return libc('socket', 40, 1, 0) >= 0",
    "open a socket by another ABI": "return libc('syscall', 0x40000029, 2, 1, 0) >= 0",
    "look up a name": "return bool(socket.getaddrinfo('example.com', 80))",
    "fork": "return os.fork() >= 0",
    "fork by the C library": "return libc('syscall', 56, 17, 0, 0, 0, 0) >= 0",
    "start a program": "return subprocess.run(['/bin/true']).returncode == 0",
    "start a thread": "threading.Thread(target=print).start(); return True",
    "make a user namespace": "return libc('unshare', 0x10000000) == 0",
    "trace its parent": "return libc('ptrace', 16, PPID, 0, 0) == 0",
    "become root by a setuid program": """
        os.execv('/bin/su', ['su', '-c', 'true']) if os.path.exists('/bin/su') else os.setuid(0)
        return True
    """,
    "raise its limits": """
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        return True
    """,
    "take memory": "return len([bytearray(2**24) for _ in range(64)]) == 64",
    "take memory as files": """
        files = [os.memfd_create('bomb') for _ in range(4)]
        return all(os.write(each, bytes(2**20)) for each in files)
    """,
}
DEEDS = {  # the host sees whether they got through
    "write to the canary": "open(FILE, 'a').write('mine')",
    "plant a file": "open(FOLDER + '/planted', 'w')",
    "plant a file by the shell": "import posix; posix.system(f'touch {FOLDER}/planted')",
    "plant a file in shared memory": "open('/dev/shm/' + NAME, 'w')",
    "connect to the host": "socket.create_connection(('127.0.0.1', PORT), 1)",
    "connect to the host by an abstract name": """
        socket.socket(socket.AF_UNIX).connect(chr(0) + NAME)
    """,
    "signal the host": "os.kill(PID, signal.SIGUSR1)",
    "leave a daemon behind": """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(20)
            os._exit(0)
    """,
    "stay after closing every descriptor": "os.closerange(0, 100); time.sleep(20)",
    "spin": """
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        while True: pass
    """,
    "sleep through polite signals": """
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(each, print)
        time.sleep(20)
    """,
    "flood the output": "while True: print('x' * 10_000)",
}
"""Programs that would be judged right by a grader that trusts them."""
FORGERIES = {
    "equal to everything": """
        class Yes:
            def __eq__(self, other): return True
        return Yes()
    """,
    "a number equal to everything": """
        class Yes(int):
            __class__ = int
            __hash__ = int.__hash__
            def __eq__(self, other): return True
        return Yes(1)
    """,
    "a frame walk": """
        frame = sys._getframe()
        while frame:
            for space in (frame.f_globals, frame.f_locals):
                space.update(sat=lambda x: True, verdict='True', check=lambda x: True)
            frame = frame.f_back
        return 1
    """,
    "new builtins": """
        import builtins
        builtins.type = lambda x: int
        builtins.repr = builtins.hex = builtins.str = lambda x: 'True'
        globals()['sat'] = lambda x: True
        return 1
    """,
    "leave before the verdict": "os._exit(0)",
    "write the verdict everywhere": """
        for descriptor in range(64):
            try: os.write(descriptor, b'True')
            except OSError: pass
        sys.stdout.flush()
        os._exit(0)
    """,
    "walk the garbage": """
        for each in gc.get_objects():
            if hasattr(each, 'write'):
                try: each.write(b'True')
                except Exception: pass
        os._exit(0)
    """,
}
WITHOUT = [
    *["read the canary", "climb out of the working directory", "follow a symbolic link"],
    *["read the environment", "read the environment of the host", "read an inherited descriptor"],
    *["read the host's users", "read the checkout", "fork", "start a program", "start a thread"],
    *["take memory as files", "write to the canary", "plant a file", "plant a file by the shell"],
    *["connect to the host", "connect to the host by an abstract name", "signal the host"],
    *["leave a daemon behind", "sleep through polite signals", *FORGERIES],
]
ATTEMPTS = LEAKS | CLAIMS | DEEDS | FORGERIES

# How graders are often written; an exit code of 0 or a `True` in the output passes.
NAIVE = """
import os, sys
def sat(x): return x == 1 and x == 2
source = sys.stdin.read()
exec(source, globals())
value = sol()
print(value, flush=True)
sys.exit(0 if sat(value) else 1)
"""


class Host:
    """What code must not get at, and whether some did."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.secret = "secret-" + os.urandom(8).hex()
        self.name = "r2graph-" + os.urandom(8).hex()
        self.folder = folder
        self.file = folder / "canary"
        self.file.write_text(self.secret)
        monkeypatch.setenv("R2GRAPH_CANARY", self.secret)
        self.descriptor = os.open(self.file, os.O_RDONLY)
        os.set_inheritable(self.descriptor, True)
        self.doors = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
        self.doors[1].bind("\0" + self.name)
        self.doors[1].listen()
        for door in self.doors:
            door.setblocking(False)
        self.signals: list[int] = []
        self.before = signal.signal(signal.SIGUSR1, lambda number, _: self.signals.append(number))

    def close(self) -> None:
        signal.signal(signal.SIGUSR1, self.before)
        os.close(self.descriptor)
        for door in self.doors:
            door.close()

    def program(self, name: str) -> str:
        """An attempt with what it has to know; nobody could guess more."""
        facts = {
            "FILE": str(self.file),
            "FOLDER": str(self.folder),
            "CHECKOUT": __file__,
            "PORT": self.doors[0].getsockname()[1],
            "NAME": self.name,
            "PID": os.getpid(),
            "PPID": 1,
            "FD": self.descriptor,
        }
        lines = "".join(f"{key} = {value!r}\n" for key, value in facts.items())
        libc = "def libc(name, *given): return getattr(ctypes.CDLL(None), name)(*given)\n"
        return IMPORTS + lines + libc + "def sol():\n" + indent(dedent(ATTEMPTS[name]), "    ")

    def harmed(self) -> bool:
        """Whether an attempt left a trace here; the traces are removed."""
        planted = [self.folder / "planted", Path("/dev/shm") / self.name]
        traces = [path for path in planted if path.exists()]
        traces += [self.file] if self.file.read_text() != self.secret else []
        for path in planted:
            path.unlink(missing_ok=True)
        if self.file in traces:
            self.file.write_text(self.secret)
        signals, self.signals = self.signals, []
        return bool(traces or signals or [door for door in self.doors if knocked(door)])


def knocked(door: socket.socket) -> bool:
    try:
        door.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def leftovers(mark: str, patience_s: float) -> set[int]:
    """Processes with a mark on their command line that were there all the time."""
    left, deadline = marked(mark), time.monotonic() + patience_s
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left &= marked(mark)
    return left


def marked(mark: str) -> set[int]:
    numbers = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
    return {pid for pid in numbers if is_(pid, mark)}


def is_(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes() and pid != os.getpid()
    except OSError:
        return False


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(tmp_path, monkeypatch)
    yield host
    host.close()


@pytest.fixture(scope="module")
def sandbox() -> None:
    try:
        require_sandbox()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


def escapes(host: Host, name: str) -> tuple[bool, Outcome]:
    """Whether an attempt got through, by what it says, what the host sees, or its verdict."""
    program = host.program(name)
    began = time.monotonic()
    outcome = run(program, limits=SHORT)
    lasted = time.monotonic() - began
    said = (outcome.value or "") + outcome.output
    through = host.secret in said or len(said) > 2 * SHORT.output_bytes
    through |= name in CLAIMS and "True" in said
    through |= host.harmed() or lasted > SHORT.wall_s + 5  # of 20 s; starting takes a while, too
    if name in FORGERIES:
        through |= check_answer(NEVER, program, limits=SHORT)
    return through, outcome


@pytest.mark.usefixtures("sandbox")
def test_no_attempt_to_escape_succeeds(host: Host, figure: Figure) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = dict(zip(ATTEMPTS, threads.map(partial(escapes, host), ATTEMPTS), strict=True))
    escaped = [name for name, (through, _) in found.items() if through]
    misspelt = re.compile(r"\b(SyntaxError|NameError|ImportError|ModuleNotFoundError)\b")
    broken = [name for name, (_, outcome) in found.items() if misspelt.search(outcome.output)]
    figure("sandbox: escapes", f"{len(escaped)}/{len(ATTEMPTS)}")
    assert len(ATTEMPTS) >= 40
    assert broken == []  # they failed for the sandbox, and for nothing else
    assert escaped == []
    assert leftovers(OURS, patience_s=2) == set()


def test_the_same_attempts_succeed_without_the_sandbox(host: Host, figure: Figure) -> None:
    through = []
    for name in WITHOUT:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", NAIVE + f"# {host.name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[host.descriptor],
            cwd=host.folder,
        )
        code = host.program(name).replace("sleep(20)", "sleep(3)")
        try:
            said = process.communicate(code.encode(), timeout=1)[0].decode()
        except subprocess.TimeoutExpired:
            said = ""
        slow = time.monotonic() - began > SHORT.wall_s
        left = leftovers(host.name, patience_s=0)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        (host.folder / "link").unlink(missing_ok=True)
        passed = process.returncode == 0 or "True" in said or host.secret in said
        through += [name] if passed or host.harmed() or slow or left else []
    figure("sandbox: escapes without it", f"{len(through)}/{len(WITHOUT)}")
    assert through == WITHOUT


# Puzzles of P3's kind, each with a right answer and a wrong one.
PUZZLES = [
    re.split(r"\n# right\n|\n# wrong\n", each)
    for each in Path(__file__).with_name("puzzles.txt").read_text().strip().split("\n\n")
]


@pytest.mark.usefixtures("sandbox")
def test_honest_answers_are_accepted_and_wrong_ones_are_not(figure: Figure) -> None:
    puzzles, answers, others = zip(*PUZZLES, strict=True)
    with ThreadPoolExecutor(4) as threads:
        right = list(threads.map(check_answer, puzzles, answers))
        wrong = list(threads.map(check_answer, puzzles, others))
    figure(
        "sandbox: honest answers accepted, wrong ones", f"{sum(right)}/{len(PUZZLES)}, {sum(wrong)}"
    )
    assert len(PUZZLES) == 40
    assert [at for at, verdict in enumerate(right) if not verdict] == []
    assert [at for at, verdict in enumerate(wrong) if verdict] == []


ANY = "def sat(x):\n    return True"


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    "answer",
    [
        *["[" * 100_000, "(" * 199, "-" * 99_999 + "1", "{1:" * 150, "1+" * 40_000 + "1"],
        *["'" + "x" * 100_000 + "'", "[" * 60 + "]" * 60, "x" * 10_000_000],
        *["1j", "b'bytes'", "...", "float('nan')", "range(3)", "object()", "", "\0", "\ud800"],
        *["def sol():\n    return type('int', (int,), {})(1)", "def sol(x):\n    return x", "sol"],
        "class Not(list): pass\ndef sol():\n    return [Not()]",
    ],
    ids=lambda answer: answer[:20].encode("unicode_escape").decode(),
)
def test_what_is_not_a_value_of_builtin_types_is_wrong(answer: str) -> None:
    assert not check_answer(ANY, answer, limits=SHORT)


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        *[("int", "True"), ("int", "1.0"), ("float", "1"), ("str", "['a']"), ("dict", "[]")],
        *[("List[int]", "(1,)"), ("List[int]", "[1.0]"), ("List[List[int]]", "[[1], 'a']")],
    ],
)
def test_a_value_of_another_type_than_the_puzzle_says_is_wrong(kind: str, answer: str) -> None:
    assert not check_answer(f"def sat(x: {kind}):\n    return True", answer)


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    "sat",
    [
        "def sat(x):\n    return 1",
        "def sat(x):\n    raise ValueError",
        "def sat(x):\n    while True: pass",
        "def sat(x):\n    return [x] * 10 ** 9",
        "def sat(x):\n    print('True' * 10 ** 6)\n    return True",
    ],
)
def test_only_true_is_a_verdict(sat: str) -> None:
    assert not check_answer(sat, "1", limits=SHORT)


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    ("sat", "what"),
    [
        ("def sat(quine: str):\n    return eval(quine) == quine", "runs its answer as code"),
        ("def sat(x", "no Python"),
        ("import missing_module\ndef sat(x):\n    return True", "does not run"),
        ("def other(x):\n    return True", "does not run"),
    ],
)
def test_a_puzzle_that_cannot_judge_is_an_error(sat: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        check_answer(sat, "1")


@pytest.mark.usefixtures("sandbox")
def test_an_outcome_says_how_the_code_ended() -> None:
    assert run("6 * 7") == Outcome("value", "0x2a", "")
    assert run("print('hello')") == Outcome("value", "None", "hello\n")
    assert run("1 / 0").ending == "error"
    assert "ZeroDivisionError" in run("1 / 0").output
    assert run("__import__('time').sleep(9)", limits=SHORT).ending == "time"
    flood = run("print('x' * 10 ** 6)", limits=SHORT)
    assert (flood.ending, len(flood.output)) == ("output", SHORT.output_bytes)
    assert run("'x' * 10 ** 6", limits=SHORT).ending == "output"


@pytest.mark.usefixtures("sandbox")
async def test_answers_are_checked_side_by_side() -> None:
    answers = [acheck_answer("def sat(x: int):\n    return x == 3", f"{n} + 0") for n in range(6)]
    assert await asyncio.gather(*answers) == [False, False, False, True, False, False]


@pytest.mark.usefixtures("sandbox")
def test_runs_leave_no_descriptors_and_no_processes() -> None:
    codes = ["1", "1 / 0", "print('x' * 10 ** 6)", "__import__('os').closerange(0, 99)"] * 3
    before = open_descriptors()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda code: run(code, limits=SHORT), codes))
    assert open_descriptors() == before
    assert leftovers(OURS, patience_s=2) == set()


@pytest.mark.parametrize(
    "script", [None, "echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "exit 0"]
)
def test_without_a_sandbox_nothing_runs_and_the_error_says_what_to_do(
    script: str | None, tmp_path: Path
) -> None:
    bwrap = tmp_path / "bwrap"
    if script is not None:
        bwrap.write_text(f"#!/bin/sh\n{script}\n")
        bwrap.chmod(0o755)
    planted = tmp_path / "planted"
    code = f"open({str(planted)!r}, 'w')"
    for call in (
        lambda: check_answer(ANY, code, bwrap=str(bwrap)),
        lambda: check_answer(ANY, "1", bwrap=str(bwrap)),
        lambda: run(code, bwrap=str(bwrap)),
        lambda: require_sandbox(str(bwrap)),
    ):
        with pytest.raises(SandboxUnavailable, match="apt install bubblewrap") as caught:
            call()
        assert "user namespaces" in str(caught.value)
        assert "planted" not in str(caught.value)
    assert script is None or "exit 1" not in script or "No permissions" in str(caught.value)
    assert not planted.exists()


def test_limits_are_checked_and_stay() -> None:
    for wrong in ({"wall_s": 0}, {"wall_s": float("inf")}, {"cpu_s": 0}, {"processes": 9}):
        with pytest.raises(ValidationError):
            SandboxLimits.model_validate(wrong)
    with pytest.raises(ValidationError):
        SHORT.wall_s = 99  # type: ignore[misc]  # that is the point
