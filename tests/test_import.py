"""Importing r2graph is light and has no effects; its public names are what the docs say."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import r2graph
from r2graph import errors

ROOT = Path(__file__).parent.parent

EFFECTS = """
import sys
import threading

import langgraph.graph  # the yardstick: what it does is not ours

seen = []
watched = ("socket.", "subprocess.", "os.system")
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith(watched) else None)
import r2graph

for name in r2graph.__all__:
    getattr(r2graph, name)
print(seen + threading.enumerate()[1:])
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.stdout.strip()


def test_using_every_public_name_loads_neither_torch_nor_transformers() -> None:
    code = "import sys; from r2graph import *; print({'torch', 'transformers'} & set(sys.modules))"
    assert run(code) == "set()"


def test_importing_r2graph_alone_loads_no_other_package() -> None:
    code = "import sys; old = set(sys.modules); import r2graph; print(set(sys.modules) - old)"
    loaded = ast.literal_eval(run(f"import importlib, typing, __future__; {code}"))
    assert loaded == {"r2graph", "r2graph.errors"}


def test_importing_opens_no_socket_and_starts_no_thread() -> None:
    assert run(EFFECTS) == "[]"


def test_type_checkers_see_the_names_that_are_there() -> None:
    tree = ast.parse((ROOT / "r2graph" / "__init__.py").read_text())
    declared = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("r2graph.")
        for alias in node.names
    }
    assert sorted(declared) == sorted(r2graph.__all__)
    lazy = {name: home for name, home in declared.items() if home != "r2graph.errors"}
    assert lazy == {name: f"r2graph.{home}" for name, home in r2graph._LAZY.items()}


def test_every_error_is_public() -> None:
    own = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert {name for name in own if name.endswith(("Error", "Exceeded"))} <= set(r2graph.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(r2graph, "no_such_name")
