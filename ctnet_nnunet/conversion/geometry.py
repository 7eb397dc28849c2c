"""Where voxels lie: one canonical orientation (RAS), and how two grids are related.

RAS is meant as nibabel names it: the first axis runs towards the patient's Right, the second towards Anterior, the
third towards Superior, or as near to these as an oblique scan allows. Turning permutes and flips axes: no voxel value
is computed, and every voxel keeps its place in the patient.
"""

from __future__ import annotations

from enum import Enum
from itertools import product

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

NOISE_MM = 1e-3
"""Rounding in headers stays below; a shifted grid lies far above."""
_EQUAL_MM = 1e-6
_PARALLEL = 0.9999


class Relation(Enum):
    """How a grid relates to another: the value says it in a message."""

    SAME = "the same grid"
    NOISE = "the same grid, apart from rounding in the header"
    TURNED = "the same grid with its axes stored in another order or direction"
    OTHER = "another grid"


def to_ras(image: sitk.Image) -> sitk.Image:
    """The image with its axes in RAS order; a 2D image as it is."""
    return sitk.DICOMOrient(image, "RAS") if image.GetDimension() == 3 else image


def compare_grids(reference: sitk.Image, other: sitk.Image) -> tuple[Relation, float]:
    """How ``other`` relates to ``reference``, and the largest distance of their corners in mm.

    The distance is infinite where the number of voxels differs, however the axes are turned.
    """
    distance = _corner_distance(reference, other)
    if distance <= _EQUAL_MM:
        return Relation.SAME, distance
    if distance <= NOISE_MM:
        return Relation.NOISE, distance
    aligned = with_axes_of(reference, other)
    if aligned is not None:
        turned = _corner_distance(reference, aligned)
        if turned <= NOISE_MM:
            return Relation.TURNED, turned
        distance = min(distance, turned)
    return Relation.OTHER, distance


def with_axes_of(reference: sitk.Image, other: sitk.Image) -> sitk.Image | None:
    """``other`` with its axes permuted and flipped to run as those of ``reference``; None where they are not parallel.

    The two are compared with each other, not each with RAS: an oblique scan's letters can hang on rounding.
    """
    if reference.GetDimension() != 3 or other.GetDimension() != 3:
        return None
    first, second = (np.array(image.GetDirection()).reshape(3, 3) for image in (reference, other))
    cosines = first.T @ second
    order = np.abs(cosines).argmax(axis=1)
    along = cosines[range(3), order]
    if sorted(order) != [0, 1, 2] or np.abs(along).min() < _PARALLEL:
        return None
    return sitk.Flip(sitk.PermuteAxes(other, order.tolist()), (along < 0).tolist())


def on_grid_of(first: sitk.Image, turned: sitk.Image, image: sitk.Image, relation: Relation) -> sitk.Image:
    """An image on exactly the voxels of ``turned``, which is ``first`` in RAS.

    It gets the header of ``first`` before it is turned: near 45° rounding could otherwise decide which axis is which.
    """
    placed = with_axes_of(first, image) if relation is Relation.TURNED else sitk.Image(image)
    assert placed is not None
    placed.CopyInformation(first)
    placed = to_ras(placed)
    placed.CopyInformation(turned)
    return placed


def resample_to(reference: sitk.Image, image: sitk.Image) -> sitk.Image:
    """A channel on the grid of the first one: linear, its own minimum outside of what it covers."""
    values = sitk.GetArrayViewFromImage(image)
    as_float = sitk.Cast(image, sitk.sitkFloat32)
    return sitk.Resample(as_float, reference, sitk.Transform(), sitk.sitkLinear, float(values.min()))


def _corner_distance(first: sitk.Image, second: sitk.Image) -> float:
    if first.GetSize() != second.GetSize():
        return float("inf")
    return float(np.linalg.norm(_corners(first) - _corners(second), axis=1).max())


def _corners(image: sitk.Image) -> NDArray[np.float64]:
    """Outer corners of the grid in mm, (2^d, d): of the voxels' edges, so that a single slice has a thickness."""
    ends = product(*[(-0.5, n - 0.5) for n in image.GetSize()])
    return np.array([image.TransformContinuousIndexToPhysicalPoint(corner) for corner in ends])
