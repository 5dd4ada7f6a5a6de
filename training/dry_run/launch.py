"""How processes are launched: an accelerate configuration file, as accelerate itself reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from r2graph.errors import ConfigError

FSDP_FILE = Path("training/configs/accelerate/fsdp.yaml")


@dataclass(frozen=True)
class Launch:
    """What a file says of processes, and of what each of them holds."""

    file: Path
    processes: int
    split_by: str | None = None
    """`FSDP` or `ZeRO-3` if weights, gradients and optimiser are dealt out among the processes."""


def read(file: Path) -> Launch:
    """What a file says; raises `ConfigError` for one that accelerate does not read."""
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        found: Any = load_config_from_file(str(file))
    except OSError:
        raise ConfigError(f"{file} cannot be read") from None
    except (AttributeError, TypeError, ValueError, YAMLError):
        raise ConfigError(f"accelerate does not read {file}: try `accelerate config`") from None
    if found.num_machines > 1:
        raise ConfigError(f"{file} names several machines, and the outcome cache is a file of one")
    return Launch(file, found.num_processes, _split_by(found))


def _split_by(found: Any) -> str | None:
    """Forms of either that keep a part whole count as none, which is the cautious guess."""
    kind = str(found.distributed_type).removeprefix("DistributedType.")
    if kind == "DEEPSPEED" and found.deepspeed_config.get("zero_stage") == 3:
        return "ZeRO-3"
    if kind == "FSDP" and found.fsdp_config.get("fsdp_reshard_after_forward", True) is True:
        return "FSDP"
    return None
