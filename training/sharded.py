"""Models whole, where a launcher gives every process a part of them (FSDP, ZeRO-3)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from r2graph.local import ChatLocal
from r2graph.pool import ModelSpec

ADAPTERS = "adapters"


def load_whole(models: Iterable[ModelSpec]) -> None:
    """Load the local ones among models that rollouts ask, each process on its own card.

    To be called before accelerate and TRL set anything up: from then on transformers would load
    these models as parts too, or empty.
    """
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    for model in models:
        if model.provider == "local" and isinstance(model.chat, ChatLocal):
            model.chat.get_token_ids("")


def save_whole(trainer: Any, out: Path, base: Path | str) -> None:
    """Write the model that was trained from `base`, gathered from all processes, adapters merged.

    Adapters lie beside the checkpoints; they are merged into weights that are read again, for the
    trainer's own may be in parts.
    """
    from peft import PeftModel

    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if not isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel):
        trainer.save_model(str(out))
        return
    adapters = Path(trainer.args.output_dir) / ADAPTERS
    trainer.save_model(str(adapters))
    if trainer.is_world_process_zero():
        _merge(base, adapters, out)
        trainer.processing_class.save_pretrained(out)


def _merge(base: Path | str, adapters: Path, out: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # with it, ZeRO-3 would deal these weights out as well
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")  # as TRL loads it
    PeftModel.from_pretrained(model, adapters).merge_and_unload().save_pretrained(out)
