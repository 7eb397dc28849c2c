"""What ``ctnet crossval`` prints: the jobs and their cost beforehand, the figures at the end."""

from __future__ import annotations

import json
from typing import Any

from ctnet_nnunet.cluster.crossval import Crossval, crossval_results
from ctnet_nnunet.cluster.estimate import Hours, disk_use, training_hours
from ctnet_nnunet.cluster.progress import validation_dice
from ctnet_nnunet.cluster.step import Step
from ctnet_nnunet.cluster.submit import groups_of


def crossval_figures(crossval: Crossval) -> list[str]:
    """nnU-Net's mean foreground Dice of each fold and of all validation cases, before and after postprocessing."""
    folder = crossval_results(crossval.model, crossval.request.folds)
    lines = []
    for step in crossval.steps:
        if step.kind == "training" and (dice := validation_dice(step.proofs[0])) is not None:
            lines.append(f"{step.title}: Dice {dice:.4f}")
    content: dict[str, Any] = json.loads((folder / "postprocessing.json").read_text(encoding="utf-8"))
    before, behind = (content[key]["foreground_mean"]["Dice"] for key in ("input_folder", "postprocessed"))
    what = [str(kwargs.get("labels_or_regions")) for kwargs in content["postprocessing_kwargs"]]
    chosen = f"largest component of {', then '.join(what)} kept: Dice {behind:.4f}" if what else "none improves it"
    lines.append(f"all validation cases: Dice {before:.4f}; postprocessing: {chosen}")
    lines.append(f"figures {folder / 'summary.json'}, report {crossval.folder / 'report' / 'report.html'}")
    return lines


def cost_lines(crossval: Crossval, todo: list[Step], engine: str, gpus: int, epoch_seconds: float | None) -> list[str]:
    """Jobs with what each waits for, GPU hours, disk."""
    finished, commas = sum(step.finished for step in crossval.steps), ", "
    lines = [f"{len(todo)} of {len(crossval.steps)} steps to run, {finished} finished ({engine})"]
    for group in groups_of(todo):
        waits = [*group.after, *([f"{group.paired}, task by task"] if group.paired else [])]
        kind = f"array of {len(group.steps)}" if len(group.steps) > 1 else "job"
        lines.append(f"  {group.name}: {kind}{f', behind {commas.join(waits)}' if waits else ''}")
        lines.append(f"    $ {' '.join(group.steps[0].command())}")
    if not todo:
        return lines
    what = "GPU" if gpus else "machine"
    lines += [_hours(hours, max(gpus, 1), what) for hours in training_hours(crossval, todo, epoch_seconds)]
    disk = disk_use(crossval, todo)
    data = f"preprocessed cases {_size(disk.preprocessed)}{'' if disk.measured else ' at most, uncompressed'}"
    weights = f"checkpoints about {_size(disk.checkpoints)} ({disk.parameters:,} parameters)"
    lines.append(f"disk: {data}, {weights}; label maps of the validation cases come beside them")
    return lines


def _hours(hours: Hours, gpus: int, what: str) -> str:
    many = f"{hours.trainings} training{'s' if hours.trainings != 1 else ''} of {hours.trainer}"
    if hours.epochs is None:
        return f"{what} hours: {many}: unknown, since this trainer does not say how many epochs it runs"
    if hours.hours is None or hours.epoch_seconds is None:
        return (
            f"{what} hours: {many}, {hours.epochs} epochs each: unknown, since no epoch of it was measured here "
            f"{hours.conditions}; train one fold for a few epochs, or give --epoch-seconds"
        )
    return (
        f"{what} hours: {hours.hours * gpus:.3g} for {many}, {hours.epochs} epochs of {hours.epoch_seconds:.3g} s "
        f"({hours.source}); preprocessing and final validation come on top"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
