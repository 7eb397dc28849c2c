"""What a chain will cost, said beforehand: GPU hours from measured epochs, disk from the plan and the network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ctnet_nnunet.cluster.crossval import Crossval, find_trainer, training_cases
from ctnet_nnunet.cluster.progress import read_progress
from ctnet_nnunet.cluster.step import Step
from ctnet_nnunet.planning.options import Mode, read_options
from ctnet_nnunet.unlabeled.target import configuration_block

MODES: Mapping[str, Mode] = {
    "nnUNetTrainerCTNetPretrain": "pretrain",
    "nnUNetTrainerVolF": "volf",
    "nnUNetTrainerImagingPlanes": "planes",
    "nnUNetTrainerCMFT": "cmft",
    "nnUNetTrainerCMFF": "cmff",
    "nnUNetTrainerReciprocal": "semi_supervised",
    "nnUNetTrainerMeanTeacher": "semi_supervised",
    "nnUNetTrainerSupervisedTwin": "semi_supervised",
    "nnUNetTrainerCTNet": "supervised",
    "nnUNetTrainerStockSGD": "supervised",
}
STOCK_EPOCHS = {"nnUNetTrainer": 1000}
CHECKPOINTS = 3
"""Of a training at most: latest, best and final."""
ADAM_COPIES = 3
"""Of the weights in a checkpoint: themselves and the optimiser's two moments."""
VOXEL_BYTES = 4


@dataclass(frozen=True)
class Hours:
    """Attributes:
    trainer: Whose.
    trainings: How many are left.
    epochs: Of each; None where the trainer does not say.
    epoch_seconds: Measured or given; None where neither.
    source: Where the seconds come from.
    """

    trainer: str
    trainings: int
    epochs: int | None
    epoch_seconds: float | None
    source: str

    @property
    def hours(self) -> float | None:
        """Of all its trainings together, of one GPU each."""
        if self.epochs is None or self.epoch_seconds is None:
            return None
        return self.trainings * self.epochs * self.epoch_seconds / 3600


def training_hours(crossval: Crossval, todo: list[Step], epoch_seconds: float | None) -> list[Hours]:
    """For each trainer that has something to do."""
    block = configuration_block(crossval.target.plans, crossval.request.configuration, crossval.request.plans)
    found = []
    for kind, trainer in (("pretraining", crossval.request.pretrainer), ("training", crossval.request.trainer)):
        steps = [step for step in todo if step.kind == kind]
        if not steps or trainer is None:
            continue
        folder = (steps[0].folder or crossval.model).parent
        measured = _measured(folder)
        source = f"measured, median of {len(measured)} epochs in {folder.name}"
        seconds = median(measured) if measured else None
        if epoch_seconds is not None:
            seconds, source = epoch_seconds, "--epoch-seconds"
        found.append(Hours(trainer, len(steps), _epochs(trainer, block.get("ctnet"), folder), seconds, source))
    return found


def _measured(model: Path) -> list[float]:
    """Times of epochs; the first of each log holds the start of data loaders and compilation."""
    times = []
    for fold in sorted(model.glob("fold_*")):
        progress = read_progress(fold)
        times += list(progress.epoch_seconds[1:]) if progress else []
    return times


def _epochs(trainer: str, block: Any, model: Path) -> int | None:
    if trainer in MODES:
        return int(read_options(block, "plans").schedule(MODES[trainer]).epochs)
    seen = [progress.epochs for fold in model.glob("fold_*") if (progress := read_progress(fold)) and progress.epochs]
    return seen[0] if seen else STOCK_EPOCHS.get(trainer)


@dataclass(frozen=True)
class Disk:
    """Attributes:
    preprocessed: Bytes of the labelled cases as they lie there, or at most when they do not yet.
    measured: Whether they lie there.
    checkpoints: Bytes of all trainings' checkpoints that are still to come.
    parameters: Of the network.
    """

    preprocessed: int
    measured: bool
    checkpoints: int
    parameters: int


def disk_use(crossval: Crossval, todo: list[Step]) -> Disk:
    """Of the preprocessed cases, and of the checkpoints that the trainings will write."""
    target, request = crossval.target, crossval.request
    block = configuration_block(target.plans, request.configuration, request.plans)
    folder = target.folder.parent / str(block["data_identifier"])
    there = sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) if folder.is_dir() else 0
    measured = crossval.steps[0].finished
    if not measured:
        voxels = math.prod(round(size) for size in block["median_image_size_in_voxels"])
        there = len(training_cases(target)) * voxels * (target.channels + 1) * VOXEL_BYTES
    parameters = _parameters(crossval)
    trainings = sum(step.kind in ("pretraining", "training") for step in todo)
    return Disk(there, measured, trainings * CHECKPOINTS * ADAM_COPIES * 4 * parameters, parameters)


def _parameters(crossval: Crossval) -> int:
    """Of the network that the trainer would build, built without memory."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(crossval.target.plans)
    configuration = plans.get_configuration(crossval.request.configuration)
    labels = plans.get_label_manager(crossval.target.dataset_json)
    trainer = find_trainer(crossval.request.trainer)
    with torch.device("meta"):
        network = trainer.build_network_architecture(
            plans, configuration, crossval.target.channels, labels.num_segmentation_heads, True
        )
    return sum(parameter.numel() for parameter in network.parameters())
