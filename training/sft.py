"""Supervised fine-tuning of a router module with TRL's `SFTTrainer`.

    python -m training.sft --base Qwen/Qwen2.5-0.5B-Instruct --data runs/data/decomposer.jsonl \\
        --out runs/router/decomposer

Rows are conversational prompt/completion pairs; the loss is on completions. Resumes from the last
checkpoint in `--out`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training.checkpoints import last_checkpoint
from training.sharded import save_whole

MAX_TOKENS = 256  # of a row: what the lab's models hold


def train(
    base: Path,
    data: Path,
    out: Path,
    *,
    epochs: float = 1.0,
    batch: int = 64,
    learning_rate: float = 1e-3,
    max_tokens: int = MAX_TOKENS,
    seed: int = 1,
) -> None:
    """Fine-tune the model in `base` on a file of rows and write it to `out`."""
    import torch
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    cuda = torch.cuda.is_available()
    checkpoints = out / "checkpoints"
    config = SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=50,
        weight_decay=0.0,
        max_length=max_tokens,
        seed=seed,
        train_sampling_strategy="group_by_length",
        use_cpu=not cuda,
        bf16=cuda,
        gradient_checkpointing=False,
        dataloader_pin_memory=cuda,
        logging_steps=50,
        save_steps=500,
        save_total_limit=1,
        report_to="none",
    )
    trainer = SFTTrainer(
        model=str(base),
        args=config,
        train_dataset=load_dataset("json", data_files=str(data), split="train"),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    save_whole(trainer, out, base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS)
    parser.add_argument("--seed", type=int, default=1)
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
