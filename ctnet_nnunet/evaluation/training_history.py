"""What a training logged, epoch by epoch: from nnU-Net's checkpoint, or from its text logs."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")

_EPOCH = re.compile(r"Epoch (\d+)\s*$")
_LOSS = re.compile(r"\b(train_loss|val_loss) (\S+)\s*$")
_PSEUDO_DICE = re.compile(r"Pseudo dice \[(.*)\]")
# A dot is required: 'np.float32(0.71)' must give 0.71 and not 32.
_NUMBER = re.compile(r"[-+]?\d*\.\d+(?:e[-+]?\d+)?|nan")


@dataclass(frozen=True)
class History:
    """One value an epoch; ``nan`` where an epoch has none.

    ``score`` is nnU-Net's mean Dice on validation patches, or what a pretraining logs in its place.
    """

    name: str
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    score: tuple[float, ...]

    @property
    def epochs(self) -> int:
        """Number of epochs with any value."""
        return max(len(self.train_loss), len(self.validation_loss), len(self.score))


def read_history(folder: Path, name: str) -> History | None:
    """The history of the training in ``folder`` (a ``fold_X``), or None where it left none.

    Our checkpoints hold plain types and are read with ``weights_only=True``. Others that cannot be read in that way are
    never unpickled: the text logs serve instead.
    """
    for file_name in CHECKPOINTS:
        logged = _read_checkpoint(folder / file_name)
        if logged is not None:
            return _from_logging(logged, name)
    return _from_text(sorted(folder.glob("training_log*.txt")), name)


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError):
        return None
    logged = content.get("logging") if isinstance(content, dict) else None
    return logged if isinstance(logged, dict) else None


def _from_logging(logged: dict[str, Any], name: str) -> History:
    train, validation, score = (_numbers(logged.get(key)) for key in ("train_losses", "val_losses", "mean_fg_dice"))
    return History(name, train, validation, score)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in values) if isinstance(values, Sequence) and not isinstance(values, str) else ()


def _from_text(files: list[Path], name: str) -> History | None:
    """Logs in the order of their time stamps: an epoch that was run again after a crash overwrites the first try."""
    found: dict[str, dict[int, float]] = {"train_loss": {}, "val_loss": {}, "score": {}}
    for path in files:
        epoch = 0
        for line in path.read_text(errors="replace").splitlines():
            if match := _EPOCH.search(line):
                epoch = int(match[1])
            elif match := _LOSS.search(line):
                found[match[1]][epoch] = _to_float(match[2])
            elif match := _PSEUDO_DICE.search(line):
                values = [v for v in map(float, _NUMBER.findall(match[1])) if not math.isnan(v)]
                found["score"][epoch] = sum(values) / len(values) if values else math.nan
    if not any(found.values()):
        return None
    return History(name, _series(found["train_loss"]), _series(found["val_loss"]), _series(found["score"]))


def _to_float(text: str) -> float:
    number = _NUMBER.search(text)
    return float(number[0]) if number else math.nan


def _series(by_epoch: dict[int, float]) -> tuple[float, ...]:
    return tuple(by_epoch.get(epoch, math.nan) for epoch in range(max(by_epoch, default=-1) + 1))
