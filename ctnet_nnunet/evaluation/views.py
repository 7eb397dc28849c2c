"""A scan with its true and predicted labels, turned to the axes in which radiologists look at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ctnet_nnunet.evaluation.cases import LabelScheme
from ctnet_nnunet.evaluation.metrics import BoolArray, Structure
from ctnet_nnunet.evaluation.volumes import read_label_map, read_volume, require_same_grid

MARGIN_MM = 15.0
"""Shown around the structures, so that anatomy stays recognisable."""

PLANES = ("axial", "coronal", "sagittal")
"""Plane number = the axis of a (z, y, x) array that it is perpendicular to."""

_POSITIVE, _NEGATIVE = "LPS", "RAI"


@dataclass(frozen=True)
class View:
    """Arrays (z, y, x) whose axes run to superior, posterior and left, or as near to these as the scan allows.

    ``spacing`` is in mm along each array axis; ``axes`` are the unit vectors (in LPS) along each array axis.
    """

    scan: NDArray[Any]
    truth: NDArray[np.int64]
    prediction: NDArray[np.int64]
    spacing: tuple[float, float, float]
    axes: NDArray[np.float64]


@dataclass(frozen=True)
class Slice:
    """One plane of a view as it is shown: row 0 on top, column 0 on the left.

    ``letters`` name the sides left, right, top, bottom of the picture; ``spacing`` is mm a row, mm a column.
    """

    plane: str
    scan: NDArray[Any]
    truth: NDArray[np.int64]
    prediction: NDArray[np.int64]
    spacing: tuple[float, float]
    letters: tuple[str, str, str, str]


def read_view(scan_file: Path, truth_file: Path | None, prediction_file: Path, scheme: LabelScheme) -> View:
    """Read one case; without a truth its place stays empty.

    Raises:
        DataError: if a file cannot be read or the three are not on one grid.
    """
    scan = read_volume(scan_file)
    prediction, _ = read_label_map(prediction_file, scheme.known)
    require_same_grid(prediction, scan)
    truth_image = prediction.image * 0
    if truth_file is not None:
        truth, _ = read_label_map(truth_file, scheme.known)
        require_same_grid(truth, prediction)
        truth_image = truth.image
    turned = [_turn(image) for image in (scan.image, truth_image, prediction.image)]
    direction = np.array(turned[0].GetDirection()).reshape(3, 3)
    arrays = [sitk.GetArrayFromImage(image) for image in turned]
    sx, sy, sz = turned[0].GetSpacing()
    labels = [np.rint(a).astype(np.int64) for a in arrays[1:]]
    return View(arrays[0].astype(np.float32), labels[0], labels[1], (sz, sy, sx), direction.T[::-1])


def _turn(image: sitk.Image) -> sitk.Image:
    volume = sitk.JoinSeries([image]) if image.GetDimension() == 2 else image
    return sitk.DICOMOrient(volume, "LPS")


def letter(axis: NDArray[np.float64]) -> str:
    """The side (L, R, P, A, S, I) that a unit vector in LPS coordinates mostly points to."""
    largest = int(np.argmax(np.abs(axis)))
    return (_POSITIVE if axis[largest] > 0 else _NEGATIVE)[largest]


def largest_slice(view: View, structure: Structure, plane: int) -> int:
    """Index of the slice with the largest true area; of the predicted area where the truth is empty."""
    mask = structure.mask(view.truth)
    if not mask.any():
        mask = structure.mask(view.prediction)
    others = tuple(axis for axis in range(3) if axis != plane)
    area = mask.sum(axis=others)
    return int(np.argmax(area)) if area.any() else view.scan.shape[plane] // 2


def shown_planes(view: View) -> tuple[int, ...]:
    """The planes that have more than one row and column (a single 2D slice has only one)."""
    shape = view.scan.shape
    return tuple(p for p in range(3) if all(n > 1 for axis, n in enumerate(shape) if axis != p))


def cut(view: View, structures: Sequence[Structure], structure: Structure, plane: int) -> Slice:
    """The plane through the structure's largest slice, cropped around all ``structures``.

    Axial: anterior on top and the patient's right on the left. Coronal: superior on top and the patient's right on
    the left. Sagittal: superior on top and anterior on the left.
    """
    index = largest_slice(view, structure, plane)
    rows, columns = (axis for axis in range(3) if axis != plane)
    box = _crop_box(view, structures)
    window = tuple(index if axis == plane else box[axis] for axis in range(3))
    flip = rows == 0  # the z axis runs upwards, picture rows run downwards
    pictures = [a[window][::-1] if flip else a[window] for a in (view.scan, view.truth, view.prediction)]
    down = -view.axes[rows] if flip else view.axes[rows]
    right = view.axes[columns]
    letters = (letter(-right), letter(right), letter(-down), letter(down))
    spacing = (view.spacing[rows], view.spacing[columns])
    return Slice(PLANES[plane], pictures[0], pictures[1], pictures[2], spacing, letters)


def _crop_box(view: View, structures: Sequence[Structure]) -> tuple[slice, slice, slice]:
    """The structures' bounding box, widened by :data:`MARGIN_MM`; the whole volume where there is none."""
    mask: BoolArray = np.zeros(view.scan.shape, dtype=np.bool_)
    for structure in structures:
        mask |= structure.mask(view.truth) | structure.mask(view.prediction)
    found = []
    for axis, spacing in enumerate(view.spacing):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (int(hit[0]), int(hit[-1])) if hit.size else (0, mask.shape[axis] - 1)
        margin = int(np.ceil(MARGIN_MM / spacing))
        found.append(slice(max(0, first - margin), min(mask.shape[axis], last + 1 + margin)))
    return found[0], found[1], found[2]
