"""GRPO of one router module with TRL's `GRPOTrainer`, rewarded through the deployed graph.

    python -m training.grpo --config training/configs/lab.yaml --module allocator \\
        --router lab --out runs/rl/allocator --outcomes runs/rl/outcomes.sqlite

The other module stays as it is in `--router`. Resumes from the last checkpoint in `--out`. On
several cards of one machine: `accelerate launch --config_file training/configs/accelerate/fsdp.yaml
-m training.grpo …`; the prompts of a step are dealt out among the processes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from r2graph import OutcomeCache, load_pool, load_router
from r2graph.allocate import CheckpointAllocator
from r2graph.decompose import CheckpointDecomposer
from r2graph.errors import ConfigError
from r2graph.lab.task import Task
from r2graph.pool import ModelSpec
from r2graph.router import Router
from training.checkpoints import last_checkpoint
from training.graph_rewards import AllocatorReward, DecomposerReward
from training.held_out import ended
from training.planned import planned
from training.query_files import draw
from training.rewards import LOWEST
from training.rl_data import DECOMPOSER_LEVEL, Row, allocator_rows, decomposer_rows, half_hard
from training.rollouts import Rollouts
from training.settings import Module, Phase, Settings, load_settings
from training.sharded import load_whole, save_whole

RL_SEED = 1_000  # other draws than those of SFT; few of the queries are the same
HELD_OUT_SEED = 999
SERVER_TIMEOUT_S = 900.0  # until vLLM has loaded a large policy


def held_out_tasks(settings: Settings) -> list[Task]:
    """The tasks on which routers are compared; no seed trains on them."""
    return draw(settings.held_out, HELD_OUT_SEED)


def rows(
    module: Module,
    settings: Settings,
    router: Router,
    outcomes: OutcomeCache | None,
    seed: int,
) -> list[Row]:
    """The prompts of a module; the same for the same seed."""
    without = {task.query for task in held_out_tasks(settings)}
    drawn = draw(settings.queries, RL_SEED + seed, without)
    pool = load_pool(settings.pool)
    phase: Phase = getattr(settings, module)
    if module == "decomposer":
        done = ended(pool, router, drawn, outcomes, DECOMPOSER_LEVEL)
        right = [each is not None and each[0] for each in done]
        return decomposer_rows(half_hard(drawn, right, phase.prompts, seed))
    needed = phase.steps * phase.prompts
    return allocator_rows(planned(pool, router, drawn[:needed], outcomes), seed)


def folder(router: Router, module: Module) -> Path:
    """Where the weights of a checkpoint router's module lie; `ConfigError` for other routers."""
    part = getattr(router, module)
    is_trained = isinstance(part, CheckpointDecomposer | CheckpointAllocator)
    if not is_trained or part.model.provider != "local":
        raise ConfigError(f"router {router.card.name!r} has no {module} that could be trained")
    return Path(str(part.model.model).removeprefix("local:"))


def asked(router: Router) -> list[ModelSpec]:
    """The models of a router that rollouts of either module ask: plans are given to them."""
    part = router.allocator
    return [part.model] if isinstance(part, CheckpointAllocator) else []


def reward(
    module: Module, router: Router, rollouts: Rollouts, lowest_cost_weight: float = LOWEST
) -> Any:
    if module == "allocator":
        return AllocatorReward(rollouts, lowest_cost_weight)
    return DecomposerReward(rollouts, float(router.card.prices.decomposer.output_per_mtok) / 1e6)


def config(phase: Phase, out: Path, seed: int) -> Any:
    """TRL's configuration of a phase."""
    import torch
    from trl import GRPOConfig

    cuda = torch.cuda.is_available()
    return GRPOConfig(
        output_dir=str(out),
        max_steps=phase.steps,
        per_device_train_batch_size=phase.batch(int(os.environ.get("WORLD_SIZE", "1"))),
        gradient_accumulation_steps=phase.accumulate,
        num_generations=phase.generations,
        max_completion_length=phase.max_completion_tokens,
        learning_rate=phase.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=10,
        weight_decay=0.0,
        beta=phase.beta,
        entropy_coef=phase.entropy,
        temperature=phase.temperature,
        scale_rewards=phase.scale_rewards,
        loss_type=phase.loss,
        use_vllm=phase.vllm != "off",
        vllm_mode="colocate" if phase.vllm == "off" else phase.vllm,
        vllm_server_base_url=phase.vllm_url,
        vllm_server_timeout=SERVER_TIMEOUT_S,
        vllm_group_port=phase.vllm_group_port,
        seed=seed,
        use_cpu=not cuda,
        bf16=cuda,
        gradient_checkpointing=False,
        dataloader_pin_memory=cuda,
        logging_steps=5,
        save_steps=phase.save_every,
        save_total_limit=1,
        report_to="none",
    )


def train(
    module: Module,
    phase: Phase,
    router: Router,
    prompts: list[Row],
    rollouts: Rollouts,
    out: Path,
    seed: int,
) -> None:
    """Train a module and write it to `out`, with `log.json` beside it."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOTrainer

    base, checkpoints = folder(router, module), out / "checkpoints"
    adapters = phase.lora and LoraConfig(
        r=phase.lora.rank, lora_alpha=phase.lora.alpha, task_type="CAUSAL_LM"
    )
    trainer = GRPOTrainer(
        model=str(base),
        reward_funcs=reward(module, router, rollouts, phase.lowest_cost_weight),
        args=config(phase, checkpoints, seed),
        train_dataset=Dataset.from_list(prompts),
        peft_config=adapters,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    save_whole(trainer, out, base)
    if trainer.is_world_process_zero():
        (out / "log.json").write_text(json.dumps(trainer.state.log_history) + "\n")


def made_once(make: Callable[[], list[Row]], outcomes: Path | None) -> list[Row]:
    """Prompts that the first of several processes makes for all of them, under `accelerate launch`.

    Raises `ConfigError` for processes without an outcome cache, and for several machines.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=6))
    if state.num_processes > 1 and outcomes is None:
        raise ConfigError("several processes need an outcome cache in common: name one, --outcomes")
    if state.num_processes > int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes)):
        raise ConfigError("the outcome cache is a file of one machine: launch with num_machines: 1")
    made = [make() if state.is_main_process else []]
    broadcast_object_list(made)
    return made[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--module", choices=("decomposer", "allocator"), required=True)
    parser.add_argument("--router", default="lab")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--outcomes", type=Path, help="an outcome cache (SQLite)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    settings = load_settings(arguments.config)
    phase = getattr(settings, arguments.module)
    if phase is None:
        raise ConfigError(f"{arguments.config} has no entry `{arguments.module}`")
    router, pool = load_router(arguments.router), load_pool(settings.pool)
    load_whole([*pool.members, *asked(router)])
    with OutcomeCache(arguments.outcomes) if arguments.outcomes else nullcontext() as outcomes:
        rollouts = Rollouts(pool, router, outcomes)
        prompts = made_once(
            lambda: rows(
                arguments.module,
                settings,
                load_router(arguments.router),  # which goes, and its decomposer with it
                outcomes,
                arguments.seed,
            ),
            arguments.outcomes,
        )
        train(arguments.module, phase, router, prompts, rollouts, arguments.out, arguments.seed)
    print(f"rollouts: {rollouts.misses} run, {rollouts.hits} repeated", flush=True)


if __name__ == "__main__":
    main()
