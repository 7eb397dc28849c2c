"""What a chain will cost, said beforehand: GPU hours from measured epochs, disk from the plan and the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from ctnet_nnunet.cluster.crossval import Crossval, training_cases
from ctnet_nnunet.cluster.progress import read_progress, run_on
from ctnet_nnunet.cluster.step import Step
from ctnet_nnunet.cluster.trainers import find_trainer, schedule_of
from ctnet_nnunet.planning.options import read_options
from ctnet_nnunet.unlabeled.target import configuration_block

STOCK_EPOCHS = {"nnUNetTrainer": 1000}
CHECKPOINTS = 3
"""Of a training at most: latest, best and final."""
COPIES = {
    "nnUNetTrainer": 2,
    "nnUNetTrainerStockSGD": 2,
    "nnUNetTrainerMeanTeacher": 4,
    "nnUNetTrainerReciprocal": 6,
}
"""Of the weights in a checkpoint: themselves and SGD's momentum, or with a teacher's, or with its optimiser's too."""
ADAM_COPIES = 3
"""Themselves and the two moments: the other trainers. Heads and discriminators of a pretraining are not counted."""
VOXEL_BYTES = 4


@dataclass(frozen=True)
class Hours:
    """Attributes:
    trainer: Whose.
    trainings: How many are left.
    epochs: Of each; None where the trainer does not say.
    epoch_seconds: On average, measured or given; None where neither.
    source: Where the seconds come from.
    conditions: Device and processes that epochs are measured with.
    """

    trainer: str
    trainings: int
    epochs: int | None
    epoch_seconds: float | None
    source: str
    conditions: str = ""

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
        device, processes = crossval.request.device, crossval.request.gpus
        schedule = schedule_of(trainer, block)
        epochs = _epochs(trainer, folder) if schedule is None else int(schedule.epochs)
        costs = _costs(trainer, block, epochs)
        measured = _measured(folder, device, processes, costs)
        conditions = f"on {device} in {processes} process{'es' if processes > 1 else ''}"
        source = f"measured {conditions}, median of {len(measured)} epochs in {folder.name}"
        seconds = median(measured) * mean(costs) if measured else None
        if max(costs) > min(costs):
            source += f"; its longest epochs are taken as {max(costs) / min(costs):g} times its shortest"
        if epoch_seconds is not None:
            seconds, source = epoch_seconds, "--epoch-seconds"
        found.append(Hours(trainer, len(steps), epochs, seconds, source, conditions))
    return found


def _costs(trainer: str, block: Mapping[str, Any], epochs: int | None) -> list[float]:
    """Of each epoch, relative to the others."""
    planned = getattr(find_trainer(trainer), "planned_costs", None)
    if planned is None or not epochs:
        return [1.0]
    return list(planned(read_options(block.get("ctnet"), "plans"), epochs))


def _measured(model: Path, device: str, processes: int, costs: Sequence[float]) -> list[float]:
    """Times of epochs on such a device, each divided by its cost.

    The first of each log holds the start of data loaders and compilation.
    """
    times = []
    for fold in sorted(model.glob("fold_*")):
        if run_on(fold) != (device, processes):
            continue
        progress = read_progress(fold)
        logged = list(progress.epoch_seconds.items())[1:] if progress else []
        times += [seconds / costs[min(epoch, len(costs) - 1)] for epoch, seconds in logged]
    return times


def _epochs(trainer: str, model: Path) -> int | None:
    seen = [progress.epochs for fold in model.glob("fold_*") if (progress := read_progress(fold)) and progress.epochs]
    return seen[0] if seen else STOCK_EPOCHS.get(trainer)


@dataclass(frozen=True)
class Disk:
    """Attributes:
    preprocessed: Bytes of the labelled cases as they lie there, or at most when they do not yet.
    measured: Whether they lie there.
    checkpoints: Bytes of all trainings' checkpoints that are still to come, about.
    parameters: Of the folds' network.
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
    checkpoints = 0
    for kind, trainer in (("pretraining", request.pretrainer), ("training", request.trainer)):
        trainings = sum(step.kind == kind for step in todo)
        if trainings and trainer is not None:
            checkpoints += trainings * CHECKPOINTS * checkpoint_bytes(trainer, network_parameters(crossval, trainer))
    return Disk(there, measured, checkpoints, network_parameters(crossval, request.trainer))


def checkpoint_bytes(trainer: str, parameters: int) -> int:
    """About: float32 weights, those of a teacher, and the state of their optimisers."""
    return COPIES.get(trainer, ADAM_COPIES) * 4 * parameters


def network_parameters(crossval: Crossval, name: str) -> int:
    """Of the network that the trainer would build, built without memory."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(crossval.target.plans)
    configuration = plans.get_configuration(crossval.request.configuration)
    labels = plans.get_label_manager(crossval.target.dataset_json)
    trainer = find_trainer(name)
    with torch.device("meta"):
        network = trainer.build_network_architecture(
            plans, configuration, crossval.target.channels, labels.num_segmentation_heads, True
        )
    return sum(parameter.numel() for parameter in network.parameters())
