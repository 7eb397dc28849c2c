"""The geometry of a DICOM series: its slices in order, or why they make no volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctnet_nnunet.conversion.dicom_headers import REPEATS, Header
from ctnet_nnunet.errors import DataError

_ORIENTATION_TOLERANCE = 1e-3
_SAME_POSITION_MM = 1e-3
_IRREGULAR_SHARE = 0.02
_MOST_SHIFT_PIXELS = 0.5
"""A tilted stack that shifts by less from its first to its last slice is as good as straight."""


@dataclass(frozen=True)
class Geometry:
    """Files in order along the slice normal; spacing and origin in mm, direction row by row, in LPS (x, y, z)."""

    files: tuple[Path, ...]
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]


def series_geometry(headers: Sequence[Header], name: str) -> Geometry:
    """Order a series' slices and derive its grid from their positions and orientations.

    Raises:
        DataError: several orientations, sizes or repetitions; a tilted gantry; irregular gaps; no usable geometry.
            ``name`` says where.
    """
    row, column = _axes(headers, name)
    normal = np.cross(row, column)
    positions = _positions(headers, name)
    spacing = _one_value(headers, "PixelSpacing", 2, "pixel spacings", name)
    if len({header.size for header in headers}) > 1:
        sizes = sorted({f"{h.size[0]}×{h.size[1]}" for h in headers})
        raise DataError(f"{name}: mixes slices of {', '.join(sizes)} pixels; separate the series")
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    ordered = [headers[int(index)] for index in order]
    step = _step(ordered, along[order], name)
    _check_straight(positions[order], normal, spacing, name)
    first = positions[order[0]]
    columns, rows = headers[0].size
    direction = np.stack([row, column, normal], axis=1)
    return Geometry(
        tuple(header.path for header in ordered),
        (columns, rows, len(ordered)),
        (spacing[1], spacing[0], step),
        (float(first[0]), float(first[1]), float(first[2])),
        tuple(direction.ravel().tolist()),
    )


def _axes(headers: Sequence[Header], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along a row and along a column, the same for all slices."""
    found = []
    for header in headers:
        values = header.numbers("ImageOrientationPatient", 6)
        if values is None:
            raise DataError(f"{header.path}: has no usable ImageOrientationPatient; export the series again")
        found.append(values)
    orientations = np.array(found)
    if np.abs(orientations - orientations[0]).max() > _ORIENTATION_TOLERANCE:
        count = len(np.unique(np.round(orientations, 2), axis=0))
        raise DataError(f"{name}: mixes {count} slice orientations (a localizer?); separate the series")
    row, column = orientations[0, :3], orientations[0, 3:]
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column), 1 + row @ column])
    if np.abs(lengths - 1).max() > _ORIENTATION_TOLERANCE:
        raise DataError(f"{headers[0].path}: its ImageOrientationPatient is no pair of right-angled unit vectors")
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _positions(headers: Sequence[Header], name: str) -> NDArray[np.float64]:
    found = []
    for header in headers:
        values = header.numbers("ImagePositionPatient", 3)
        if values is None:
            raise DataError(f"{header.path}: has no usable ImagePositionPatient; export the series again")
        found.append(values)
    return np.array(found)


def _one_value(headers: Sequence[Header], keyword: str, count: int, what: str, name: str) -> tuple[float, ...]:
    values = {header.numbers(keyword, count) for header in headers}
    usable = [value for value in values if value is not None and min(value) > 0]
    if not usable or None in values:
        raise DataError(f"{name}: some slices have no usable {keyword}; export the series again")
    array = np.array(usable)
    if np.abs(array - array[0]).max() > _SAME_POSITION_MM * array.max():
        raise DataError(f"{name}: mixes {len(usable)} {what}; separate the series")
    return usable[0]


def _step(ordered: Sequence[Header], along: NDArray[np.float64], name: str) -> float:
    """The distance of neighbouring slices in mm."""
    if len(ordered) == 1:
        for keyword in ("SpacingBetweenSlices", "SliceThickness"):
            value = ordered[0].numbers(keyword, 1)
            if value is not None and value[0] > 0:
                return value[0]
        raise DataError(f"{name}: is one slice of unknown thickness; export the series again")
    steps = np.diff(along)
    if steps.min() < _SAME_POSITION_MM:
        raise DataError(f"{name}: has several slices at one position{_repeats(ordered)}; separate them")
    middle = float(np.median(steps))
    worst = int(np.argmax(np.abs(steps - middle)))
    if abs(steps[worst] - middle) > _IRREGULAR_SHARE * middle:
        first, second = ordered[worst].path.name, ordered[worst + 1].path.name
        raise DataError(
            f"{name}: irregular slice gaps, {steps[worst]:.3g} mm between {first} and {second} and {middle:.3g} mm "
            "elsewhere; complete the series, or resample it"
        )
    return float(along[-1] - along[0]) / (len(ordered) - 1)


def _repeats(ordered: Sequence[Header]) -> str:
    for keyword, what in REPEATS.items():
        count = len({header.text(keyword) for header in ordered})
        if count > 1:
            return f": {count} {what}"
    return ""


def _check_straight(
    positions: NDArray[np.float64], normal: NDArray[np.float64], spacing: tuple[float, ...], name: str
) -> None:
    """Slices must lie straight above each other."""
    offsets = positions - positions[0]
    sideways = offsets - np.outer(offsets @ normal, normal)
    shift = float(np.linalg.norm(sideways, axis=1).max())
    if shift <= _MOST_SHIFT_PIXELS * min(spacing):
        return
    last = offsets[-1]
    angle = np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), abs(last @ normal)))
    raise DataError(
        f"{name}: gantry tilt of {angle:.1f}°, its slices shift by {shift:.3g} mm; correct it (dcm2niix writes a file "
        "that ends in _Tilt) and convert the result as NIfTI"
    )
