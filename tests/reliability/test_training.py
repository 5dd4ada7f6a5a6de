"""Reinforcement learning on a pool that fails, killed again and again."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from r2graph import OutcomeCache, load_pool, load_router
from r2graph.plan import Plan
from tests.conftest import Figure
from training.grpo import rows, train
from training.rewards import Rollout
from training.rollouts import Given, Rollouts
from training.settings import Phase, Settings

KILLS = 5
PHASE = Phase(
    steps=12,
    prompts=2,
    generations=4,
    max_completion_tokens=24,
    learning_rate=1e-2,
    temperature=3.0,
    save_every=2,
)
SETTINGS = Settings(
    pool="lab", queries={"arith": 12, "geo": 12}, held_out={"arith": 2}, allocator=PHASE
)


class Killed(BaseException):
    """Nobody handles it, like a signal."""


class FailingRollouts(Rollouts):
    """Of the runs one in ten fails through no fault of the policy; some calls end the process."""

    failed = 0
    left = -1
    """Calls until the end."""
    as_wrong = False
    """The control: a failed run counts as a wrong answer."""

    async def run(self, wanted: Sequence[Given], plans: Sequence[Plan]) -> list[Rollout | None]:
        self.left -= 1
        if self.left == 0:
            raise Killed
        done = await super().run(wanted, plans)
        for at, given in enumerate(wanted):
            if sha256(f"{given} {at}".encode()).digest()[0] < 26:
                self.failed += 1
                done[at] = Rollout(False, 1.0, 1.0, 1.0) if self.as_wrong else None
        return done


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_training_masks_what_the_pool_failed_and_resumes_exactly(
    tmp_path: Path, figure: Figure
) -> None:
    pool, router = load_pool("lab"), load_router("lab")
    draw = Random(1)
    with OutcomeCache(tmp_path / "outcomes.sqlite") as outcomes:
        prompts = rows("allocator", SETTINGS, router, outcomes, seed=1)

        def trained(name: str, left: int = -1, *, as_wrong: bool = False) -> tuple[bytes, int]:
            rollouts = FailingRollouts(pool, router, outcomes)
            rollouts.left, rollouts.as_wrong = left, as_wrong
            train("allocator", PHASE, router, prompts, rollouts, tmp_path / name, seed=1)
            return (tmp_path / name / "model.safetensors").read_bytes(), rollouts.failed

        expected, failed = trained("whole")
        for _ in range(KILLS):
            with pytest.raises(Killed):
                trained("killed", draw.randint(1, 4))
        resumed, _ = trained("killed")
        control, _ = trained("control", as_wrong=True)
    share = failed / (PHASE.steps * PHASE.prompts * PHASE.generations)
    figure(
        f"training, {KILLS} kills: share of rewards masked, resumed alike",
        f"{share:.3f}, {resumed == expected}",
    )
    assert 0.02 < share < 0.3
    assert resumed == expected
    assert control != expected, "a failed run counted as wrong teaches something else"
