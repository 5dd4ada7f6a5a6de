"""GRPO under `accelerate launch`, as on several cards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from r2graph import load_router
from training.grpo import folder

ROOT = Path(__file__).parent.parent
SETTINGS = {
    "pool": "lab",
    "queries": {"arith": 6},
    "held_out": {"arith": 2},
    "allocator": {
        "steps": 3,
        "prompts": 2,
        "generations": 4,
        "max_completion_tokens": 16,
        "learning_rate": 1e-2,
        "temperature": 1.5,
        "lora": {"rank": 4, "alpha": 8},
    },
}


@pytest.mark.slow
def test_two_processes_train_adapters_and_write_one_whole_model(tmp_path: Path) -> None:
    config = tmp_path / "mini.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    script = ["-m", "training.grpo", "--config", str(config), "--module", "allocator"]
    files = ["--out", str(tmp_path / "out"), "--outcomes", str(tmp_path / "outcomes.sqlite")]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([*launch, *script, *files], cwd=ROOT, env=os.environ | quiet, check=True)

    before = load_file(folder(load_router("lab"), "allocator") / "model.safetensors")
    after = load_file(tmp_path / "out/model.safetensors")
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {f"model.layers.0.self_attn.{at}_proj.weight" for at in "qv"}
    log = json.loads((tmp_path / "out/log.json").read_text())
    assert any("reward" in entry for entry in log)
