"""A pretrained network with the heads of imaging planes, out of a checkpoint, and what it predicts of a slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ctnet_nnunet.architectures.ctnet import cumulative_strides
from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.checkpoints import read_checkpoint
from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.planning.options import read_options
from ctnet_nnunet.pretext.base import PretextContext
from ctnet_nnunet.pretext.imaging_planes import ImagingPlanes, ImagingPlanesOptions
from ctnet_nnunet.unlabeled.target import Target

OWN_KEY, TASK = "ctnet", "imaging_planes"


@dataclass(frozen=True)
class Model:
    """A pretrained network with its heads."""

    network: nn.Module
    task: ImagingPlanes
    options: Mapping[str, Any]
    multiple: tuple[int, int]
    patch_size: tuple[int, int]

    def predict(self, image: np.ndarray) -> tuple[np.ndarray | None, float | None]:
        """A slice (C, H, W) → heatmaps (G, H, W) and location; the slice is padded to the patch and the strides."""
        size = [
            -(-max(length, patch) // step) * step
            for length, patch, step in zip(image.shape[1:], self.patch_size, self.multiple, strict=True)
        ]
        top, left = ((wanted - length) // 2 for wanted, length in zip(size, image.shape[1:], strict=True))
        rows, columns = slice(top, top + image.shape[1]), slice(left, left + image.shape[2])
        padded = torch.zeros((1, image.shape[0], *size))
        padded[0, :, rows, columns] = torch.from_numpy(image)
        heat, location = self.task.predict(self.network, padded)
        cut = None if heat is None else heat[0, :, rows, columns].numpy()
        return cut, None if location is None else float(location[0])


def load_model(checkpoint: Path, target: Target, block: Mapping[str, Any]) -> Model:
    """The network and heads of a checkpoint of nnUNetTrainerImagingPlanes.

    Raises:
        CheckpointError: Of another trainer or another plan.
    """
    content = read_checkpoint(checkpoint)
    own = content.get(OWN_KEY, {})
    if "planes" not in own:
        raise CheckpointError(f"{checkpoint}: was not written by nnUNetTrainerImagingPlanes; give one of its files")
    options = read_options(block.get("ctnet"), f"plans {target.plans['plans_name']}").model_dump()
    options |= {key: tuple(value) if isinstance(value, list) else value for key, value in own["planes"].items()}
    known = {field.name for field in fields(ImagingPlanesOptions)}
    network = network_from_plan(block["architecture"], target.channels, len(target.dataset_json["labels"]), False)
    patch: tuple[int, int] = tuple(block["patch_size"])
    context = PretextContext(patch, patch, tuple(block["spacing"]), None, target.channels)
    chosen = ImagingPlanesOptions(**{key: value for key, value in options.items() if key in known})
    task = ImagingPlanes(network, context, chosen)
    heads = {key.removeprefix(f"{TASK}."): value for key, value in own["pretext_state"].items()}
    try:
        network.load_state_dict(content["network_weights"])
        task.load_state_dict(heads)
    except (RuntimeError, KeyError):
        raise CheckpointError(
            f"{checkpoint}: does not fit the plans {target.plans['plans_name']}; name those it was trained with by -p"
        ) from None
    down, along = cumulative_strides(block["architecture"]["arch_kwargs"]["strides"])[-1]
    return Model(network.eval(), task.eval(), options, (down, along), patch)
