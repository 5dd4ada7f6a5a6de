"""Reinforcement learning that is killed and called again ends as if it had not been."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from r2graph import OutcomeCache, load_pool, load_router
from r2graph.errors import ConfigError
from r2graph.plan import Plan
from r2graph.pricing import Price
from training.alternate import claim
from training.grpo import rows, train
from training.rewards import Rollout
from training.rollouts import Given, Rollouts
from training.settings import Base, Phase, Settings

ROOT = Path(__file__).parent.parent
LAB = Path("r2graph/lab/artefacts/router-sft")
TINY: dict[str, object] = {
    "steps": 6, "prompts": 2, "generations": 4, "max_completion_tokens": 24, "temperature": 1.5,
    "save_every": 2,
}  # fmt: skip
ALLOCATOR = Phase.model_validate(TINY | {"learning_rate": 1e-3})
DECOMPOSER = Phase.model_validate(TINY | {"learning_rate": 1e-4, "max_completion_tokens": 64})
SETTINGS = Settings(
    pool="lab",
    queries={"scan": 2, "arith": 8, "geo": 8},
    held_out={"arith": 4, "geo": 4},
    decomposer=DECOMPOSER,
    allocator=ALLOCATOR,
)


class Killed(BaseException):
    """Nobody handles it, like a signal."""


class DyingRollouts(Rollouts):
    """Ends training when it is asked for rewards for the `last` time."""

    last = 0

    async def run(self, wanted: Sequence[Given], plans: Sequence[Plan]) -> list[Rollout | None]:
        self.last -= 1
        if self.last == 0:
            raise Killed
        return await super().run(wanted, plans)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_interrupted_phase_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    pool, router = load_pool("lab"), load_router("lab")

    def trained(out: Path, last: int = 0) -> bytes:
        rollouts = DyingRollouts(pool, router, outcomes)
        rollouts.last = last
        train("allocator", ALLOCATOR, router, prompts, rollouts, out, seed=1)
        return (out / "model.safetensors").read_bytes()

    with OutcomeCache(tmp_path / "outcomes.sqlite") as outcomes:
        prompts = rows("allocator", SETTINGS, router, outcomes, seed=1)
        whole, torn = tmp_path / "whole", tmp_path / "torn"
        expected = trained(whole)
        with pytest.raises(Killed):
            trained(torn, last=4)
        checkpoints = torn / "checkpoints"
        assert [each.name for each in checkpoints.glob("checkpoint-*")] == ["checkpoint-2"]
        # What a kill leaves while a checkpoint is being written.
        (checkpoints / "checkpoint-4").mkdir()
        (checkpoints / "checkpoint-4/trainer_state.json").write_text('{"epoch"')
        assert trained(torn) == expected


def begin(config: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "training.alternate", "--config", str(config)]
    command += ["--router", str(LAB), "--out", str(out), "--seed", "1"]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def finish(config: Path, out: Path) -> dict[str, bytes]:
    """The table that a run ends with, and the files of its router."""
    assert begin(config, out).wait() == 0, out.with_suffix(".log").read_text()
    kept = [out / "table.md", *(out / "router").rglob("*.*")]
    return {str(file.relative_to(out)): file.read_bytes() for file in kept}


def kill_soon_after(checkpoint: Path, config: Path, out: Path) -> None:
    run = begin(config, out)
    while not checkpoint.exists():
        assert run.poll() is None, out.with_suffix(".log").read_text()
        time.sleep(0.01)
    time.sleep(random.random() / 2)
    run.kill()
    assert run.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_with_the_same_table_and_router(tmp_path: Path) -> None:
    config, whole, killed = (tmp_path / name for name in ("config.yaml", "whole", "killed"))
    config.write_text(yaml.safe_dump(SETTINGS.model_dump(mode="json", exclude_none=True)))
    expected = finish(config, whole)
    for phase in ("round-1-decomposer", "round-1-allocator"):
        kill_soon_after(killed / phase / "trained/checkpoints/checkpoint-2", config, killed)
    assert not (killed / "table.md").exists()
    assert finish(config, killed) == expected


BASE = Base(model="some/model", price=Price(input_per_mtok=Decimal(1), output_per_mtok=Decimal(2)))


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": SETTINGS.model_copy(update={"rounds": 2})},
        {"router": Path("another")},
        {"seed": 2},
    ],
)
def test_a_directory_is_refused_to_a_run_of_other_arguments(
    changed: dict[str, object], tmp_path: Path
) -> None:
    arguments = {"settings": SETTINGS, "router": LAB, "seed": 1}
    for _ in range(2):
        claim(tmp_path, **arguments)
    with pytest.raises(ConfigError, match="other arguments"):
        claim(tmp_path, **arguments | changed)
    claim(tmp_path, **arguments)


def test_a_directory_is_claimed_whatever_the_settings_hold(tmp_path: Path) -> None:
    settings = Settings(
        pool="lab",
        base=BASE,
        sft={"decomposer": Path("plans.jsonl"), "allocator": Path("slots.jsonl")},
        queries=Path("queries.jsonl"),
        held_out=Path("held_out.jsonl"),
    )
    for _ in range(2):
        claim(tmp_path, settings, LAB, 1)
