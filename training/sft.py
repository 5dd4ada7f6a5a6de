"""Supervised fine-tuning of a router module with TRL's `SFTTrainer`.

    python -m training.sft --base runs/lab/m6 --data runs/lab/decomposer.jsonl --out
    runs/lab/router/decomposer

Rows are conversational prompt/completion pairs; the loss is on completions. Resumes from the last
checkpoint in `--out`.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    import torch
    from datasets import load_dataset
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig, SFTTrainer

    cuda = torch.cuda.is_available()
    checkpoints = arguments.out / "checkpoints"
    config = SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=50,
        weight_decay=0.0,
        max_length=256,
        seed=arguments.seed,
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
        model=str(arguments.base),
        args=config,
        train_dataset=load_dataset("json", data_files=str(arguments.data), split="train"),
    )
    trainer.train(
        resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.exists() else None
    )
    trainer.save_model(str(arguments.out))


if __name__ == "__main__":
    main()
