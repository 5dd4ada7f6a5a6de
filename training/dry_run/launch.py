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
    """What a file says; raises `ConfigError` for one that accelerate does not read, or that is of
    FSDP's version 1, the default of accelerate.
    """
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        found: Any = load_config_from_file(str(file))
    except OSError:
        raise ConfigError(f"{file} cannot be read") from None
    except (AttributeError, TypeError, ValueError, YAMLError):
        raise ConfigError(f"accelerate does not read {file}: try `accelerate config`") from None
    if found.num_machines > 1:
        raise ConfigError(f"{file} names several machines, and the outcome cache is a file of one")
    return Launch(file, found.num_processes, _split_by(file, found))


def _split_by(file: Path, found: Any) -> str | None:
    """Forms of either that keep a part whole count as none, which is the cautious guess."""
    kind = str(found.distributed_type).removeprefix("DistributedType.")
    if kind == "FSDP" and str(found.fsdp_config.get("fsdp_version", 1)) != "2":
        raise ConfigError(
            f"{file} is of FSDP's version 1, whose words differ: set fsdp_version to 2 and "
            f"fsdp_reshard_after_forward to true, as in {FSDP_FILE}"
        )
    if kind == "DEEPSPEED" and found.deepspeed_config.get("zero_stage") == 3:
        return "ZeRO-3"
    reshards = found.fsdp_config.get("fsdp_reshard_after_forward", True)
    if kind == "FSDP" and str(reshards).lower() == "true":
        return "FSDP"
    return None
