"""`accelerate launch` of this file with arguments of `training.grpo` trains under FSDP on CPUs.

accelerate wraps models by FSDP on cards only; here it is told that gloo's processes have some.
"""

import os
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from training import grpo


def _cards(self: PartialState, *args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def _wait(self: PartialState) -> None:
    torch.distributed.barrier()  # without the ids of cards


if __name__ == "__main__":
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = _cards
    PartialState.wait_for_everyone = _wait
    grpo.main()
