"""What a running training's log says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_EPOCH = re.compile(r"Epoch (\d+)\s*$", re.MULTILINE)
_LOSS = re.compile(r"\btrain_loss (\S+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class TrainingState:
    """What a training's log says."""

    epoch: int
    loss: str


def read_training_state(log: Path, offset: int) -> TrainingState | None:
    """The newest epoch and loss in a log from byte ``offset`` on, or None before the first epoch."""
    if not log.is_file():
        return None
    with log.open("rb") as file:
        file.seek(offset)
        text = file.read().decode(errors="replace")
    epochs = _EPOCH.findall(text)
    losses = _LOSS.findall(text)
    return TrainingState(int(epochs[-1]), losses[-1] if losses else "") if epochs else None


def clock(seconds: float) -> str:
    """``7:05`` minutes."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"
