"""The axes of one scan on its way through a plan: the patient's, the reader's (z, y, x), those of the plan's grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ctnet_nnunet.evaluation.reference import axes_of, signs_of
from ctnet_nnunet.image_check import read_image_header
from ctnet_nnunet.inference.box import Slices
from ctnet_nnunet.inference.export_labels import plan_spacing
from ctnet_nnunet.inference.model import Model

_ROUNDING = 1e-3
"""Of a voxel."""


@dataclass(frozen=True)
class Grids:
    """A preprocessed scan's grids.

    Attributes:
        letters: How the scan lies as the plan's reader has read it.
        spacing, shape: mm and voxels along the reader's axes.
        plan_spacing, plan_shape: The same along the plan's.
        cropped, first: Voxels of the scan behind nnU-Net's crop, in the plan's order of axes, and where that begins.
        forward, backward: Which reader's axis each of the plan's is, and the other way round.
    """

    letters: str
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    plan_spacing: tuple[float, ...]
    plan_shape: tuple[int, ...]
    cropped: tuple[int, ...]
    first: tuple[int, ...]
    forward: tuple[int, ...]
    backward: tuple[int, ...]

    def from_patient(self, values: Sequence[float]) -> list[float]:
        """Values along the patient's axes (right-left, front-back, up-down) in the order of the reader's."""
        by_axis = dict(zip(axes_of(self.letters), values, strict=True))
        return [by_axis[axis] for axis in (2, 1, 0)]

    def span(self, low: Sequence[float], high: Sequence[float]) -> tuple[list[float], list[float]]:
        """A span towards the patient's right, front and top, along the plan's axes."""
        signs = signs_of(self.letters)
        first = [sign * (a if sign > 0 else b) for sign, a, b in zip(signs, low, high, strict=True)]
        last = [sign * (b if sign > 0 else a) for sign, a, b in zip(signs, low, high, strict=True)]
        return self.to_plan(self.from_patient(first)), self.to_plan(self.from_patient(last))

    def to_patient(self, values: Sequence[float]) -> list[float]:
        """The way back of :meth:`from_patient`."""
        return [values[2 - axis] for axis in axes_of(self.letters)]

    def to_plan(self, values: Sequence[float]) -> list[float]:
        """Values along the reader's axes in the plan's order."""
        return [values[axis] for axis in self.forward]

    def to_scan(self, point: Sequence[float]) -> list[float]:
        """A point of the plan's grid, counted in voxels' edges, as one of the scan along the reader's axes."""
        pairs = zip(self.first, point, self.cropped, self.plan_shape, strict=True)
        moved = [first + place * count / length for first, place, count, length in pairs]
        return [moved[axis] for axis in self.backward]

    def box_in_scan(self, part: Slices) -> Slices:
        """The voxels of the scan that a box of the plan's grid reaches into."""
        low, high = self.to_scan([place.start for place in part]), self.to_scan([place.stop for place in part])
        return tuple(
            slice(math.floor(a + _ROUNDING), math.ceil(b - _ROUNDING)) for a, b in zip(low, high, strict=True)
        )


def grids_of(model: Model, properties: dict[str, Any], grid: Sequence[int], letters: str) -> Grids:
    """The grids of a scan that was preprocessed to ``grid`` voxels."""
    backward = tuple(model.plans.transpose_backward)
    before = properties["shape_before_cropping"]
    return Grids(
        letters=letters,
        spacing=tuple(float(size) for size in properties["spacing"]),
        shape=tuple(int(before[axis]) for axis in backward),
        plan_spacing=tuple(plan_spacing(model, properties)),
        plan_shape=tuple(int(length) for length in grid),
        cropped=tuple(int(n) for n in properties["shape_after_cropping_and_before_resampling"]),
        first=tuple(int(low) for low, _ in properties["bbox_used_for_cropping"]),
        forward=tuple(model.plans.transpose_forward),
        backward=backward,
    )


def voxels(millimetres: Sequence[float], spacing: Sequence[float], grid: Sequence[int]) -> tuple[int, ...]:
    """How many voxels hold a length along each axis, at most the grid's."""
    return tuple(min(math.ceil(m / s - _ROUNDING), g) for m, s, g in zip(millimetres, spacing, grid, strict=True))


def centre_mm(ends: Sequence[tuple[int, int]], file: Path) -> tuple[float, ...]:
    """The middle of a box in mm (RAS); ``ends`` along the file's axes (x, y, z)."""
    header = read_image_header(file)
    grid = sitk.Image([1, 1, 1], sitk.sitkUInt8)
    grid.SetSpacing(header.spacing)
    grid.SetOrigin(header.origin)
    grid.SetDirection(header.direction)
    x, y, z = grid.TransformContinuousIndexToPhysicalPoint([(start + stop - 1) / 2 for start, stop in ends])
    return -x, -y, z
