"""Images and label maps from files, and the check that two of them lie on one grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.image_check import check_integrity, read_image_header

GRID_TOLERANCE_MM = 1e-2
"""Corners that lie closer than this are the same; rounding in headers stays far below, a shifted grid far above."""


@dataclass(frozen=True)
class Volume:
    """A scan or label map as read: the SimpleITK image knows its geometry."""

    path: Path
    image: sitk.Image

    @property
    def array(self) -> NDArray[Any]:
        """Voxels as (z, y, x); a view, not to be written to."""
        return np.asarray(sitk.GetArrayViewFromImage(self.image))

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm along each array axis, in the order of :attr:`array`."""
        return tuple(float(s) for s in self.image.GetSpacing()[::-1])


def read_volume(path: Path) -> Volume:
    """Read a scan or label map; its header and its bytes are judged before the reader sees them.

    Raises:
        DataError: if the file is missing, broken, not 2D or 3D, or has several values a voxel.
    """
    header = read_image_header(path)
    if header.components != 1:
        raise DataError(f"{path}: has {header.components} values a voxel; write one file per channel")
    check_integrity(path)
    try:
        return Volume(path, sitk.ReadImage(str(path)))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{path}: cannot be read as an image ({reason}); replace the file") from error


def read_label_map(path: Path, known: frozenset[int]) -> tuple[Volume, NDArray[np.int64]]:
    """Read a label map; returns the volume and its labels as integers, (z, y, x).

    Raises:
        DataError: if a value is no integer or not in ``known``.
    """
    volume = read_volume(path)
    values = np.unique(volume.array)
    rounded = np.rint(values)
    if not np.all(np.isfinite(values)) or np.abs(values - rounded).max(initial=0) > 1e-3:
        raise DataError(f"{path}: holds values that are no integers; give a label map")
    unknown = sorted({int(v) for v in rounded} - known)
    if unknown:
        raise DataError(f"{path}: holds label {unknown[0]}, which dataset.json does not name; known: {sorted(known)}")
    return volume, np.rint(volume.array).astype(np.int64)


def require_same_grid(first: Volume, second: Volume) -> None:
    """Size, and position of the corner voxels in mm, must agree.

    Raises:
        DataError: naming both files and what differs.
    """
    a, b = first.image, second.image
    if a.GetSize() != b.GetSize():
        raise DataError(
            f"{second.path}: grid {b.GetSize()} differs from {a.GetSize()} of {first.path}; resample one onto the other"
        )
    distance = float(np.abs(_corners(a) - _corners(b)).max())
    if distance > GRID_TOLERANCE_MM:
        raise DataError(
            f"{second.path}: its grid lies up to {distance:.3g} mm off {first.path}; resample one onto the other"
        )


def _corners(image: sitk.Image) -> NDArray[np.float64]:
    """Positions in mm of the voxels at the grid's corners, (2^d, d)."""
    last = [n - 1 for n in image.GetSize()]
    indices = np.stack(np.meshgrid(*[(0, n) for n in last], indexing="ij"), axis=-1).reshape(-1, len(last))
    return np.array([image.TransformIndexToPhysicalPoint([int(i) for i in index]) for index in indices])
