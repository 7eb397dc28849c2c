"""What each fold began from, kept beside its records: a pretraining that is named later has had no part in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ctnet_nnunet.cluster.step import Step
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.files import write_text

FOLDER = "began"


def note_beginning(folder: Path, step: Step) -> None:
    """Keep what a fold that has no checkpoint yet is about to begin from.

    Args:
        folder: The chain's.
    """
    if step.kind == "training" and step.checkpoint is None:
        weights = None if step.weights is None else str(step.weights)
        write_text(_file(folder, step), json.dumps({"weights": weights}) + "\n")


def check_beginnings(folder: Path, steps: Sequence[Step]) -> list[str]:
    """Compare what folds began from with what is asked for; returns the titles of those of which nothing is known.

    Raises:
        SetupError: A fold that is trained, or begun, began from something else.
    """
    unknown = []
    for step in steps:
        if step.kind != "training" or not (step.finished or step.checkpoint is not None):
            continue
        try:
            weights = json.loads(_file(folder, step).read_text(encoding="utf-8"))["weights"]
        except (OSError, ValueError, KeyError, TypeError):
            unknown.append(step.title)
            continue
        asked = None if step.weights is None else str(step.weights)
        if _model(weights) != _model(asked):
            raise SetupError(
                f"{step.title} in {step.folder} began {_words(weights)}, and now it is to begin {_words(asked)}; ask "
                "as before, or keep both apart: other plans (ctnet plan --name, -p) or another nnUNet_results"
            )
    return unknown


def _file(folder: Path, step: Step) -> Path:
    return folder / FOLDER / f"{step.name}.json"


def _model(weights: str | None) -> tuple[str, ...]:
    """The end of the path, by which a results folder that was moved is known again."""
    return () if weights is None else Path(weights).parts[-3:]


def _words(weights: str | None) -> str:
    return "without a pretraining" if weights is None else f"from {weights}"
