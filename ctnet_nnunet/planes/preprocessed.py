"""From a slice of a preprocessed case back to the patient, through transposition, crop and resampling.

nnU-Net resamples with the half-pixel rule: the image's outer edges stay, so that preprocessed row r' was row
(r' + ½)·H/H' − ½ of the cropped image. A 2d configuration never resamples across slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.planes.geometry import Plane


def original_planes(properties: Mapping[str, Any], slices: int) -> list[Plane]:
    """The slices of the raw image that a case was made from; see :func:`preprocessed_planes` for the errors."""
    first, steps = _grid(properties, (0, 1, 2))
    return [_plane(first + k * steps[0], steps, 1.0, 1.0) for k in range(slices)]


def preprocessed_planes(
    properties: Mapping[str, Any], shape: Sequence[int], transpose_forward: Sequence[int]
) -> list[Plane]:
    """The slices of a preprocessed case.

    Args:
        properties: What nnU-Net keeps of the case in its ``.pkl``.
        shape: The preprocessed array's (K, H', W').
        transpose_forward: Of the plans.

    Raises:
        DataError: A case that SimpleITK did not read, or a 2D one; a case that was resampled across slices.
    """
    first, steps = _grid(properties, transpose_forward)
    lower = [int(bounds[0]) for bounds in properties["bbox_used_for_cropping"]]
    before = [int(size) for size in properties["shape_after_cropping_and_before_resampling"]]
    if before[0] != shape[0]:
        raise DataError(f"was resampled across slices, from {before[0]} to {shape[0]}; use a 2d configuration")
    down, along = before[1] / shape[1], before[2] / shape[2]
    corner = first + (lower[1] + 0.5 * down - 0.5) * steps[1] + (lower[2] + 0.5 * along - 0.5) * steps[2]
    return [_plane(corner + (lower[0] + k) * steps[0], steps, down, along) for k in range(shape[0])]


def first_slice(properties: Mapping[str, Any]) -> int:
    """The index in the raw stack of a preprocessed case's first slice: the crop's lower bound."""
    return int(properties["bbox_used_for_cropping"][0][0])


def _grid(properties: Mapping[str, Any], transpose_forward: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The first voxel's place, and the step in mm along each axis of the transposed array."""
    grid = properties.get("sitk_stuff")
    if grid is None:
        raise DataError(
            "was not read by SimpleITKIO, so its geometry is not kept as planes need it; plan the dataset again with "
            '"overwrite_image_reader_writer": "SimpleITKIO" in dataset.json'
        )
    if len(grid["spacing"]) != 3:
        raise DataError("is a 2D image, which has no place in the patient; write slices as 3D images of one slice")
    axes = np.array(grid["direction"], float).reshape(3, 3) * np.array(grid["spacing"], float)
    # SimpleITK's arrays have their axes in the order z, y, x.
    steps = [axes[:, 2 - axis] for axis in transpose_forward]
    return np.array(grid["origin"], float), steps


def _plane(position: np.ndarray, steps: Sequence[np.ndarray], down: float, along: float) -> Plane:
    lengths = [float(np.linalg.norm(step)) for step in steps]
    (ax, ay, az), (dx, dy, dz) = (steps[2] / lengths[2]).tolist(), (steps[1] / lengths[1]).tolist()
    x, y, z = position.tolist()
    return Plane((x, y, z), (ax, ay, az), (dx, dy, dz), (lengths[1] * down, lengths[2] * along), lengths[0])
