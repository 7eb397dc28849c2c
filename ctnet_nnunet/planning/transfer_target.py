"""The network that ``ctnet transfer`` fits weights to: read from a dataset's plans, with one line for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from ctnet_nnunet.architectures.from_plan import as_ctnet, check_patch, network_from_plan
from ctnet_nnunet.errors import DataError, PlanError
from ctnet_nnunet.files import read_planned
from ctnet_nnunet.planning.datasets import dataset_folder_name
from ctnet_nnunet.planning.options import read_options

NETWORK_OF_TRAINER = {"nnUNetTrainerCTNet": True, "nnUNetTrainer": False}
"""Trainer → whether it turns the plan's network into CTNet."""
SEED = 12345


class Target(NamedTuple):
    """A plan's network, and how many of its input channels are the image's: a cascade's others are labels."""

    network: nn.Module
    image_channels: int


def target_network(dataset: str | int, plans: str, configuration: str, trainer: str) -> Target:
    """The network that the trainer would build, freshly initialised from a fixed seed.

    Args:
        dataset: Id or name.
        plans: Name of its plans file without ending.
        configuration: The plan's configuration.
        trainer: A key of ``NETWORK_OF_TRAINER``.

    Raises:
        PlanError: Unknown trainer or configuration; missing or broken plans.
        DataError: Unknown dataset; a missing or broken dataset.json.
    """
    if trainer not in NETWORK_OF_TRAINER:
        raise PlanError(f"-tr {trainer}: valid are {', '.join(NETWORK_OF_TRAINER)}")
    folder = Path(str(nnUNet_preprocessed)) / dataset_folder_name(dataset)
    file = folder / f"{plans}.json"
    content = read_planned(file, PlanError)
    known = content.get("configurations")
    if not isinstance(known, dict) or configuration not in known:
        listed = ", ".join(known) if isinstance(known, dict) else "none"
        raise PlanError(f"{file}: no configuration {configuration!r}; it has {listed}")
    dataset_json = read_planned(folder / "dataset.json", DataError)
    try:
        manager = PlansManager(content)
        values: dict[str, Any] = manager.get_configuration(configuration).configuration
        channels: int = determine_num_input_channels(manager, configuration, dataset_json)
        images = len(dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"])
        heads: int = manager.get_label_manager(dataset_json).num_segmentation_heads
        architecture, patch = dict(values["architecture"]), list(values["patch_size"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PlanError(f"{file}, {configuration}: cannot be used ({reason}); plan the dataset again") from error
    check_patch(architecture, patch)
    if NETWORK_OF_TRAINER[trainer]:
        architecture = as_ctnet(architecture, patch, read_options(values.get("ctnet"), str(file)).transformer_options())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return Target(network_from_plan(architecture, channels, heads, True), images)
