"""The whole of learning in miniature: collect, make data, SFT, GRPO of both modules, evaluate."""

import asyncio
import json
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors.torch import load_file

from r2graph import load_pool, load_router
from r2graph.trace import read_traces
from training import collect, sft, trace_data
from training.alternate import alternate, assemble
from training.grpo import folder
from training.settings import Phase, Settings

TINY: dict[str, object] = {
    "steps": 2, "prompts": 2, "generations": 4, "max_completion_tokens": 64, "temperature": 1.5,
}  # fmt: skip
SETTINGS = Settings(
    pool="lab",
    queries={"scan": 2, "arith": 4, "geo": 4},
    held_out={"arith": 3, "geo": 3},
    rounds=1,
    # Hot, or the planner's completions are all alike and there is nothing to learn.
    decomposer=Phase.model_validate(TINY | {"learning_rate": 1e-5, "temperature": 4.0}),
    allocator=Phase.model_validate(TINY | {"learning_rate": 1e-2}),
)


def collected(out: Path) -> Path:
    pool, router = load_pool("lab"), load_router("lab")
    graph = collect.explorer(pool, router, collect.Exploration(epsilon=0.3), sample=0)
    tasks = [task for name in ("arith", "geo") for task in collect.queries(name, "train", 6, 1)]
    asyncio.run(collect.collect(collect.jobs(tasks, 1, [0.9], 1), [graph], out))
    return out


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_router_goes_through_every_stage_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    traces = collected(tmp_path / "traces.jsonl")
    right = [trace for trace in read_traces(traces) if trace.right]
    assert right, "the lab's router gets some of a dozen queries right"

    groups = trace_data.by_query(read_traces(traces))
    rows = list(trace_data.allocator_rows(groups))
    assert len(rows) >= len(right)
    trace_data.write(tmp_path / "allocator.jsonl", rows)
    lab = load_router("lab")
    sft.train(
        folder(lab, "allocator"), tmp_path / "allocator.jsonl", tmp_path / "sft", batch=4, epochs=1
    )
    parent = tmp_path / "parent"
    digest = sha256("\n".join(rows).encode()).hexdigest()
    trained = tmp_path / "sft"
    assemble(folder(lab, "allocator").parent, "allocator", trained, parent, "SFT", digest, seed=1)

    out = tmp_path / "rl"
    out.mkdir()
    best = alternate(SETTINGS, parent, out, seed=1)
    assert (best / "router.yaml").exists()
    for module in ("decomposer", "allocator"):
        log = json.loads((out / f"round-1-{module}/trained/log.json").read_text())
        assert any("reward" in entry for entry in log)
        trained = load_file(out / f"round-1-{module}/router/{module}/model.safetensors")
        before = load_file(folder(load_router(parent), module) / "model.safetensors")
        assert any((trained[name] != before[name]).any() for name in before)

    # Interrupted and called again, it finds all phases done and ends the same.
    stamps = {file: file.stat().st_mtime for file in out.rglob("model.safetensors")}
    assert alternate(SETTINGS, parent, out, seed=1) == best
    assert stamps == {file: file.stat().st_mtime for file in out.rglob("model.safetensors")}
