"""From logits in the plan's grid to labels in the scan's own, one class at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from numpy.typing import NDArray
from torch import Tensor

from ctnet_nnunet.inference.model import Model

_SURE = 10.0
"""The logit of background outside of a box: certain, and small enough not to drown its neighbours in resampling."""


def labels_in_plan(logits: Tensor, model: Model) -> NDArray[Any]:
    """Labels (*grid) of logits (heads, *grid), in the same grid."""
    return _label(model, logits.shape[1:], lambda head: np.asarray(logits[head]))


@dataclass(frozen=True)
class Place:
    """Where a box lies in the plan's grid of a scan."""

    part: tuple[slice, ...]
    grid: tuple[int, ...]

    def whole(self, values: Tensor, outside: float) -> Tensor:
        """A channel (*grid) of the box in the whole grid."""
        array = torch.full(self.grid, outside, dtype=values.dtype)
        array[self.part] = values
        return array


def labels_in_scan(
    logits: Tensor, model: Model, properties: dict[str, Any], place: Place | None = None
) -> NDArray[Any]:
    """Labels in the scan's grid, voxel for voxel those of nnU-Net's export; with ``place`` background outside of it.

    nnU-Net resamples all classes and then takes the greatest; its resampling treats each class by itself, so the
    running maximum is the same and needs memory for one class only.
    """
    crop = tuple(properties["shape_after_cropping_and_before_resampling"])
    regions = model.plans.get_label_manager(model.dataset_json).has_regions

    def channel(head: int) -> NDArray[Any]:
        values = logits[head]
        if place is not None:
            values = place.whole(values, _SURE if head == 0 and not regions else -_SURE)
        return np.asarray(resample(values, model, properties))

    labels = _label(model, crop, channel)
    whole: NDArray[Any] = np.zeros(properties["shape_before_cropping"], dtype=labels.dtype)
    whole = insert_crop_into_image(whole, labels, properties["bbox_used_for_cropping"])
    return np.asarray(whole).transpose(model.plans.transpose_backward)


def map_in_scan(
    values: Tensor, model: Model, properties: dict[str, Any], place: Place | None = None
) -> NDArray[np.float32]:
    """A float map (*grid) in the scan's grid; 0 where nnU-Net had cropped, and outside of ``place``."""
    values = values if place is None else place.whole(values, 0.0)
    resampled = np.asarray(resample(values, model, properties), dtype=np.float32)
    whole: NDArray[np.float32] = np.zeros(properties["shape_before_cropping"], dtype=np.float32)
    whole = insert_crop_into_image(whole, resampled, properties["bbox_used_for_cropping"])
    return np.asarray(whole).transpose(model.plans.transpose_backward)


def plan_spacing(model: Model, properties: dict[str, Any]) -> list[float]:
    """mm along the axes of the plan's grid; a 2d plan leaves the distance of slices as it is."""
    spacing = [float(size) for size in model.configuration.spacing]
    if len(spacing) == len(properties["shape_after_cropping_and_before_resampling"]):
        return spacing
    return [float(properties["spacing"][model.plans.transpose_forward[0]]), *spacing]


def resample(values: Tensor, model: Model, properties: dict[str, Any]) -> Any:
    """One channel (*grid) to the cropped scan's shape, as the plan resamples probabilities."""
    scan_spacing = [properties["spacing"][axis] for axis in model.plans.transpose_forward]
    shape = properties["shape_after_cropping_and_before_resampling"]
    spacing = plan_spacing(model, properties)
    return model.configuration.resampling_fn_probabilities(values[None], shape, spacing, scan_spacing)[0]


def _label(model: Model, shape: Any, channel: Any) -> NDArray[Any]:
    manager = model.plans.get_label_manager(model.dataset_json)
    kind = np.uint8 if len(manager.foreground_labels) < 255 else np.uint16
    labels = np.zeros(tuple(shape), dtype=kind)
    if manager.has_regions:
        for head, label in enumerate(manager.regions_class_order):
            inside = manager.apply_inference_nonlin(torch.from_numpy(np.ascontiguousarray(channel(head)))) > 0.5
            labels[inside.numpy()] = label
        return labels
    greatest = channel(0).copy()
    for head in range(1, manager.num_segmentation_heads):
        values = channel(head)
        better = values > greatest  # strictly: of equal ones the first wins, as in argmax
        labels[better] = head
        np.copyto(greatest, values, where=better)
    return labels
