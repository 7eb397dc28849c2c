"""nnU-Net's mirroring made safe for labels with sides (architecture.md, laterality contract)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from torch import Tensor

from ctnet_nnunet.laterality import SidedLabels, left_right_axis, swap_table


@dataclass(frozen=True)
class MirrorPlan:
    """What to do with the mirror axes of a patch.

    Attributes:
        plain_axes: Axes of the patch along which mirroring changes no label; also those of test-time augmentation.
        swap_axis: Axis along which training mirrors and swaps sides, or None.
        reason: Why, for the log; empty when no label has a side.
    """

    plain_axes: tuple[int, ...]
    swap_axis: int | None
    reason: str


class LateralMirrorTransform(MirrorTransform):  # type: ignore[misc]
    """Mirror along the left-right axis with probability one half, and swap left and right labels with it."""

    def __init__(self, axis: int, pairs: Sequence[tuple[int, int]]) -> None:
        super().__init__((axis,))
        self.table = torch.from_numpy(swap_table(pairs, max(max(pair) for pair in pairs)))

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        flipped = super()._apply_to_segmentation(segmentation, **params)
        if not params["axes"]:
            return flipped
        # Labels beyond the table (ignore) and padding (-1) have no side.
        inside = (flipped >= 0) & (flipped < len(self.table))
        swapped = self.table.to(flipped.dtype)[flipped.clamp(0, len(self.table) - 1).long()]
        return torch.where(inside, swapped, flipped)


def plan_mirroring(
    mirror_axes: Sequence[int],
    patch_dimensions: int,
    sides: SidedLabels,
    transpose_forward: Sequence[int],
    directions: Callable[[], Iterable[Sequence[float] | None]],
) -> MirrorPlan:
    """Decide which patch axes to mirror.

    Args:
        mirror_axes: The axes that stock nnU-Net would mirror.
        patch_dimensions: 2 or 3; a 2d patch has the last two of the transposed axes.
        sides: The dataset's sided labels.
        transpose_forward: The plan's axis order.
        directions: Gives each training case's direction cosines, None where a case has none.
    """
    if not sides.any:
        return MirrorPlan(tuple(mirror_axes), None, "")
    axes = {None if direction is None else left_right_axis(direction) for direction in directions()}
    axis = axes.pop() if len(axes) == 1 else None
    if axis is None:
        differ = bool(axes) and None not in axes
        why = "the cases differ in their orientation" if differ else "a case has no usable orientation"
        return MirrorPlan((), None, f"labels have sides and {why}: mirroring is off on every axis")
    patch_axis = list(transpose_forward).index(axis) - (3 - patch_dimensions)
    if patch_axis not in mirror_axes:
        return MirrorPlan(tuple(mirror_axes), None, "labels have sides; left-right is not an axis of the patch")
    plain_axes = tuple(axis for axis in mirror_axes if axis != patch_axis)
    if sides.unpaired:
        names = ", ".join(sides.unpaired[:3])
        return MirrorPlan(plain_axes, None, f"{names} has a side and no partner: mirroring is off on axis {patch_axis}")
    return MirrorPlan(
        plain_axes,
        patch_axis,
        f"left-right is patch axis {patch_axis}: training mirrors it and swaps {len(sides.pairs)} pairs of labels; "
        "test-time augmentation leaves it out",
    )


def with_lateral_mirroring(
    transforms: ComposeTransforms, axis: int, pairs: Sequence[tuple[int, int]]
) -> ComposeTransforms:
    """Insert the transform where stock mirroring stands: before masking, label removal and all that follows."""
    steps: list[BasicTransform] = list(transforms.transforms)
    place = next(i for i, step in enumerate(steps) if isinstance(step, (MaskImageTransform, RemoveLabelTansform)))
    return ComposeTransforms([*steps[:place], LateralMirrorTransform(axis, pairs), *steps[place:]])


def direction_of(properties: Mapping[str, Any]) -> Sequence[float] | None:
    """Direction cosines (row-major, LPS) from the properties that nnU-Net's readers keep of a case."""
    if "sitk_stuff" in properties:
        return tuple(properties["sitk_stuff"]["direction"])
    stuff = properties.get("nibabel_stuff", {})
    affine = stuff.get("reoriented_affine", stuff.get("original_affine"))
    if affine is None:
        return None
    ras_to_lps = np.diag([-1.0, -1.0, 1.0])
    columns = ras_to_lps @ np.asarray(affine, dtype=float)[:3, :3]
    return tuple((columns / np.linalg.norm(columns, axis=0)).ravel())
