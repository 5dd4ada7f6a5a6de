"""The documentation builds as a site, without a broken link or reference."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_site_builds_and_has_the_public_names(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    (tmp_path / "r2graph").symlink_to(ROOT / "r2graph")
    program = Path(sys.executable).with_name("zensical")
    done = subprocess.run(
        [program, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in ("create_r2_graph", "ChatR2", "R2RouterMiddleware", "load_router", "LimitExceeded"):
        assert f'.{name}"' in page, f"{name} is not in the API reference"
