"""``ctnet transfer``: a checkpoint of other plans made to load with ``-pretrained_weights`` under these."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from ctnet_nnunet.architectures.from_plan import as_ctnet, check_patch, network_from_plan
from ctnet_nnunet.checkpoints import read_checkpoint, write_checkpoint
from ctnet_nnunet.errors import CheckpointError, PlanError
from ctnet_nnunet.planning.datasets import dataset_folder_name
from ctnet_nnunet.planning.options import read_options
from ctnet_nnunet.weight_transfer import Transfer, transfer_weights

NETWORK_OF_TRAINER = {"nnUNetTrainerCTNet": True, "nnUNetTrainer": False}
"""Trainer → whether it turns the plan's network into CTNet."""
SEED = 12345


def transfer_checkpoint(
    checkpoint: Path,
    dataset: str | int,
    plans: str,
    configuration: str,
    output: Path,
    trainer: str = "nnUNetTrainerCTNet",
    min_share: float = 0.5,
    force: bool = False,
) -> Transfer:
    """Fit a checkpoint's weights to a plan's network and write a file for ``-pretrained_weights``.

    Args:
        checkpoint: A checkpoint of nnU-Net, of this package or of nnssl (``network_weights``).
        dataset: Id or name of the dataset to fine-tune on.
        plans: Name of its plans file without ending.
        configuration: The plan's configuration.
        output: The file to write.
        trainer: The trainer that will load it; it decides whether the plan's network becomes CTNet.
        min_share: Least share of parameters that must be loaded or adapted.
        force: Replace an existing file.

    Raises:
        CheckpointError: If the source is not a checkpoint, too little of it fits, or the output exists.
        PlanError, DataError, SetupError: If the target cannot be built.
    """
    if output.exists() and not force:
        raise CheckpointError(f"{output}: exists already; choose another -o, or --force")
    weights = read_checkpoint(checkpoint)["network_weights"]
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(f"{checkpoint}: its network_weights are not a table of tensors; give a checkpoint_*.pth")
    network = _target(dataset, plans, configuration, trainer)
    result = transfer_weights(network, weights)
    share = result.share("loaded") + result.share("adapted")
    if share < min_share:
        raise TooLittleFitsError(
            f"{checkpoint}: only {share:.1%} of the parameters fit, {min_share:.0%} are wanted; take a checkpoint of a "
            "closer plan, or lower --min-share",
            result,
        )
    origin = {
        "file": checkpoint.name,
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "loaded": result.share("loaded"),
        "adapted": result.share("adapted"),
    }
    write_checkpoint({"network_weights": result.state, "ctnet_transfer": origin}, output)
    return result


class TooLittleFitsError(CheckpointError):
    """Too little of a checkpoint fits; ``result`` says what did."""

    def __init__(self, message: str, result: Transfer) -> None:
        super().__init__(message)
        self.result = result


def _target(dataset: str | int, plans: str, configuration: str, trainer: str) -> nn.Module:
    """The network that the trainer would build, freshly initialised from a fixed seed."""
    if trainer not in NETWORK_OF_TRAINER:
        raise PlanError(f"-tr {trainer}: valid are {', '.join(NETWORK_OF_TRAINER)}")
    folder = Path(str(nnUNet_preprocessed)) / dataset_folder_name(dataset)
    file = folder / f"{plans}.json"
    if not file.is_file():
        raise PlanError(f"{file}: no such plans; run nnUNetv2_plan_and_preprocess or `ctnet plan` first")
    manager = PlansManager(load_json(str(file)))
    if configuration not in manager.plans["configurations"]:
        available = ", ".join(manager.plans["configurations"])
        raise PlanError(f"{file}: no configuration {configuration!r}; it has {available}")
    values: dict[str, Any] = manager.get_configuration(configuration).configuration
    architecture = values["architecture"]
    check_patch(architecture, values["patch_size"])
    if NETWORK_OF_TRAINER[trainer]:
        transformer = read_options(values.get("ctnet"), str(file)).transformer_options()
        architecture = as_ctnet(architecture, values["patch_size"], transformer)
    heads = manager.get_label_manager(load_json(str(folder / "dataset.json"))).num_segmentation_heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return network_from_plan(architecture, len(values["normalization_schemes"]), heads, True)
