"""What the documents show works: commands exist, pool files load, Python prints what it says."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from r2graph import load_pool
from r2graph.cli import app

ROOT = Path(__file__).parent.parent
BLOCKS = [
    block
    for document in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
    for block in re.findall(r"^```([^\n]+)\n(.*?)^```", document.read_text(), re.M | re.S)
]
SHELL_LINES = [line for fence, body in BLOCKS if fence == "bash" for line in body.splitlines()]
PYTHON_BLOCKS = [body for fence, body in BLOCKS if fence == "python"]  # `py` is not run
POOL_FILES = [body for fence, body in BLOCKS if fence == "yaml"]


def commands(program: str) -> list[str]:
    return [line for line in SHELL_LINES if line.startswith(f"{program} ")]


@pytest.mark.parametrize("line", commands("r2graph"))
def test_a_command_in_the_documents_exists_with_its_options(line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    # Options are parsed, unknown ones refused, before `--help` ends the run.
    result = CliRunner().invoke(app, [*arguments, "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("line", commands("make"))
def test_a_make_target_in_the_documents_exists(line: str) -> None:
    target = shlex.split(line, comments=True)[1]
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("body", PYTHON_BLOCKS)
def test_python_in_the_documents_prints_what_its_comments_say(
    body: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that it writes
    exec(compile(body, "document", "exec"), {"__name__": "document"})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^ *print\(.*# (.*)$", body, re.M)


@pytest.mark.parametrize("body", POOL_FILES)
def test_a_pool_file_in_the_documents_loads(body: str) -> None:
    assert len(load_pool(yaml.safe_load(body))) >= 2


def test_links_in_the_documents_lead_to_files() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
