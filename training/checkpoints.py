"""Where training that was cut short goes on."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

STATE = "trainer_state.json"  # which transformers writes when the rest of a checkpoint is there


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that is whole, for `resume_from_checkpoint`; `None` if there is none.

    transformers' `get_last_checkpoint` also takes one whose writing was killed, and fails to load.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        with suppress(OSError, ValueError):
            json.loads((checkpoint / STATE).read_text())
            return str(checkpoint)
    return None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
