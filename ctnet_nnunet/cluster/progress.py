"""How far a training is, from the log in its own folder: epoch, remaining time, Dice."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ctnet_nnunet.cluster.reason import read_end

_EPOCH = re.compile(r": Epoch (\d+)\s*$", re.MULTILINE)
_DONE = re.compile(r": epoch (\d+)/(\d+) done, (.+?) left\s*$", re.MULTILINE)
_SECONDS = re.compile(r": Epoch time: ([\d.]+) s\s*$", re.MULTILINE)
_PSEUDO_DICE = re.compile(r": Pseudo dice \[(.*)\]\s*$", re.MULTILINE)
_NUMBER = re.compile(r"(?:float\d+\()?(nan|\d*\.?\d+(?:e-?\d+)?)\)?(?:,|$)")


@dataclass(frozen=True)
class TrainingProgress:
    """Attributes:
    epoch: Epochs that are done.
    epochs: Of how many; None where the trainer does not say (nnU-Net's own do not).
    left: The trainer's own words for the remaining time, or empty.
    dice: Mean pseudo Dice of the last epoch's validation patches, None where there is none.
    epoch_seconds: Times of the epochs in this log, by their numbers from 0.
    """

    epoch: int
    epochs: int | None
    left: str
    dice: float | None
    epoch_seconds: dict[int, float]

    def __str__(self) -> str:
        of = "" if self.epochs is None else f"/{self.epochs}"
        dice = "" if self.dice is None else f", Dice {self.dice:.3f}"
        return f"epoch {self.epoch}{of}{f', {self.left} left' if self.left else ''}{dice}"


def read_progress(fold: Path, segments: bool = True) -> TrainingProgress | None:
    """From the newest log of a fold's folder; None before its first epoch.

    Args:
        segments: Whether its Dice means anything; a pretraining's does not.
    """
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
    # One that was just begun anew says nothing yet; the one before it then still holds.
    texts = [text for text in map(read_end, logs[-2:]) if _EPOCH.search(text)]
    if not texts:
        return None
    text = texts[-1]
    done, running = _DONE.findall(text), _EPOCH.findall(text)
    dice = _PSEUDO_DICE.findall(text)
    return TrainingProgress(
        epoch=int(done[-1][0]) if done else int(running[-1]),
        epochs=int(done[-1][1]) if done else None,
        left=done[-1][2] if done else "",
        dice=_mean(dice[-1]) if dice and segments else None,
        epoch_seconds=_epoch_seconds(text),
    )


def _epoch_seconds(text: str) -> dict[int, float]:
    found, epoch = {}, None
    for line in text.splitlines(keepends=True):
        if begun := _EPOCH.search(line):
            epoch = int(begun[1])
        elif epoch is not None and (ended := _SECONDS.search(line)):
            found[epoch] = float(ended[1])
    return found


def run_on(fold: Path) -> tuple[str, int] | None:
    """Kind of device and number of processes of a fold's last start, as nnU-Net left them; None where not known.

    Stock trainers that stock's command starts in several processes do not say in how many.
    """
    try:
        content = json.loads((fold / "debug.json").read_text(encoding="utf-8"))
        several = content["is_ddp"] == "True"
        return str(content["device"]).partition(":")[0], int(content["processes"] if several else 1)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def validation_dice(summary: Path) -> float | None:
    """nnU-Net's mean foreground Dice of a summary.json; None where there is none yet."""
    try:
        return float(json.loads(summary.read_text(encoding="utf-8"))["foreground_mean"]["Dice"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mean(listed: str) -> float | None:
    values = [float(text) for text in _NUMBER.findall(listed) if text != "nan"]
    return sum(values) / len(values) if values else None
