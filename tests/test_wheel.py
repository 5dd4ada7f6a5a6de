"""The wheel holds the package and nothing else, and does the main job in a fresh environment."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
MAX_WHEEL_BYTES = 30 * 2**20
# Neither the repository nor a path of the caller's may lend the fresh environment its modules.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def output(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation")
    output(*pip, "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("r2graph-*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and this one's dependencies by reference (no second torch).

    The `.pth` files of a folder added this way are not read: an editable r2graph stays behind.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet")
    # The original is "already installed" next door: without the flag pip would leave it at that.
    output(*pip, "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)
    return folder


def test_only_r2graph_goes_into_the_wheel(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"r2graph"}
    assert {"r2graph/py.typed", "r2graph/pools/lab.yaml"} <= names
    assert any(name.startswith("r2graph/lab/artefacts/router-sft/") for name in names)
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_stays_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= MAX_WHEEL_BYTES


def test_the_wheel_does_the_main_job_outside_of_the_repository(fresh: Path, tmp_path: Path) -> None:
    code = "import r2graph; print(r2graph.__file__)"
    imported = Path(output(fresh / "bin/python", "-c", code, cwd=tmp_path).strip())
    assert imported.is_relative_to(fresh)

    run = ("run", "jump twice and turn left", "--json")
    result = json.loads(output(fresh / "bin/r2graph", *run, cwd=tmp_path))
    assert result["answer"] == "I_JUMP I_JUMP I_TURN_LEFT"
    assert len(result["plan"]["subtasks"]) == 2
